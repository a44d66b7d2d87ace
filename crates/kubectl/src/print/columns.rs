//! `-o custom-columns`: a header and a JSONPath for each column.

use serde_json::Value;

use super::{jsonpath, jsonpath::Template, tabs::Tabs};
use crate::error::{Error, Result};

/// The columns asked for.
#[derive(Clone, Debug)]
pub(crate) struct Columns(Vec<(String, Template)>);

impl Columns {
    /// `NAME:.metadata.name,AGE:.metadata.creationTimestamp`.
    pub(crate) fn parse(spec: &str) -> Result<Columns> {
        if spec.is_empty() {
            return Err(Error::text("custom-columns format specified but no custom columns given"));
        }
        let columns = spec.split(',').map(|part| {
            let (header, path) = part.split_once(':').ok_or_else(|| {
                Error::text(format!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"))
            })?;
            Ok((header.to_owned(), Template::parse(&jsonpath::relaxed(path)?)?))
        });
        Ok(Columns(columns.collect::<Result<_>>()?))
    }

    /// A file with a line of headers and one of paths.
    pub(crate) fn from_file(text: &str) -> Result<Columns> {
        let mut lines = text.lines();
        let headers = lines.next().unwrap_or_default().split_whitespace();
        let paths: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
        let spec: Vec<_> = headers.zip(paths).map(|(header, path)| format!("{header}:{path}")).collect();
        Columns::parse(&spec.join(","))
    }

    /// The table of some objects.
    pub(crate) fn print(&self, objects: &[Value], headers: bool, tabs: &mut Tabs) -> String {
        let mut text = String::new();
        if headers {
            let names: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
            text.push_str(&names.join("\t"));
            text.push('\n');
        }
        for object in objects {
            let cells: Vec<String> = self.0.iter().map(|(_, path)| cell(&path.find(object))).collect();
            text.push_str(&cells.join("\t"));
            text.push('\n');
        }
        tabs.align(&text)
    }
}

fn cell(found: &[Value]) -> String {
    match found {
        [] => "<none>".to_owned(),
        found => found.iter().map(go_value).collect::<Vec<_>>().join(","),
    }
}

/// A value as Go prints it.
fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            let pairs: Vec<_> = keys.into_iter().map(|key| format!("{key}:{}", go_value(&map[key]))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}
