//! `kubectl explain`: what the server's OpenAPI document says of a type.

use serde_json::Value;

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out,
};

pub(crate) const COMMAND: Command = Command {
    name: "explain",
    about: "Get documentation for a resource",
    usage: "TYPE [--recursive=FALSE|TRUE] [--api-version=api-version-group]",
    flags: &[&[
        Flag::text("api-version", "Use given api-version (group/version) of the resource."),
        Flag::int("max-depth", "Depth to which fields are printed with --recursive, zero means all.").or("0"),
        Flag::text("output", "Format in which to render the schema. Valid values are: (plaintext).")
            .or("plaintext")
            .short('o'),
        Flag::bool("recursive", "When true, print the name of all the fields recursively."),
    ]],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

/// Columns of a description.
const WIDTH: usize = 76;
/// Values of an enumeration that a list of fields shows.
const ENUM_VALUES: usize = 4;

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let name = match cli.args() {
        [name] => name,
        [] => {
            return Err(Error::text(
                "You must specify the type of resource to explain. Use \"kubectl api-resources\" for a complete list of supported resources.",
            ));
        }
        _ => return Err(Error::text("We accept only this format: explain RESOURCE")),
    };
    if flags.text("output") != "plaintext" {
        return Err(Error::text(format!("unrecognized format: {}", flags.text("output"))));
    }
    let depth = flags.int("max-depth")?;
    if depth > 0 && !flags.is("recursive") {
        return Err(Error::text("--max-depth requires --recursive"));
    }
    let (mut parts, mut fields) = (name.split('.'), Vec::new());
    let mut kind = parts.next().unwrap_or_default().to_owned();
    let rest: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let discovery = cli.discovery().await?;
    // `deployments.apps.spec`: as much of the name as is one.
    let longest = (0..=rest.len()).rev().find(|n| {
        let full = [&[kind.as_str()], &rest[..*n]].concat().join(".");
        *n > 0 && full != kind && discovery.find(&full).is_ok()
    });
    if let Some(n) = longest {
        kind = [&[kind.as_str()], &rest[..n]].concat().join(".");
    }
    fields.extend(rest[longest.unwrap_or(0)..].iter().map(|field| (*field).to_owned()));
    let unknown = |error: Error| match error {
        Error::Text(text) => Error::Plain(text),
        other => other,
    };
    let resource = discovery.find(&kind).map_err(unknown)?;
    let version = flags.some("api-version").map_or_else(|| resource.api_version(), str::to_owned);
    let path = if version.contains('/') { format!("apis/{version}") } else { format!("api/{version}") };
    let rest_client = cli.rest()?;
    let index = rest_client.get("/openapi/v3").await?;
    let Some(address) = index["paths"][&path]["serverRelativeURL"].as_str() else {
        return Err(Error::text(format!(
            "couldn't find resource for {:?}",
            format!("{version}, Resource={}", resource.plural)
        )));
    };
    let document = rest_client.get(address).await?;
    let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
    let is_meant = |schema: &&Value| {
        let mut kinds = schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
        kinds.any(|known| {
            known["kind"] == resource.kind.as_str()
                && known["version"] == version
                && known["group"].as_str().unwrap_or_default() == group
        })
    };
    let schemas = document["components"]["schemas"].as_object();
    let Some(schema) = schemas.into_iter().flat_map(|map| map.values()).find(is_meant) else {
        return Err(Error::text(format!("GVK {} not found in OpenAPI schema", resource.kind)));
    };
    let mut text = String::new();
    if !group.is_empty() {
        text.push_str(&format!("GROUP:      {group}\n"));
    }
    text.push_str(&format!("KIND:       {}\nVERSION:    {version}\n\n", resource.kind));
    let page = Page { document: &document, recursive: flags.is("recursive"), depth };
    let found = page.follow(schema, &fields, &mut text);
    if !found {
        out::text(&text);
        let field = fields.last().map(String::as_str).unwrap_or_default();
        return Err(Error::text(format!("field {field:?} does not exist")));
    }
    out::text(&format!("{text}\n"));
    Ok(())
}

/// What is printed of a document.
struct Page<'a> {
    document: &'a Value,
    recursive: bool,
    depth: i64,
}

