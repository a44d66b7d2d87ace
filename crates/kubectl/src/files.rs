//! Manifests: files, folders, standard input, addresses.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    web,
};

/// An object of a file.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) object: Value,
    /// The file, as messages name it.
    pub(crate) source: String,
}

/// Reads all objects of the files named; lists are taken apart.
pub(crate) async fn read(names: &[String], recursive: bool) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for name in names {
        if name == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            parse(&text, "STDIN", &mut manifests)?;
        } else if name.starts_with("http://") || name.starts_with("https://") {
            let text = web::get(name).await?;
            parse(&text, name, &mut manifests)?;
        } else {
            let path = Path::new(name);
            if !path.exists() {
                return Err(Error::text(format!("the path {name:?} does not exist")));
            }
            for path in files_of(path, recursive)? {
                let shown = path.display().to_string();
                let text = std::fs::read_to_string(&path).map_err(|error| Error::text(go_io(&path, "open", &error)))?;
                parse(&text, &shown, &mut manifests)?;
            }
        }
    }
    Ok(manifests)
}

/// A file, or the manifests in a folder, by name.
fn files_of(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(|error| Error::text(go_io(path, "open", &error)))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                files.extend(files_of(&entry, true)?);
            }
        } else if entry.extension().is_some_and(|end| matches!(end.to_str(), Some("json" | "yaml" | "yml"))) {
            files.push(entry);
        }
    }
    Ok(files)
}

/// The documents of a text.
pub(crate) fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") || line.trim_end() == "---" {
            documents.push(String::new());
            continue;
        }
        if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    documents
}

fn parse(text: &str, source: &str, out: &mut Vec<Manifest>) -> Result<()> {
    for document in documents(text) {
        if document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            continue;
        }
        let failed = |what: String| Error::text(format!("error parsing {source}: {what}"));
        let value = match document.trim_start().starts_with('{') {
            true => skiff_api::decode::json(document.as_bytes()),
            false => skiff_api::decode::yaml(&document),
        };
        let value = value.map_err(|error| failed(error.to_string()))?.value;
        if value.is_null() {
            continue;
        }
        flatten(value, source, out)?;
    }
    Ok(())
}

fn flatten(object: Value, source: &str, out: &mut Vec<Manifest>) -> Result<()> {
    let invalid = |what: &str| {
        Error::text(format!(
            "error validating {source:?}: error validating data: {what}; if you choose to ignore these errors, turn validation off with --validate=false"
        ))
    };
    if !object.is_object() {
        return Err(invalid("invalid object to validate"));
    }
    let is_set = |field: &str| object[field].as_str().is_some_and(|text| !text.is_empty());
    let missing: Vec<_> = ["apiVersion", "kind"]
        .into_iter()
        .filter(|field| !is_set(field))
        .map(|field| format!("{field} not set"))
        .collect();
    match missing.as_slice() {
        [] => {}
        [one] => return Err(invalid(one)),
        all => return Err(invalid(&format!("[{}]", all.join(", ")))),
    }
    match object["items"].as_array() {
        Some(items) if object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => {
            items.iter().try_for_each(|item| flatten(item.clone(), source, out))
        }
        _ => {
            out.push(Manifest { object, source: source.to_owned() });
            Ok(())
        }
    }
}

/// An input or output error in Go's words: `open x: no such file or directory`.
pub(crate) fn go_io(path: &Path, verb: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let what = match error.kind() {
        ErrorKind::NotFound => "no such file or directory".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::AlreadyExists => "file exists".to_owned(),
        ErrorKind::IsADirectory => "is a directory".to_owned(),
        ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    };
    format!("{verb} {}: {what}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let text = "# head\n---\nkind: A\napiVersion: v1\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: B, apiVersion: v1}\n- {kind: C, apiVersion: v1}\n";
        let mut found = Vec::new();
        parse(text, "x.yaml", &mut found).unwrap();
        let kinds: Vec<_> = found.iter().map(|manifest| manifest.object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        let refused = parse("apiVersion: v1\n", "x.yaml", &mut found).unwrap_err().message();
        assert!(
            refused.starts_with("error: error validating \"x.yaml\": error validating data: kind not set"),
            "{refused}"
        );
    }
}
