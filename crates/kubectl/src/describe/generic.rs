//! Kinds without a text of their own: all their fields.

use serde_json::Value;

use super::{
    array, keys, show, str,
    text::{Text, line},
};

/// Shown above, or of no use to people.
const SKIPPED: [&str; 5] = ["managedFields", "name", "namespace", "labels", "annotations"];

pub(super) fn object(w: &mut Text, object: &Value) {
    let metadata = &object["metadata"];
    line!(w, 0, "Name:\t{}", str(&metadata["name"]));
    line!(w, 0, "Namespace:\t{}", str(&metadata["namespace"]));
    w.labels("Labels", &metadata["labels"]);
    w.annotations("Annotations", &metadata["annotations"]);
    fields(w, 0, object, "");
}

fn fields(w: &mut Text, level: usize, content: &Value, path: &str) {
    for key in keys(content) {
        if path == ".metadata" && SKIPPED.contains(&key.as_str()) {
            continue;
        }
        let inner = format!("{path}.{key}");
        match &content[key] {
            value @ Value::Object(_) => {
                line!(w, level, "{}:", label(key));
                fields(w, level + 1, value, &inner);
            }
            value @ Value::Array(_) => {
                line!(w, level, "{}:", label(key));
                for child in array(value) {
                    match child {
                        Value::Object(_) => fields(w, level + 1, child, &inner),
                        other => line!(w, level + 1, "{}", show(other)),
                    }
                }
            }
            Value::Null => line!(w, level, "{}:\t<nil>", label(key)),
            value => line!(w, level, "{}:\t{}", label(key), show(value)),
        }
    }
}

/// `creationTimestamp` becomes `Creation Timestamp`, `apiVersion` becomes `API Version`.
fn label(field: &str) -> String {
    if field.chars().any(|c| !c.is_alphabetic() && c != '-') {
        return field.to_owned();
    }
    let words = words(field).into_iter().map(|word| {
        if ["API", "URL", "UID", "GUID"].contains(&word.to_uppercase().as_str()) {
            return word.to_uppercase();
        }
        if word.to_lowercase() != word {
            return word;
        }
        let mut chars = word.chars();
        chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The parts of a name in camel case; capitals that follow each other are one part but for the last.
fn words(field: &str) -> Vec<String> {
    let chars: Vec<char> = field.chars().collect();
    let mut words: Vec<String> = Vec::new();
    for (i, c) in chars.iter().enumerate() {
        let starts = i == 0
            || c.is_uppercase()
                && (!chars[i - 1].is_uppercase() || chars.get(i + 1).is_some_and(|next| next.is_lowercase()))
            || (*c == '-') != (chars[i - 1] == '-');
        match words.last_mut().filter(|_| !starts) {
            Some(word) => word.push(*c),
            None => words.push(c.to_string()),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_fields_become_words() {
        for (field, want) in [
            ("apiVersion", "API Version"),
            ("creationTimestamp", "Creation Timestamp"),
            ("kind", "Kind"),
            ("uid", "UID"),
            ("my.key", "my.key"),
            ("resourceVersion", "Resource Version"),
        ] {
            assert_eq!(super::label(field), want);
        }
    }
}
