//! kubectl's JSONPath: texts, `{paths}`, `range`, filters, unions, slices, `..`.

use serde_json::Value;

use super::json;
use crate::error::{Error, Result};

/// A parsed template.
#[derive(Clone, Debug)]
pub(crate) struct Template(Vec<Node>);

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `$`: the whole object.
    Root,
    /// `@`: the current one.
    Current,
    Field(String),
    Wildcard,
    Recursive,
    /// Start, end, step.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    Filter(Vec<Step>, String, Vec<Step>),
    Union(Vec<Vec<Step>>),
    Literal(Value),
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Template> {
        let mut rest = text;
        let nodes = nodes(&mut rest, false)?;
        Ok(Template(nodes))
    }

    /// What it prints of an object. `missing_is_error`: a field that is not there ends it.
    pub(crate) fn execute(&self, object: &Value, missing_is_error: bool) -> Result<String> {
        let mut out = String::new();
        run(&self.0, object, object, missing_is_error, &mut out)?;
        Ok(out)
    }

    /// The values that its first path finds.
    pub(crate) fn find<'a>(&'a self, object: &'a Value) -> Vec<Value> {
        let path = self.0.iter().find_map(|node| match node {
            Node::Path(steps) => Some(steps),
            _ => None,
        });
        path.map_or_else(Vec::new, |steps| walk(steps, object, object, false).unwrap_or_default())
    }
}

/// `metadata.name`, `.metadata.name` and `{.metadata.name}` are the same to `--sort-by` and custom columns.
pub(crate) fn relaxed(text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let inner = match text.strip_prefix('{') {
        Some(inner) => inner.strip_suffix('}').ok_or_else(|| unexpected(text))?,
        None if text.ends_with('}') => return Err(unexpected(text)),
        None => text,
    };
    let inner = inner.strip_prefix('.').unwrap_or(inner);
    if inner.is_empty() || inner.contains(['{', '}']) {
        return Err(unexpected(text));
    }
    Ok(format!("{{.{inner}}}"))
}

fn unexpected(text: &str) -> Error {
    Error::text(format!(
        "unexpected path string, expected a 'name1.name2' or '.name1.name2' or '{{name1.name2}}' or '{{.name1.name2}}' (got {text:?})"
    ))
}

fn nodes(rest: &mut &str, inside: bool) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    while !rest.is_empty() {
        let Some(open) = rest.find('{') else {
            nodes.push(Node::Text((*rest).to_owned()));
            *rest = "";
            break;
        };
        if open > 0 {
            nodes.push(Node::Text(rest[..open].to_owned()));
        }
        let close = closing_brace(&rest[open + 1..]).ok_or_else(|| Error::text("unclosed action"))?;
        let action = rest[open + 1..open + 1 + close].trim();
        *rest = &rest[open + close + 2..];
        if action == "end" {
            if !inside {
                return Err(Error::text("not in range, nothing to end"));
            }
            return Ok(nodes);
        }
        match action.strip_prefix("range") {
            Some(path) if path.starts_with([' ', '.', '\t']) => {
                let path = steps(path.trim())?;
                nodes.push(Node::Range(path, self::nodes(rest, true)?));
            }
            _ => {
                for part in split_outside(action, ' ') {
                    nodes.push(match quoted(part) {
                        Some(text) => Node::Text(text),
                        None => Node::Path(steps(part)?),
                    });
                }
            }
        }
    }
    if inside { Err(Error::text("unclosed action")) } else { Ok(nodes) }
}

/// The text of a literal in quotes.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(match (c, quote) {
            ('\\', _) => match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            },
            (c, _) => c,
        });
    }
    Some(out)
}

/// The characters that are in no quotes and not escaped, with where they are.
fn unquoted(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut quote, mut escaped) = (None, false);
    text.char_indices().filter(move |(_, c)| {
        match (quote, *c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, c @ ('"' | '\'')) => quote = Some(c),
            (None, _) => return true,
        }
        false
    })
}

fn closing_brace(text: &str) -> Option<usize> {
    unquoted(text).find(|(_, c)| *c == '}').map(|(i, _)| i)
}

