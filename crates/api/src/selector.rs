//! Label and field selectors.

use std::fmt;

use serde_json::Value;

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub op: Op,
}

/// What a requirement asks of the label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// A label selector: all requirements must hold. Without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

/// The selector's text or structure is wrong; the message is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl LabelSelector {
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether a set of labels, asked by key, is selected.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| {
            let value = label(&r.key);
            match &r.op {
                Op::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
                // A label that is not there is in no set of values.
                Op::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
                Op::Exists => value.is_some(),
                Op::DoesNotExist => value.is_none(),
                Op::GreaterThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n),
                Op::LessThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
            }
        })
    }

    /// Whether the labels of `metadata.labels` (a JSON object or nothing) are selected.
    pub fn matches_value(&self, labels: Option<&Value>) -> bool {
        let map = labels.and_then(Value::as_object);
        self.matches(|key| map.and_then(|m| m.get(key)).and_then(Value::as_str))
    }

    /// A selector of equalities, such as a Service's.
    pub fn from_map<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let requirements =
            pairs.into_iter().map(|(k, v)| Requirement { key: k.clone(), op: Op::In(vec![v.clone()]) }).collect();
        LabelSelector { requirements }
    }

    /// The structured form `{matchLabels, matchExpressions}`. Nothing at all (`None`) selects nothing,
    /// which the caller must treat before; an empty object selects everything.
    pub fn from_value(value: &Value) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        if let Some(labels) = value.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                let value = value.as_str().unwrap_or_default().to_owned();
                requirements.push(Requirement { key: key.clone(), op: Op::In(vec![value]) });
            }
        }
        for e in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = e.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
            let values: Vec<String> = e
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            let operator = e.get("operator").and_then(Value::as_str).unwrap_or_default();
            requirements.push(Requirement { key, op: expression_op(operator, values)? });
        }
        Ok(LabelSelector { requirements })
    }

    /// The text form of `labelSelector=` and `kubectl -l`: `a=b,c!=d,e in (f,g),h,!i,j>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut p = Parser { rest: text };
        let mut requirements = Vec::new();
        p.space();
        while !p.rest.is_empty() {
            requirements.push(p.requirement()?);
            p.space();
            if p.rest.is_empty() {
                break;
            }
            if !p.eat(",") {
                return Err(p.error("found '", "', expected: ',' or 'end of string'"));
            }
            p.space();
            if p.rest.is_empty() {
                return Err(SelectorError(
                    "unable to parse requirement: found '', expected: identifier after ','".into(),
                ));
            }
        }
        Ok(LabelSelector { requirements })
    }
}

/// Operators of the structured form and of node selector terms.
fn expression_op(operator: &str, values: Vec<String>) -> Result<Op, SelectorError> {
    let one_int = |values: &[String]| match values {
        [v] => v
            .parse::<i64>()
            .map_err(|_| SelectorError(format!("for 'Gt', 'Lt' operators, the value must be an integer: \"{v}\""))),
        _ => Err(SelectorError("for 'Gt', 'Lt' operators, exactly one value is required".into())),
    };
    Ok(match operator {
        "In" | "NotIn" if values.is_empty() => {
            return Err(SelectorError("for 'in', 'notin' operators, values set can't be empty".into()));
        }
        "In" => Op::In(values),
        "NotIn" => Op::NotIn(values),
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            return Err(SelectorError("values set must be empty for exists and does not exist".into()));
        }
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" => Op::GreaterThan(one_int(&values)?),
        "Lt" => Op::LessThan(one_int(&values)?),
        other => return Err(SelectorError(format!("\"{other}\" is not a valid label selector operator"))),
    })
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn error(&self, before: &str, after: &str) -> SelectorError {
        let token: String = self.rest.chars().take_while(|c| !c.is_whitespace() && *c != ',').collect();
        SelectorError(format!("unable to parse requirement: {before}{token}{after}"))
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| c.is_whitespace() || "=!,()<>".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let key = self.word();
        if key.is_empty() {
            return Err(self.error("found '", "', expected: !, identifier, or 'end of string'"));
        }
        if let Some(message) = crate::names::qualified_name(key).into_iter().next() {
            return Err(SelectorError(format!(
                "unable to parse requirement: <nil>: Invalid value: {key:?}: {message}"
            )));
        }
        Ok(key.to_owned())
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        self.space();
        let value = self.word();
        if let Some(message) = crate::names::label_value(value).into_iter().next() {
            return Err(SelectorError(format!(
                "unable to parse requirement: values[0]: Invalid value: {value:?}: {message}"
            )));
        }
        Ok(value.to_owned())
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.eat("!") {
            self.space();
            return Ok(Requirement { key: self.key()?, op: Op::DoesNotExist });
        }
        let key = self.key()?;
        self.space();
        let op = if self.eat("==") || self.eat("=") {
            Op::In(vec![self.value()?])
        } else if self.eat("!=") {
            Op::NotIn(vec![self.value()?])
        } else if self.eat(">") {
            Op::GreaterThan(self.int()?)
        } else if self.eat("<") {
            Op::LessThan(self.int()?)
        } else if self.rest.is_empty() || self.rest.starts_with(',') {
            Op::Exists
        } else {
            match self.word() {
                "in" => Op::In(self.values()?),
                "notin" => Op::NotIn(self.values()?),
                word => {
                    return Err(SelectorError(format!(
                        "unable to parse requirement: found '{word}', expected: in, notin, =, ==, !=, gt, lt"
                    )));
                }
            }
        };
        Ok(Requirement { key, op })
    }

    fn int(&mut self) -> Result<i64, SelectorError> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            SelectorError(format!(
                "unable to parse requirement: values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.space();
        if !self.eat("(") {
            return Err(self.error("found '", "', expected: '('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            self.space();
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(self.error("found '", "', expected: ',', or ')'"));
            }
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{}={}", r.key, v[0])?,
                Op::In(v) => write!(f, "{} in ({})", r.key, v.join(","))?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{}!={}", r.key, v[0])?,
                Op::NotIn(v) => write!(f, "{} notin ({})", r.key, v.join(","))?,
                Op::Exists => f.write_str(&r.key)?,
                Op::DoesNotExist => write!(f, "!{}", r.key)?,
                Op::GreaterThan(n) => write!(f, "{}>{n}", r.key)?,
                Op::LessThan(n) => write!(f, "{}<{n}", r.key)?,
            }
        }
        Ok(())
    }
}

