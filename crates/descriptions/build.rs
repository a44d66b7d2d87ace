//! Collects the descriptions of the API's types and fields from the sources of k8s-openapi, which cargo has fetched
//! because the API server uses it, and writes them compressed.
//!
//! Each of its files ends in the schema of one definition as a JSON literal. Reading those is a matter of milliseconds;
//! compiling the crate once more with its `schemars` feature would take a quarter of a minute. Without the sources the
//! build goes on, and the API has no descriptions.

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

const CRATE: &str = "k8s-openapi";
const VERSION_DIR: &str = "src/v1_36";

const INSERT: &str = "schema_obj.ensure_object().insert(\"description\".into(), ";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let mut text = String::new();
    match sources() {
        Some(dir) => collect(&dir, &mut text)?,
        None => println!("cargo::warning=the sources of {CRATE} were not found: the API will have no descriptions"),
    }
    let out = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("descriptions.zz");
    let mut encoder = flate2::write::ZlibEncoder::new(fs::File::create(out)?, flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()?;
    Ok(())
}

/// Where the sources for the served version are: in the registry's cache, or where cargo says.
fn sources() -> Option<PathBuf> {
    let lock = fs::read_to_string("../../Cargo.lock").ok()?;
    let after = lock.split_once(&format!("name = \"{CRATE}\"\nversion = \""))?.1;
    let version = after.split('"').next()?;
    let home = |name: &str| env::var_os(name).map(PathBuf::from);
    let cargo_home = home("CARGO_HOME").or_else(|| home("HOME").map(|h| h.join(".cargo")));
    let cached = cargo_home.into_iter().flat_map(|h| fs::read_dir(h.join("registry/src")).into_iter().flatten());
    cached
        .filter_map(Result::ok)
        .map(|registry| registry.path().join(format!("{CRATE}-{version}")).join(VERSION_DIR))
        .find(|dir| dir.is_dir())
        .or_else(|| asked_of_cargo(version))
}

/// The slow way, for vendored and replaced sources.
fn asked_of_cargo(version: &str) -> Option<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let target = env::var("TARGET").ok()?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform", &target])
        .output()
        .ok()?;
    let metadata = String::from_utf8(output.stdout).ok()?;
    // A JSON parser for this one string would be the largest part of this script.
    let marks = [format!("/{CRATE}-{version}/Cargo.toml\""), format!("/{CRATE}/Cargo.toml\"")];
    let end = marks.iter().find_map(|m| metadata.find(m).map(|at| at + m.len() - "/Cargo.toml\"".len()))?;
    let start = metadata[..end].rfind('"')? + 1;
    Some(Path::new(&metadata[start..end]).join(VERSION_DIR)).filter(|dir| dir.is_dir())
}

fn collect(dir: &Path, out: &mut String) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, out)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            schemas(&fs::read_to_string(&path)?, out);
        }
    }
    Ok(())
}

/// Appends `=definition<tab>description` and `field<tab>description` lines for the schemas of a file. The literals are
/// laid out one key a line, four spaces a level; the definition's own keys are three levels in.
fn schemas(source: &str, out: &mut String) {
    for schema in source.split("\n        \"io.k8s.").skip(1) {
        let Some((name, rest)) = schema.split_once("\".into()") else { continue };
        let mut lines = vec![String::new()];
        let mut property = None;
        for line in rest.lines().take_while(|l| *l != "}") {
            let depth = line.len() - line.trim_start().len();
            let line = line.trim_start();
            // A field of another definition's type gets its description by a call.
            let called = line.strip_prefix(INSERT).and_then(|l| l.strip_suffix(".into());"));
            let text = line.strip_prefix("\"description\": ").or(called).and_then(literal);
            match (depth, text) {
                (12, Some(text)) => lines[0] = text,
                (16, None) if line.ends_with('{') => {
                    property = line.strip_prefix('"').and_then(|l| Some(l.split_once("\": ")?.0));
                }
                (20, Some(text)) => lines.extend(property.map(|p| format!("{p}\t{text}"))),
                _ => {}
            }
        }
        lines[0] = format!("={name}\t{}", lines[0]);
        for line in lines {
            out.push_str(&line);
            out.push('\n');
        }
    }
}

/// The text of a Rust string literal, with line feeds and tabs left escaped.
fn literal(line: &str) -> Option<String> {
    let inner = line.trim_end_matches(',').strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                'n' => text.push_str("\\n"),
                't' => text.push_str("\\t"),
                '\\' => text.push_str("\\\\"),
                other => text.push(other),
            },
            c => text.push(c),
        }
    }
    Some(text)
}
