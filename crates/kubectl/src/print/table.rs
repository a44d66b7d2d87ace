//! Tables as the server answers them, with the columns that the user adds.

use serde_json::Value;

use super::tabs::Tabs;

/// What the user wants of tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) wide: bool,
    pub(crate) no_headers: bool,
    pub(crate) namespaces: bool,
    /// `deployment.apps`, if names are to say it.
    pub(crate) kind: Option<String>,
    pub(crate) show_labels: bool,
    pub(crate) label_columns: Vec<String>,
}

/// Prints tables one after the other; the header comes again when the columns change.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    options: Options,
    columns: Value,
    headers_printed: bool,
    tabs: Tabs,
}

impl Printer {
    pub(crate) fn new(options: Options) -> Printer {
        Printer { options, columns: Value::Null, headers_printed: false, tabs: Tabs::of_tables() }
    }

    /// The lines of a table; empty if it has no rows. `event` is what a watch says has happened.
    pub(crate) fn print(&mut self, table: &Value, event: Option<&str>) -> String {
        let lines = self.lines(table, event);
        self.tabs.align(&lines)
    }

    /// Cells with tabs between them, to be aligned together with what comes before and after.
    pub(crate) fn lines(&mut self, table: &Value, event: Option<&str>) -> String {
        let rows: Vec<&Value> = table["rows"].as_array().into_iter().flatten().collect();
        let definitions = &table["columnDefinitions"];
        if definitions.as_array().is_some_and(|columns| !columns.is_empty()) && *definitions != self.columns {
            self.columns = definitions.clone();
            self.headers_printed = false;
        }
        if rows.is_empty() {
            return String::new();
        }
        let columns: Vec<Value> = self.columns.as_array().cloned().unwrap_or_default();
        let mut text = String::new();
        if !self.options.no_headers && !self.headers_printed {
            text.push_str(&self.header(&columns, event.is_some()).join("\t"));
            text.push('\n');
        }
        self.headers_printed = true;
        for row in rows {
            text.push_str(&self.row(&columns, row, event).join("\t"));
            text.push('\n');
        }
        text
    }

    fn shown(&self, column: &Value) -> bool {
        self.options.wide || column["priority"].as_i64().unwrap_or(0) == 0
    }

    fn header(&self, columns: &[Value], event: bool) -> Vec<String> {
        let mut names = Vec::new();
        if event {
            names.push("EVENT".to_owned());
        }
        if self.options.namespaces {
            names.push("NAMESPACE".to_owned());
        }
        let own = columns.iter().filter(|column| self.shown(column));
        names.extend(own.map(|column| column["name"].as_str().unwrap_or_default().to_uppercase()));
        for label in &self.options.label_columns {
            names.push(label.rsplit('/').next().unwrap_or_default().to_uppercase());
        }
        if self.options.show_labels {
            names.push("LABELS".to_owned());
        }
        names
    }

    fn row(&self, columns: &[Value], row: &Value, event: Option<&str>) -> Vec<String> {
        let mut cells = Vec::new();
        let metadata = &row["object"]["metadata"];
        if let Some(event) = event {
            cells.push(event.to_owned());
        }
        if self.options.namespaces {
            cells.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
        }
        let name_column = columns.iter().position(|column| column["format"] == "name" && column["type"] == "string");
        for (i, (cell, column)) in row["cells"].as_array().into_iter().flatten().zip(columns).enumerate() {
            if !self.shown(column) {
                continue;
            }
            let text = show(cell);
            cells.push(match &self.options.kind {
                Some(kind) if name_column == Some(i) => format!("{kind}/{text}"),
                _ => text,
            });
        }
        let labels = metadata["labels"].as_object();
        let label = |name: &str| labels.and_then(|labels| labels.get(name)?.as_str());
        for name in &self.options.label_columns {
            cells.push(label(name).unwrap_or_default().to_owned());
        }
        if self.options.show_labels {
            cells.push(labels_text(metadata));
        }
        cells
    }
}

/// `a=b,c=d`, sorted, or `<none>`.
pub(crate) fn labels_text(metadata: &Value) -> String {
    let labels = metadata["labels"].as_object();
    let mut pairs: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A cell; what has several lines is cut behind the first.
fn show(cell: &Value) -> String {
    let text = match cell {
        Value::Null => return String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.find(['\u{c}', '\n', '\r']) {
        Some(end) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The table of objects for which the server has none.
pub(crate) fn of_objects(objects: &[Value]) -> Value {
    let columns = serde_json::json!([
        {"name": "Name", "type": "string", "format": "name"}, {"name": "Age", "type": "string"},
    ]);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let created = object["metadata"]["creationTimestamp"].as_str();
            let age = created.map_or("<unknown>".to_owned(), crate::time::age);
            serde_json::json!({"cells": [object["metadata"]["name"], age], "object": object})
        })
        .collect();
    serde_json::json!({"kind": "Table", "columnDefinitions": columns, "rows": rows})
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_of_the_user() {
        let table = json!({
            "columnDefinitions": [
                {"name": "Name", "type": "string", "format": "name"},
                {"name": "Age", "type": "string"},
                {"name": "Node", "type": "string", "priority": 1},
            ],
            "rows": [{"cells": ["web", "5s", "n1"], "object": {"metadata": {"namespace": "a", "labels": {"x/app": "1"}}}}],
        });
        let mut options = Options::default();
        assert_eq!(Printer::new(options.clone()).print(&table, None), "NAME   AGE\nweb    5s\n");
        options.wide = true;
        options.namespaces = true;
        options.kind = Some("pod".into());
        options.show_labels = true;
        options.label_columns = vec!["x/app".into()];
        let want =
            "NAMESPACE   NAME      AGE   NODE   APP   LABELS\na           pod/web   5s    n1     1     x/app=1\n";
        assert_eq!(Printer::new(options).print(&table, None), want);
    }
}