/// A field selector: `metadata.name=x,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field path, wanted value, and whether it must be equal (else it must differ).
    pub terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Parses the text; a backslash escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (field, value, equal) = if let Some((f, v)) = term.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = term.split_once("==") {
                (f, v, true)
            } else if let Some((f, v)) = term.split_once('=') {
                (f, v, true)
            } else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            terms.push((field.to_owned(), unescape(value), equal));
        }
        Ok(FieldSelector { terms })
    }

    /// Whether an object, asked by field path, is selected.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<std::borrow::Cow<'a, str>>) -> bool {
        self.terms.iter().all(|(path, want, equal)| (field(path).as_deref().unwrap_or("") == want) == *equal)
    }

    /// The value that the field must have, if the selector fixes it.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|(p, _, equal)| *equal && p == path).map(|(_, v, _)| v.as_str())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> String {
    let (mut out, mut escaped) = (String::with_capacity(value.len()), false);
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches_value(Some(&labels))
    }

    #[test]
    fn label_selectors_select_as_documented() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        for (selector, want) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (web, api)", true),
            ("app notin (web,api)", false),
            ("app", true),
            ("!app", false),
            ("! other", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("other=", false),
        ] {
            assert_eq!(selects(selector, labels.clone()), want, "{selector}");
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        for bad in ["=x", "a=b,", "a in b", "a in (b", "a ~ b", "a=b c", "-a=b", "a=b$"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn text_round_trips() {
        for s in ["a=b", "a!=b", "a in (b,c)", "a notin (b,c)", "a", "!a", "a>3"] {
            assert_eq!(LabelSelector::parse(s).unwrap().to_string(), s);
        }
    }

    #[test]
    fn structured_form() {
        let s = LabelSelector::from_value(&json!({
            "matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}],
        }))
        .unwrap();
        assert!(s.matches_value(Some(&json!({"a": "b"}))));
        assert!(!s.matches_value(Some(&json!({"a": "b", "c": "d"}))));
        assert!(LabelSelector::from_value(&json!({"matchExpressions": [{"key": "c", "operator": "In"}]})).is_err());
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("metadata.name=a,status.phase!=Running").unwrap();
        let field = |phase: &'static str| {
            move |path: &str| match path {
                "metadata.name" => Some("a".into()),
                "status.phase" => Some(phase.into()),
                _ => None,
            }
        };
        assert!(s.matches(field("Pending")));
        assert!(!s.matches(field("Running")));
        assert_eq!(s.exact("metadata.name"), Some("a"));
        assert!(FieldSelector::parse("metadata.name").is_err());
        assert_eq!(FieldSelector::parse(r"a=b\,c").unwrap().terms[0].1, "b,c");
    }
}