/// Splits where the separator is in no quotes, brackets or parentheses.
fn split_outside(text: &str, separator: char) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, c) in unquoted(text) {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            c if c == separator && depth == 0 => {
                parts.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn steps(text: &str) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '$' => steps.push(Step::Root),
            '@' => steps.push(Step::Current),
            '*' => steps.push(Step::Wildcard),
            '.' => {
                if let Some(after) = rest.strip_prefix('.') {
                    steps.push(Step::Recursive);
                    rest = after;
                }
                if rest.is_empty() || rest.starts_with('[') {
                    continue;
                }
                if let Some(after) = rest.strip_prefix('*') {
                    steps.push(Step::Wildcard);
                    rest = after;
                    continue;
                }
                steps.push(Step::Field(field(&mut rest)));
            }
            '[' => {
                let end = closing_bracket(rest).ok_or_else(|| Error::text("unterminated array"))?;
                steps.push(bracket(rest[..end].trim())?);
                rest = &rest[end + 1..];
            }
            _ => {
                return Err(Error::text(format!("unrecognized character in action: U+{:04X} {c:?}", u32::from(c))));
            }
        }
    }
    Ok(steps)
}

/// A field's name, in which `\.` is a dot.
fn field(rest: &mut &str) -> String {
    let mut name = String::new();
    while let Some(c) = rest.chars().next() {
        if c == '\\' {
            *rest = &rest[1..];
            if let Some(next) = rest.chars().next() {
                name.push(next);
                *rest = &rest[next.len_utf8()..];
            }
            continue;
        }
        if matches!(c, '.' | '[' | ']' | ')' | '(' | ' ' | '$' | '@' | '{' | '}' | ',' | '"' | '\'') {
            break;
        }
        name.push(c);
        *rest = &rest[c.len_utf8()..];
    }
    name
}

fn closing_bracket(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step> {
    let invalid = || Error::text(format!("invalid array index {text}"));
    if text == "*" {
        return Ok(Step::Wildcard);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|text| text.strip_suffix(')')) {
        let operator =
            ["==", "!=", ">=", "<=", ">", "<"].into_iter().find_map(|op| find_outside(filter, op).map(|at| (op, at)));
        return Ok(match operator {
            Some((op, at)) => Step::Filter(operand(&filter[..at])?, op.to_owned(), operand(&filter[at + op.len()..])?),
            None => Step::Filter(operand(filter)?, "exists".to_owned(), Vec::new()),
        });
    }
    let parts = split_outside(text, ',');
    if parts.len() > 1 {
        let parts: Result<_> = parts.into_iter().map(|part| Ok(vec![bracket(part)?])).collect();
        return Ok(Step::Union(parts?));
    }
    if let Some(name) = quoted(text) {
        return Ok(Step::Field(name));
    }
    if text.contains(':') {
        let numbers: Vec<&str> = text.split(':').map(str::trim).collect();
        let number = |i: usize| match numbers.get(i) {
            None | Some(&"") => Ok(None),
            Some(text) => text.parse::<i64>().map(Some).map_err(|_| invalid()),
        };
        return Ok(Step::Slice(number(0)?, number(1)?, number(2)?.unwrap_or(1)));
    }
    text.parse().map(Step::Index).map_err(|_| invalid())
}

fn find_outside(text: &str, wanted: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, _) if text[i..].starts_with(wanted) => return Some(i),
            _ => {}
        }
    }
    None
}

/// One side of a filter.
fn operand(text: &str) -> Result<Vec<Step>> {
    let text = text.trim();
    if let Some(text) = quoted(text) {
        return Ok(vec![Step::Literal(text.into())]);
    }
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        return Ok(vec![Step::Literal(value)]);
    }
    steps(text)
}

fn run(nodes: &[Node], root: &Value, current: &Value, strict: bool, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(steps) => {
                let found = walk(steps, root, current, strict)?;
                let texts: Vec<String> = found.iter().map(print).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(steps, body) => {
                for item in walk(steps, root, current, strict)? {
                    run(body, root, &item, strict, out)?;
                }
            }
        }
    }
    Ok(())
}

/// A value as templates show it.
pub(crate) fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Object(_) | Value::Array(_) => json::compact(value),
        other => other.to_string(),
    }
}

fn walk(steps: &[Step], root: &Value, current: &Value, strict: bool) -> Result<Vec<Value>> {
    let mut values = vec![current.clone()];
    // Not everything below has a field that is looked for everywhere.
    let mut strict = strict;
    for step in steps {
        strict &= *step != Step::Recursive;
        let mut next = Vec::new();
        for value in &values {
            step_into(step, root, value, strict, &mut next)?;
        }
        values = next;
    }
    Ok(values)
}

