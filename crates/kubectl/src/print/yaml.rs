//! YAML as kubectl prints it: keys sorted, lists not indented, strings quoted and folded as Go's library does it.

use serde_json::{Map, Value};

/// Lines are folded at the first space behind this column.
const WIDTH: usize = 80;

/// A document, with a newline at the end.
pub(crate) fn to_string(value: &Value) -> String {
    let mut emitter = Emitter { out: String::new(), column: 0 };
    match value {
        Value::Object(map) if !map.is_empty() => emitter.map(map, 0, false),
        Value::Array(items) if !items.is_empty() => emitter.list(items, 0, false),
        other => {
            emitter.scalar(other, 0);
            emitter.newline();
        }
    }
    emitter.out
}

struct Emitter {
    out: String,
    column: usize,
}

impl Emitter {
    fn push(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn newline(&mut self) {
        self.out.push('\n');
        self.column = 0;
    }

    fn indent(&mut self, indent: usize) {
        self.out.extend(std::iter::repeat_n(' ', indent));
        self.column += indent;
    }

    /// `inline`: the first key goes on the line that is there, behind a dash.
    fn map(&mut self, map: &Map<String, Value>, indent: usize, inline: bool) {
        let mut keys: Vec<_> = map.keys().collect();
        keys.sort_by(|a, b| natural(a, b));
        for (i, key) in keys.into_iter().enumerate() {
            if i > 0 || !inline {
                self.indent(indent);
            }
            // Keys are never folded.
            let text = match style(key) {
                Style::Plain => key.clone(),
                Style::Single => format!("'{}'", key.replace('\'', "''")),
                Style::Double | Style::Literal => double_quoted(key),
            };
            self.push(&text);
            self.push(":");
            match &map[key] {
                Value::Object(inner) if !inner.is_empty() => {
                    self.newline();
                    self.map(inner, indent + 2, false);
                }
                Value::Array(items) if !items.is_empty() => {
                    self.newline();
                    self.list(items, indent, false);
                }
                other => {
                    self.push(" ");
                    self.scalar(other, indent + 2);
                    self.newline();
                }
            }
        }
    }

    fn list(&mut self, items: &[Value], indent: usize, inline: bool) {
        for (i, item) in items.iter().enumerate() {
            if i > 0 || !inline {
                self.indent(indent);
            }
            self.push("- ");
            match item {
                Value::Object(inner) if !inner.is_empty() => self.map(inner, indent + 2, true),
                Value::Array(inner) if !inner.is_empty() => self.list(inner, indent + 2, true),
                other => {
                    self.scalar(other, indent + 2);
                    self.newline();
                }
            }
        }
    }

    fn scalar(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Null => self.push("null"),
            Value::Object(_) => self.push("{}"),
            Value::Array(_) => self.push("[]"),
            Value::String(text) => match style(text) {
                Style::Plain => self.folded(text, indent),
                Style::Single => {
                    self.push("'");
                    self.folded(&text.replace('\'', "''"), indent);
                    self.push("'");
                }
                Style::Double => self.double(text, indent),
                Style::Literal => self.literal(text, indent),
            },
            other => self.push(&other.to_string()),
        }
    }

    /// Breaks a long text where a single space is.
    fn folded(&mut self, text: &str, indent: usize) {
        let chars: Vec<char> = text.chars().collect();
        let mut after_space = false;
        for (i, c) in chars.iter().enumerate() {
            let single = !after_space && i > 0 && i + 1 < chars.len() && chars[i + 1] != ' ';
            if *c == ' ' && self.column > WIDTH && single {
                self.newline();
                self.indent(indent);
            } else {
                self.out.push(*c);
                self.column += 1;
            }
            after_space = *c == ' ';
        }
    }

    fn double(&mut self, text: &str, indent: usize) {
        self.push("\"");
        let chars: Vec<char> = text.chars().collect();
        let mut after_space = false;
        for (i, c) in chars.iter().enumerate() {
            if *c == ' ' && !after_space && self.column > WIDTH && i > 0 && i + 1 < chars.len() {
                self.newline();
                self.indent(indent);
                if chars[i + 1] == ' ' {
                    self.push("\\");
                }
                after_space = true;
                continue;
            }
            after_space = *c == ' ';
            self.push(&escaped(*c));
        }
        self.push("\"");
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.push("|");
        if text.starts_with([' ', '\n']) {
            self.push("2");
        }
        match text.ends_with('\n') {
            false => self.push("-"),
            true if text == "\n" || text.ends_with("\n\n") => self.push("+"),
            true => {}
        }
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            self.newline();
            if !line.is_empty() {
                self.indent(indent);
                self.push(line);
            }
        }
    }
}

enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

/// How Go's library would write a string.
fn style(text: &str) -> Style {
    // A tab is no character that Go's library shows as it is.
    if resolves_to_another_type(text) || text.chars().any(|c| !printable(c)) {
        return Style::Double;
    }
    if text.contains('\n') {
        // Spaces at a line's end would be lost on the reader's eye.
        let hidden_space = text.contains(" \n") || text.ends_with(' ');
        return if hidden_space { Style::Double } else { Style::Literal };
    }
    if text.is_empty() || text.starts_with(' ') || text.ends_with(' ') {
        return if text.is_empty() { Style::Double } else { Style::Single };
    }
    if text.starts_with("---") || text.starts_with("...") {
        return Style::Single;
    }
    let chars: Vec<char> = text.chars().collect();
    for (i, c) in chars.iter().enumerate() {
        let next_is_blank = chars.get(i + 1).is_none_or(|c| matches!(c, ' ' | '\t'));
        let before_is_blank = i > 0 && matches!(chars[i - 1], ' ' | '\t');
        let indicator = match (i, c) {
            (0, '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`') => true,
            (0, '?' | ':' | '-') => next_is_blank,
            (_, ':') => next_is_blank,
            (_, '#') => before_is_blank,
            _ => false,
        };
        if indicator {
            return Style::Single;
        }
    }
    Style::Plain
}

fn printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}') && c != '\u{feff}'
        || c == '\u{85}'
        || c > '\u{ffff}'
}

/// Whether a reader would take the plain text for something else than a string.
fn resolves_to_another_type(text: &str) -> bool {
    const WORDS: [&str; 28] = [
        "", "~", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE", "n",
        "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE", "<<",
    ];
    if WORDS.contains(&text) {
        return true;
    }
    is_number(text) || is_timestamp(text)
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let digits = unsigned.replace('_', "");
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return false;
    }
    for (prefix, radix) in [("0x", 16), ("0X", 16), ("0b", 2), ("0o", 8)] {
        if let Some(rest) = digits.strip_prefix(prefix)
            && u64::from_str_radix(rest, radix).is_ok()
        {
            return true;
        }
    }
    // Base 60, as YAML 1.1 has it, is quoted too.
    let parts: Vec<&str> = unsigned.split(':').collect();
    if parts.len() > 1 {
        let first = parts[0].bytes().all(|b| b.is_ascii_digit() || b == b'_') && !parts[0].is_empty();
        let last = parts.len() - 1;
        return first
            && parts[1..].iter().enumerate().all(|(i, part)| {
                let whole = if i + 1 == last { part.split('.').next().unwrap_or_default() } else { part };
                (1..=2).contains(&whole.len()) && whole.parse::<u8>().is_ok_and(|n| n < 60)
            });
    }
    let mut seen_digit = false;
    let mut rest = digits.as_str();
    let take = |rest: &mut &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        *rest = &rest[end..];
        end > 0
    };
    seen_digit |= take(&mut rest);
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        seen_digit |= take(&mut rest);
    }
    if !seen_digit {
        return false;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        rest = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if !take(&mut rest) {
            return false;
        }
    }
    rest.is_empty() && digits.parse::<f64>().is_ok_and(f64::is_finite)
}

/// `2026-11-20`, with or without a time.
fn is_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() < 8 || !bytes[..4].iter().all(u8::is_ascii_digit) || bytes[4] != b'-' {
        return false;
    }
    if text.len() == 10 {
        return text.parse::<jiff::civil::Date>().is_ok();
    }
    text.parse::<jiff::Timestamp>().is_ok() && (text.contains('T') || text.contains('t') || text.contains(' '))
        || text.replacen(' ', "T", 1).parse::<jiff::civil::DateTime>().is_ok() && text.len() > 10
}

