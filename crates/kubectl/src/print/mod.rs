//! Output formats, apart from the commands that print.

pub(crate) mod columns;
pub(crate) mod json;
pub(crate) mod jsonpath;
pub(crate) mod table;
pub(crate) mod tabs;
pub(crate) mod yaml;

use std::cell::Cell;

use serde_json::Value;

use crate::{
    error::{Error, Result},
    flags::{Flag, Parsed},
    out,
};

/// The flags of commands that can print what they made.
pub(crate) const FLAGS: &[Flag] = &[
    Flag::text("output", "Output format: json, yaml, name, jsonpath=…, jsonpath-file=…, go-template is not supported.")
        .short('o'),
    Flag::bool("show-managed-fields", "If true, keep the managedFields when printing objects in JSON or YAML format."),
    Flag::bool(
        "allow-missing-template-keys",
        "If true, ignore any errors in templates when a field or map key is missing in the template.",
    )
    .or("true"),
];
const FORMATS: &str =
    "go-template,go-template-file,json,jsonpath,jsonpath-as-json,jsonpath-file,kyaml,name,template,templatefile,yaml";
const FORMATS_OF_GET: &str = "custom-columns,custom-columns-file,go-template,go-template-file,json,jsonpath,jsonpath-as-json,jsonpath-file,kyaml,name,template,templatefile,wide,yaml";

/// How objects are printed.
#[derive(Clone, Debug)]
pub(crate) enum Format {
    /// Tables, or a line about what was done.
    Human,
    /// Tables with all columns.
    Wide,
    Yaml,
    Json,
    Name,
    JsonPath(jsonpath::Template),
    /// What the path finds, as a JSON list.
    JsonPathAsJson(jsonpath::Template),
    Columns(columns::Columns),
}

/// Prints objects in the format of `-o`.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    managed_fields: bool,
    missing_is_error: bool,
    no_headers: bool,
    printed: Cell<bool>,
}

impl Printer {
    /// Of the flags of a command; `tables`: it is one that knows tables and columns.
    pub(crate) fn of(flags: &Parsed, tables: bool) -> Result<Printer> {
        let text = flags.text("output");
        let (name, argument) = text.split_once('=').unwrap_or((text, ""));
        let file = || {
            std::fs::read_to_string(argument).map_err(|error| {
                Error::text(format!(
                    "error reading template {argument}, {}",
                    crate::files::go_io(argument.as_ref(), "open", &error)
                ))
            })
        };
        let path = |text: &str| {
            let failed = |error| Error::text(format!("error parsing jsonpath {text}, {error}"));
            jsonpath::Template::parse(text).map_err(failed)
        };
        let format = match name {
            "" => Format::Human,
            "wide" if tables => Format::Wide,
            "yaml" => Format::Yaml,
            "json" => Format::Json,
            "name" => Format::Name,
            "jsonpath" | "jsonpath-as-json" | "jsonpath-file" if argument.is_empty() => {
                return Err(Error::text("template format specified but no template given"));
            }
            "jsonpath" => Format::JsonPath(path(argument)?),
            "jsonpath-as-json" => Format::JsonPathAsJson(path(argument)?),
            "jsonpath-file" => Format::JsonPath(path(&file()?)?),
            "custom-columns" if tables => Format::Columns(columns::Columns::parse(argument)?),
            "custom-columns-file" if tables => Format::Columns(columns::Columns::from_file(&file()?)?),
            "go-template" | "go-template-file" | "template" | "templatefile" | "kyaml" => {
                return Err(Error::text(format!("the output format {name:?} is not supported by skiff's kubectl")));
            }
            _ => {
                let formats = if tables { FORMATS_OF_GET } else { FORMATS };
                return Err(Error::text(format!(
                    "unable to match a printer suitable for the output format {text:?}, allowed formats are: {formats}"
                )));
            }
        };
        Ok(Printer {
            format,
            managed_fields: flags.is("show-managed-fields"),
            missing_is_error: !flags.is("allow-missing-template-keys"),
            no_headers: flags.is("no-headers"),
            printed: Cell::new(false),
        })
    }

    /// Whether it prints tables, or lines about what was done.
    pub(crate) fn is_human(&self) -> bool {
        matches!(self.format, Format::Human | Format::Wide)
    }

    /// Prints an object, or a list; not for humans.
    pub(crate) fn print(&self, object: &Value) -> Result<()> {
        let mut object = object.clone();
        if !self.managed_fields {
            drop_managed_fields(&mut object);
        }
        match &self.format {
            Format::Yaml => {
                // Each further object is a document of its own.
                let separator = if self.printed.replace(true) { "---\n" } else { "" };
                out::text(&format!("{separator}{}", yaml::to_string(&object)));
            }
            Format::Json => out::text(&json::to_string(&object)),
            Format::Name => items(&object).iter().for_each(|object| out::text(&format!("{}\n", name(object)))),
            Format::JsonPath(template) => {
                let text = template
                    .execute(&object, self.missing_is_error)
                    .map_err(|error| Error::text(format!("error executing jsonpath: {error}")))?;
                out::text(&text);
            }
            Format::JsonPathAsJson(template) => out::text(&json::to_string(&Value::Array(template.find(&object)))),
            Format::Columns(columns) => {
                let headers = !self.no_headers && !self.printed.replace(true);
                out::text(&columns.print(&items(&object), headers, &mut tabs::Tabs::of_tables()));
            }
            Format::Human | Format::Wide => {}
        }
        Ok(())
    }

    /// Prints what a command has made: `deployment.apps/web created`, or the object as the user wants it.
    pub(crate) fn done(&self, object: &Value, operation: &str) -> Result<()> {
        match self.format {
            Format::Human | Format::Wide => out::text(&format!("{} {operation}\n", name(object))),
            _ => self.print(object)?,
        }
        Ok(())
    }
}

/// The objects of a list, or the only one.
fn items(object: &Value) -> Vec<Value> {
    match object["items"].as_array() {
        Some(items) if object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => items.clone(),
        _ => vec![object.clone()],
    }
}

/// `pod/web`, `deployment.apps/web`.
pub(crate) fn name(object: &Value) -> String {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match api_version.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

fn drop_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().filter(|item| item.is_object()).for_each(drop_managed_fields);
    }
}