impl<'a> Page<'a> {
    /// The schema that a reference leads to, or the schema itself.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
            Some(name) => &self.document["components"]["schemas"][name],
            None => schema,
        }
    }

    /// Goes along the path and prints what is at its end; whether there is something.
    fn follow(&self, schema: &'a Value, fields: &[String], out: &mut String) -> bool {
        let resolved = self.resolve(schema);
        let Some((first, rest)) = fields.split_first() else {
            let mut description = String::new();
            self.description(schema, &mut description);
            let description = if description.is_empty() { "<empty>".to_owned() } else { description };
            out.push_str(&format!("DESCRIPTION:\n{}\n", indent(4, &wrap(WIDTH, &description))));
            let mut list = String::new();
            self.fields(resolved, 1, &mut Vec::new(), &mut list);
            if !list.is_empty() {
                out.push_str(&format!("FIELDS:\n{list}"));
            }
            return true;
        };
        if let Some(property) = resolved["properties"].get(first.as_str()) {
            if rest.is_empty() {
                out.push_str(&format!("FIELD: {first} <{}>\n{}\n\n", self.type_of(property), long_enum(property)));
            }
            return self.follow(property, rest, out);
        }
        if resolved["items"].is_object() {
            return self.follow(&resolved["items"], fields, out);
        }
        if resolved["additionalProperties"].is_object() {
            return self.follow(&resolved["additionalProperties"], fields, out);
        }
        let alternatives = resolved["allOf"].as_array().into_iter().flatten();
        for alternative in alternatives {
            if self.follow(alternative, fields, out) {
                return true;
            }
        }
        false
    }

    fn description(&self, schema: &'a Value, out: &mut String) {
        let schema = self.resolve(schema);
        if let Some(text) = schema["description"].as_str().filter(|text| !text.is_empty()) {
            out.push_str(text);
            out.push('\n');
        }
        schema["allOf"].as_array().into_iter().flatten().for_each(|part| self.description(part, out));
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                self.description(&schema[inner], out);
            }
        }
    }

    /// The fields of a type; with `--recursive`, theirs too. `seen` are the references on the way here.
    fn fields(&self, schema: &'a Value, level: usize, seen: &mut Vec<&'a str>, out: &mut String) {
        let name = schema["$ref"].as_str().unwrap_or_default();
        if !name.is_empty() && seen.contains(&name) {
            return;
        }
        seen.push(name);
        let schema = self.resolve(schema);
        let properties = schema["properties"].as_object();
        let mut names: Vec<&String> = properties.into_iter().flat_map(|map| map.keys()).collect();
        names.sort();
        for name in names {
            let field = &schema["properties"][name];
            let spaces = level * 2;
            let mut required = schema["required"].as_array().into_iter().flatten();
            let mark = if required.any(|known| known == name.as_str()) { " -required-" } else { "" };
            let kind = self.type_of(field);
            out.push_str(&format!("{}{name}\t<{kind}>{mark}{}\n", " ".repeat(spaces), short_enum(field, spaces)));
            if self.recursive {
                if self.depth == 0 || (level as i64) < self.depth {
                    self.fields(field, level + 1, seen, out);
                }
                continue;
            }
            let text = field["description"].as_str().filter(|text| !text.is_empty()).unwrap_or("<no description>");
            out.push_str(&format!("{}\n\n", indent(spaces + 2, &wrap(78 - spaces, text))));
        }
        schema["allOf"].as_array().into_iter().flatten().for_each(|part| self.fields(part, level, seen, out));
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                self.fields(&schema[inner], level, seen, out);
            }
        }
        seen.pop();
    }

    fn type_of(&self, schema: &'a Value) -> String {
        if schema["items"].is_object() {
            return format!("[]{}", self.type_of(&schema["items"]));
        }
        if schema["additionalProperties"].is_object() {
            return format!("map[string]{}", self.type_of(&schema["additionalProperties"]));
        }
        if let Some([only]) = schema["allOf"].as_array().map(Vec::as_slice)
            && schema["properties"].is_null()
        {
            return self.type_of(only);
        }
        if let Some(name) = schema["$ref"].as_str() {
            return match self.resolve(schema)["type"].as_str() {
                None | Some("object") => name.rsplit(['/', '.']).next().unwrap_or("Object").to_owned(),
                Some(kind) => kind.to_owned(),
            };
        }
        match schema["type"].as_str() {
            None | Some("object") => "Object".to_owned(),
            Some(kind) => kind.to_owned(),
        }
    }
}

fn enum_values(schema: &Value) -> Vec<String> {
    let show = |value: &Value| match value.as_str() {
        Some("") => "\"\"".to_owned(),
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    schema["enum"].as_array().into_iter().flatten().map(show).collect()
}

fn long_enum(schema: &Value) -> String {
    let values = enum_values(schema);
    if values.is_empty() {
        return String::new();
    }
    values.iter().fold("ENUM:".to_owned(), |text, value| format!("{text}\n    {value}"))
}

fn short_enum(schema: &Value, spaces: usize) -> String {
    let values = enum_values(schema);
    if values.is_empty() {
        return String::new();
    }
    let more = if values.len() > ENUM_VALUES { ", ...." } else { "" };
    format!("\n{}enum: {}{more}", " ".repeat(spaces), values[..values.len().min(ENUM_VALUES)].join(", "))
}

fn indent(amount: usize, text: &str) -> String {
    let pad = " ".repeat(amount);
    format!("{pad}{}", text.replace('\n', &format!("\n{pad}")))
}

/// Breaks lines between words, which are never broken themselves.
fn wrap(limit: usize, text: &str) -> String {
    let (mut out, mut word, mut spaces) = (String::new(), String::new(), String::new());
    let mut column = 0;
    let length = |text: &str| text.chars().count();
    for c in text.chars() {
        if c == '\n' {
            if !word.is_empty() || column + length(&spaces) <= limit {
                out.push_str(&spaces);
            }
            out.push_str(&word);
            out.push('\n');
            spaces.clear();
            word.clear();
            column = 0;
        } else if c.is_whitespace() && c != '\u{a0}' {
            if spaces.is_empty() || !word.is_empty() {
                column += length(&spaces) + length(&word);
                out.push_str(&spaces);
                out.push_str(&word);
                spaces.clear();
                word.clear();
            }
            spaces.push(c);
        } else {
            word.push(c);
            if column + length(&word) + length(&spaces) > limit && length(&word) < limit {
                out.push('\n');
                column = 0;
                spaces.clear();
            }
        }
    }
    if !word.is_empty() || column + length(&spaces) <= limit {
        out.push_str(&spaces);
    }
    out.push_str(&word);
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_break_between_words() {
        assert_eq!(super::wrap(10, "one two three four"), "one two\nthree four");
        assert_eq!(super::wrap(5, "a verylongword b"), "a\nverylongword\nb");
        assert_eq!(super::wrap(10, "one\ntwo\n"), "one\ntwo\n");
    }
}