fn escaped(c: char) -> String {
    match c {
        '"' => "\\\"".into(),
        '\\' => "\\\\".into(),
        '\0' => "\\0".into(),
        '\u{7}' => "\\a".into(),
        '\u{8}' => "\\b".into(),
        '\t' => "\\t".into(),
        '\n' => "\\n".into(),
        '\u{b}' => "\\v".into(),
        '\u{c}' => "\\f".into(),
        '\r' => "\\r".into(),
        '\u{1b}' => "\\e".into(),
        '\u{85}' => "\\N".into(),
        '\u{a0}' => "\\_".into(),
        '\u{2028}' => "\\L".into(),
        '\u{2029}' => "\\P".into(),
        c if printable(c) => c.to_string(),
        c if u32::from(c) < 0x100 => format!("\\x{:02X}", u32::from(c)),
        c if u32::from(c) < 0x1_0000 => format!("\\u{:04X}", u32::from(c)),
        c => format!("\\U{:08X}", u32::from(c)),
    }
}

fn double_quoted(text: &str) -> String {
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}

/// Go's library sorts keys with the numbers in them as numbers, and letters behind everything else.
fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut digits = false;
    for i in 0..a.len().min(b.len()) {
        if a[i] == b[i] {
            digits = a[i].is_ascii_digit();
            continue;
        }
        let (al, bl) = (a[i].is_alphabetic(), b[i].is_alphabetic());
        if al && bl {
            return a[i].cmp(&b[i]);
        }
        if al || bl {
            let letter_last = if digits { al } else { bl };
            return if letter_last { Ordering::Less } else { Ordering::Greater };
        }
        let (mut an, mut bn) = (0i64, 0i64);
        let zero = a[i] == '0' || b[i] == '0';
        if zero && a[..i].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0') {
            (an, bn) = (1, 1);
        }
        let number = |chars: &[char], from: i64| {
            let run: Vec<_> = chars[i..].iter().take_while(|c| c.is_ascii_digit()).collect();
            let value = run.iter().fold(from, |n, c| {
                n.saturating_mul(10).saturating_add(i64::from(u32::from(**c)) - i64::from(u32::from('0')))
            });
            (value, run.len())
        };
        let ((an, a_len), (bn, b_len)) = (number(&a, an), number(&b, bn));
        return if an != bn {
            an.cmp(&bn)
        } else if a_len != b_len {
            a_len.cmp(&b_len)
        } else {
            a[i].cmp(&b[i])
        };
    }
    a.len().cmp(&b.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: Value, want: &str) {
        assert_eq!(to_string(&value), want);
    }

    #[test]
    fn structure() {
        check(
            json!({"b": [{"x": 1, "y": [2, [3]]}], "a": {}, "c": [], "d": null}),
            "a: {}\nb:\n- x: 1\n  \"y\":\n  - 2\n  - - 3\nc: []\nd: null\n",
        );
    }

    #[test]
    fn strings_are_quoted_where_they_would_be_something_else() {
        for (text, want) in [
            ("plain text", "plain text"),
            ("", "\"\""),
            ("true", "\"true\""),
            ("8080", "\"8080\""),
            ("1.21", "\"1.21\""),
            ("1e3", "\"1e3\""),
            ("0x1f", "\"0x1f\""),
            ("10:30", "\"10:30\""),
            ("1.2.3", "1.2.3"),
            ("2026-11-20", "\"2026-11-20\""),
            ("2026-11-20T10:00:00Z", "\"2026-11-20T10:00:00Z\""),
            ("a: b", "'a: b'"),
            ("a:b", "a:b"),
            ("it's", "it's"),
            ("'quoted'", "'''quoted'''"),
            ("- x", "'- x'"),
            ("-x", "-x"),
            ("*", "'*'"),
            ("{}", "'{}'"),
            ("x #y", "'x #y'"),
            ("a\tb", "\"a\\tb\""),
            ("null", "\"null\""),
            ("100m", "100m"),
            ("5s", "5s"),
        ] {
            check(json!({"k": text}), &format!("k: {want}\n"));
        }
    }

    #[test]
    fn lines_and_long_texts() {
        check(json!({"k": "a\nb\n"}), "k: |\n  a\n  b\n");
        check(json!({"k": "a\nb"}), "k: |-\n  a\n  b\n");
        check(json!({"k": "a\n\nb\n\n"}), "k: |+\n  a\n\n  b\n\n");
        let words = "word ".repeat(20);
        let want = format!("k: {}\n  word word word word\n", "word ".repeat(16).trim_end());
        check(json!({"k": words.trim_end()}), &want);
    }

    #[test]
    fn keys_in_the_order_of_numbers() {
        check(json!({"a10": 1, "a9": 2, "a.b": 3}), "a.b: 3\na9: 2\na10: 1\n");
    }
}