fn step_into(step: &Step, root: &Value, value: &Value, strict: bool, out: &mut Vec<Value>) -> Result<()> {
    match step {
        Step::Root => out.push(root.clone()),
        Step::Current => out.push(value.clone()),
        Step::Literal(literal) => out.push(literal.clone()),
        Step::Field(name) => match value.get(name.as_str()) {
            Some(found) => out.push(found.clone()),
            None if strict => return Err(Error::text(format!("{name} is not found"))),
            None => {}
        },
        Step::Wildcard => match value {
            Value::Array(items) => out.extend(items.iter().cloned()),
            Value::Object(map) => {
                let mut keys: Vec<_> = map.keys().collect();
                keys.sort();
                out.extend(keys.into_iter().map(|key| map[key].clone()));
            }
            _ => {}
        },
        Step::Recursive => descend(value, out),
        Step::Index(index) => {
            let Some(items) = value.as_array() else {
                return if strict { Err(Error::text(format!("{value} is not array or slice"))) } else { Ok(()) };
            };
            let at = if *index < 0 { index + items.len() as i64 } else { *index };
            match usize::try_from(at).ok().and_then(|at| items.get(at)) {
                Some(item) => out.push(item.clone()),
                None => {
                    let text = format!("array index out of bounds: index {index}, length {}", items.len());
                    return if strict { Err(Error::text(text)) } else { Ok(()) };
                }
            }
        }
        Step::Slice(start, end, by) => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let length = items.len() as i64;
            let place = |n: i64| if n < 0 { n + length } else { n }.clamp(0, length);
            let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)));
            let mut at = start;
            while at < end && *by > 0 {
                out.extend(usize::try_from(at).ok().and_then(|at| items.get(at)).cloned());
                at += by;
            }
        }
        Step::Filter(left, operator, right) => {
            let items: Vec<&Value> = match value {
                Value::Array(items) => items.iter().collect(),
                other => vec![other],
            };
            for item in items {
                let left = walk(left, root, item, false)?;
                let right = walk(right, root, item, false)?;
                if compare(left.first(), operator, right.first()) {
                    out.push(item.clone());
                }
            }
        }
        Step::Union(parts) => {
            for part in parts {
                let mut found = vec![value.clone()];
                for step in part {
                    let mut next = Vec::new();
                    for value in &found {
                        step_into(step, root, value, strict, &mut next)?;
                    }
                    found = next;
                }
                out.extend(found);
            }
        }
    }
    Ok(())
}

fn descend(value: &Value, out: &mut Vec<Value>) {
    match value {
        Value::Object(map) => {
            out.push(value.clone());
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            keys.into_iter().for_each(|key| descend(&map[key], out));
        }
        Value::Array(items) => {
            out.push(value.clone());
            items.iter().for_each(|item| descend(item, out));
        }
        _ => {}
    }
}

fn compare(left: Option<&Value>, operator: &str, right: Option<&Value>) -> bool {
    let Some(left) = left else { return false };
    if operator == "exists" {
        return true;
    }
    let Some(right) = right else { return false };
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
    };
    match operator {
        "==" => order.is_some_and(|order| order.is_eq()),
        "!=" => order.is_none_or(|order| order.is_ne()),
        ">=" => order.is_some_and(|order| order.is_ge()),
        "<=" => order.is_some_and(|order| order.is_le()),
        ">" => order.is_some_and(|order| order.is_gt()),
        _ => order.is_some_and(|order| order.is_lt()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(template: &str, want: &str) {
        let object = json!({
            "metadata": {"name": "web", "labels": {"a.b/c": "x", "app": "web"}},
            "items": [{"n": 1, "name": "a"}, {"n": 2, "name": "b"}, {"n": 3, "name": "c", "ready": true}],
        });
        let got = Template::parse(template).and_then(|template| template.execute(&object, true));
        assert_eq!(got.unwrap_or_else(|error| error.message()), want, "{template}");
    }

    #[test]
    fn templates() {
        check("{.metadata.name}", "web");
        check("name={.metadata.name}{'\\n'}", "name=web\n");
        check(r"{.metadata.labels.a\.b/c}", "x");
        check("{.metadata.labels['a.b/c']}", "x");
        check("{.items[*].name}", "a b c");
        check("{.items[-1].name} {.items[0:2].n}", "c 1 2");
        check("{range .items[*]}{.name}={.n}{\"\\n\"}{end}", "a=1\nb=2\nc=3\n");
        check("{.items[?(@.name==\"b\")].n}", "2");
        check("{.items[?(@.n>1)].name}", "b c");
        check("{.items[?(@.ready)].name}", "c");
        check("{..name}", "a b c web");
        check("{.items[0]['name','n']}", "a 1");
        check("{.metadata.labels}", r#"{"a.b/c":"x","app":"web"}"#);
        check("{.nothing}", "error: nothing is not found");
        check("{.items[0].n} {$.metadata.name}", "1 web");
    }

    #[test]
    fn sort_keys_in_any_form() {
        for text in ["metadata.name", ".metadata.name", "{.metadata.name}", "{metadata.name}"] {
            assert_eq!(relaxed(text).unwrap(), "{.metadata.name}");
        }
        assert!(relaxed("{.a").is_err());
    }
}
