//! Columns of custom kinds: JSONPath as `additionalPrinterColumns` use it.

use serde_json::{Value, json};

use crate::registry::table;

/// One column of a definition.
pub(crate) struct Column {
    name: String,
    ty: String,
    format: String,
    description: String,
    priority: i64,
    path: Vec<Step>,
}

/// One step of a path.
#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// `[?(@.type=="Ready")]`: a path below the entry, and what it must be; nothing: that it is there.
    Where(Vec<Step>, Option<Value>),
}

/// Reads a path such as `.status.conditions[?(@.type=="Ready")].status`; nothing if it is none.
fn parse(text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("[?(") {
            let end = after.find(")]")?;
            let condition = after[..end].trim();
            let (path, wanted) = match condition.split_once("==") {
                Some((path, literal)) => {
                    let literal = literal.trim();
                    let quoted = literal.strip_prefix(['"', '\'']).and_then(|l| l.strip_suffix(['"', '\'']));
                    let wanted = match quoted {
                        Some(text) => Value::from(text),
                        None => serde_json::from_str(literal).ok()?,
                    };
                    (path.trim(), Some(wanted))
                }
                None => (condition, None),
            };
            steps.push(Step::Where(parse(path.strip_prefix('@')?)?, wanted));
            rest = &after[end + 2..];
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = after.find(']')?;
            let inner = after[..end].trim();
            steps.push(match inner.strip_prefix(['"', '\'']).and_then(|i| i.strip_suffix(['"', '\''])) {
                Some(name) => Step::Field(name.replace("\\.", ".")),
                None if inner == "*" => Step::All,
                None => Step::Index(inner.parse().ok()?),
            });
            rest = &after[end + 1..];
        } else {
            let after = rest.strip_prefix('.')?;
            let mut name = String::new();
            let mut used = after.len();
            let mut chars = after.char_indices();
            while let Some((i, c)) = chars.next() {
                match c {
                    '\\' => name.extend(chars.next().map(|(_, c)| c)),
                    '.' | '[' => {
                        used = i;
                        break;
                    }
                    _ => name.push(c),
                }
            }
            steps.push(if name == "*" { Step::All } else { Step::Field(name) });
            rest = &after[used..];
        }
    }
    Some(steps)
}

fn find<'a>(steps: &[Step], value: &'a Value, found: &mut Vec<&'a Value>) {
    let Some((step, rest)) = steps.split_first() else {
        found.push(value);
        return;
    };
    match step {
        Step::Field(name) => {
            if let Some(v) = value.get(name) {
                find(rest, v, found);
            }
        }
        Step::Index(i) => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let at = usize::try_from(*i).ok().or_else(|| list.len().checked_sub(usize::try_from(-i).ok()?));
            if let Some(v) = at.and_then(|at| list.get(at)) {
                find(rest, v, found);
            }
        }
        Step::All => {
            value.as_array().into_iter().flatten().for_each(|v| find(rest, v, found));
            value.as_object().into_iter().flatten().for_each(|(_, v)| find(rest, v, found));
        }
        Step::Where(path, wanted) => {
            for entry in value.as_array().into_iter().flatten() {
                let mut at = Vec::new();
                find(path, entry, &mut at);
                let fits = match wanted {
                    Some(wanted) => at.contains(&wanted),
                    None => !at.is_empty(),
                };
                if fits {
                    find(rest, entry, found);
                }
            }
        }
    }
}

/// Whether a text is a path that can be read.
pub(crate) fn is_path(text: &str) -> bool {
    text.starts_with('.') && parse(text).is_some()
}

/// The value at a simple path such as `.spec.replicas`.
pub(crate) fn at<'a>(path: &str, value: &'a Value) -> Option<&'a Value> {
    let mut found = Vec::new();
    find(&parse(path)?, value, &mut found);
    found.first().copied()
}

impl Column {
    fn read(definition: &Value) -> Option<Column> {
        let text = |field: &str| definition[field].as_str().unwrap_or_default().to_owned();
        let path = text("jsonPath");
        let mut description = text("description");
        if description.is_empty() {
            description = format!("Custom resource definition column (in JSONPath format): {path}");
        }
        Some(Column {
            name: text("name"),
            ty: text("type"),
            format: text("format"),
            description,
            priority: definition["priority"].as_i64().unwrap_or(0),
            path: parse(&path)?,
        })
    }

    fn cell(&self, object: &Value) -> Value {
        let mut found = Vec::new();
        find(&self.path, object, &mut found);
        let Some(first) = found.first() else { return Value::Null };
        match (self.ty.as_str(), first) {
            ("integer", Value::Number(n)) => n.as_i64().map(Value::from).unwrap_or(Value::Null),
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
            ("date", Value::String(_)) => table::age(first),
            ("string", _) => found
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join(" ")
                .into(),
            _ => Value::Null,
        }
    }
}

/// The columns of a version: its own, or the age.
pub(super) fn of_version(version: &Value) -> Vec<Column> {
    let own = version["additionalPrinterColumns"].as_array().filter(|c| !c.is_empty());
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description": CREATED});
    let list = own.cloned().unwrap_or_else(|| vec![age]);
    list.iter().filter_map(Column::read).collect()
}

const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// `columnDefinitions` of a table.
pub(crate) fn definitions(columns: &[Column]) -> Vec<Value> {
    let name = json!({"name": "Name", "type": "string", "format": "name", "description": "Name must be unique within a namespace.", "priority": 0});
    let own = columns.iter().map(|c| {
        json!({"name": c.name, "type": c.ty, "format": c.format, "description": c.description, "priority": c.priority})
    });
    std::iter::once(name).chain(own).collect()
}

/// The cells of an object.
pub(crate) fn cells(columns: &[Column], object: &Value) -> Vec<Value> {
    std::iter::once(object["metadata"]["name"].clone()).chain(columns.iter().map(|c| c.cell(object))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found() {
        let object = json!({"metadata": {"name": "x", "labels": {"a.b/c": "l"}}, "spec": {"n": 3, "list": ["p", "q"]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        let column = |ty: &str, path: &str| {
            Column::read(&json!({"name": "C", "type": ty, "jsonPath": path})).unwrap().cell(&object)
        };
        assert_eq!(column("integer", ".spec.n"), 3);
        assert_eq!(column("string", r#".status.conditions[?(@.type=="Ready")].status"#), "True");
        assert_eq!(column("string", ".metadata.labels.a\\.b/c"), "l");
        assert_eq!(column("string", ".spec.list[*]"), "p q");
        assert_eq!(column("string", ".spec.list[0]"), "p");
        assert_eq!(column("string", ".spec.none"), Value::Null);
        assert_eq!(cells(&of_version(&json!({})), &object).len(), 2);
        assert!(is_path(".spec.n") && !is_path("spec") && !is_path(".a[x]"));
    }
}
