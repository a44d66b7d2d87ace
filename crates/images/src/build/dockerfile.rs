//! Reading a Dockerfile: lines to instructions, and the words of an instruction.

use std::collections::BTreeMap;

/// What is wrong in which line of a Dockerfile, counted from 1.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("dockerfile line {line}: {message}")]
pub struct DockerfileError {
    /// The line, where the instruction begins.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

/// One instruction, with its continued lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) line: usize,
    /// In capitals.
    pub(super) name: String,
    /// `--name=value`, in the order given.
    pub(super) flags: Vec<(String, String)>,
    /// What follows, as written.
    pub(super) rest: String,
}

/// Arguments as JSON, or as text for a shell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    Exec(Vec<String>),
    Shell(String),
}

/// Each instruction that is carried out, with the flags it may have.
const KNOWN: &[(&str, &[&str])] = &[
    ("FROM", &["platform"]),
    ("ARG", &[]),
    ("ENV", &[]),
    ("WORKDIR", &[]),
    ("COPY", &["from", "chown", "chmod", "link"]),
    ("ADD", &["chown", "chmod", "link"]),
    ("RUN", &[]),
    ("USER", &[]),
    ("EXPOSE", &[]),
    ("CMD", &[]),
    ("ENTRYPOINT", &[]),
    ("LABEL", &[]),
    ("VOLUME", &[]),
    ("STOPSIGNAL", &[]),
    ("SHELL", &[]),
    ("HEALTHCHECK", &["interval", "timeout", "start-period", "start-interval", "retries"]),
];

impl Instruction {
    pub(super) fn error(&self, message: impl Into<String>) -> DockerfileError {
        DockerfileError { line: self.line, message: message.into() }
    }

    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(flag, _)| flag == name).map(|(_, value)| value.as_str())
    }

    /// What follows as JSON if it is a list of strings, else as text; Docker decides in the same way.
    pub(super) fn form(&self) -> Form {
        match serde_json::from_str::<Vec<String>>(&self.rest) {
            Ok(words) => Form::Exec(words),
            Err(_) => Form::Shell(self.rest.clone()),
        }
    }

    /// The instruction as one line, for those who watch.
    pub(super) fn text(&self) -> String {
        let mut text = self.name.clone();
        for (name, value) in &self.flags {
            text.push_str(&format!(" --{name}={value}"));
        }
        format!("{text} {}", self.rest)
    }
}

/// Reads a whole Dockerfile.
///
/// # Errors
/// Names the line of what is not an instruction or one that is not supported.
pub(super) fn parse(text: &str) -> Result<Vec<Instruction>, DockerfileError> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    let mut first = true;
    while let Some((index, line)) = lines.next() {
        let line_number = index + 1;
        let line = if index == 0 { line.trim_start_matches('\u{feff}') } else { line };
        let start = line.trim();
        if let Some(comment) = start.strip_prefix('#') {
            let directive = comment.split_once('=').map(|(name, value)| (name.trim().to_lowercase(), value.trim()));
            match directive {
                Some((name, value)) if first && name == "escape" && value != "\\" => {
                    return Err(DockerfileError {
                        line: line_number,
                        message: format!("escape character {value:?} is not supported"),
                    });
                }
                _ => continue,
            }
        }
        if start.is_empty() {
            continue;
        }
        first = false;
        let mut joined = String::new();
        let mut part = line;
        // A line ends with a backslash: the next one belongs to it; comments and empty lines between do not.
        while let Some(head) = part.trim_end().strip_suffix('\\') {
            joined.push_str(head);
            let next = lines.find(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
            part = match next {
                Some((_, next)) => next,
                None => "",
            };
        }
        joined.push_str(part);
        found.push(instruction(line_number, joined.trim())?);
    }
    if found.is_empty() {
        return Err(DockerfileError { line: 1, message: "file with no instructions".to_owned() });
    }
    Ok(found)
}

fn instruction(line: usize, text: &str) -> Result<Instruction, DockerfileError> {
    let error = |message: String| DockerfileError { line, message };
    let (name, mut rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let name = name.to_uppercase();
    let Some((_, allowed)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        return Err(match name.as_str() {
            "ONBUILD" | "MAINTAINER" => error(format!("instruction {name} is not supported")),
            _ => error(format!("unknown instruction: {name}")),
        });
    };
    let mut flags = Vec::new();
    rest = rest.trim_start();
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (key, value) = flag.split_once('=').unwrap_or((flag, ""));
        if !allowed.contains(&key) {
            return Err(error(format!("{name} flag --{key} is not supported")));
        }
        flags.push((key.to_owned(), value.to_owned()));
        rest = after.trim_start();
    }
    if rest.is_empty() {
        return Err(error(format!("{name} requires at least one argument")));
    }
    if matches!(name.as_str(), "RUN" | "COPY" | "ADD") && is_here_document(rest) {
        return Err(error(format!("a here-document in {name} is not supported")));
    }
    Ok(Instruction { line, name, flags, rest: rest.to_owned() })
}

/// Whether a word begins with `<<` and a name, which BuildKit takes for a here-document.
fn is_here_document(rest: &str) -> bool {
    rest.split_whitespace().filter_map(|word| word.strip_prefix("<<")).any(|word| {
        let name = word.trim_start_matches('-').trim_start_matches(['"', '\'']);
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    })
}

/// Replaces `$NAME`, `${NAME}`, `${NAME:-word}` and `${NAME:+word}` and takes quotes away, as in Docker: in single
/// quotes nothing is replaced. What has no value is empty.
pub(super) fn expand(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    Ok(split(text, values, false)?.concat())
}

/// The words of a text, each expanded; blanks within quotes do not part words.
pub(super) fn words(text: &str, values: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    split(text, values, true)
}

/// `NAME=value …`, or the old form `NAME value`.
pub(super) fn pairs(text: &str, values: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, String> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or("must have two arguments")?;
        return Ok(vec![(name.to_owned(), expand(value.trim(), values)?)]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("can't find = in {word:?}. Must be of the form: name=value")),
    };
    words(text, values)?.into_iter().map(pair).collect()
}

fn split(text: &str, values: &BTreeMap<String, String>, at_blanks: bool) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut word = String::new();
    let mut inside = false;
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('\'', None) | ('"', None) => (quote, inside) = (Some(c), true),
            (c, Some(open)) if c == open => quote = None,
            (c, Some('\'')) => word.push(c),
            ('\\', quote) => {
                inside = true;
                match rest.next() {
                    Some(c) if quote.is_none() || matches!(c, '"' | '\\' | '$') => word.push(c),
                    Some(c) => word.extend(['\\', c]),
                    None => word.push('\\'),
                }
            }
            ('$', _) => {
                inside = true;
                let (value, after) = variable(rest.as_str(), values)?;
                word.push_str(&value);
                rest = after.chars();
            }
            (c, None) if at_blanks && c.is_whitespace() => {
                if inside {
                    found.push(std::mem::take(&mut word));
                }
                inside = false;
            }
            (c, _) => {
                inside = true;
                word.push(c);
            }
        }
    }
    if quote.is_some() {
        return Err("unexpected end of statement while looking for matching quote".to_owned());
    }
    if inside {
        found.push(word);
    }
    Ok(found)
}

/// The value of what follows a `$`, and the text after it.
fn variable<'a>(text: &'a str, values: &BTreeMap<String, String>) -> Result<(String, &'a str), String> {
    let value = |name: &str| values.get(name).cloned();
    let Some(braced) = text.strip_prefix('{') else {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        return Ok(match &text[..end] {
            "" => ("$".to_owned(), text),
            name => (value(name).unwrap_or_default(), &text[end..]),
        });
    };
    let (inner, after) = braced.split_once('}').ok_or("syntax error: missing '}' in substitution")?;
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, modifier) = inner.split_at(end);
    let known = value(name);
    let known = known.filter(|value| !(modifier.starts_with(':') && value.is_empty()));
    let plain = modifier.strip_prefix(':').unwrap_or(modifier);
    let chosen = match (plain.chars().next(), name) {
        (_, "") => return Err("syntax error: bad substitution".to_owned()),
        (None, _) if modifier.is_empty() => known.unwrap_or_default(),
        (Some('-'), _) => match known {
            Some(value) => value,
            None => expand(&plain[1..], values)?,
        },
        (Some('+'), _) if known.is_some() => expand(&plain[1..], values)?,
        (Some('+'), _) => String::new(),
        _ => return Err(format!("unsupported modifier ({modifier}) in substitution")),
    };
    Ok((chosen, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> BTreeMap<String, String> {
        [("A", "one"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let found =
            parse("# syntax=docker/dockerfile:1\nfrom a AS b\n\nRUN x && \\\n # why\n\n  y\nCMD [\"a\", \"b\"]")
                .unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].name.as_str(), found[0].line), ("FROM", 2));
        assert_eq!((found[1].rest.as_str(), found[1].line), ("x &&   y", 4));
        assert_eq!(found[2].form(), Form::Exec(vec!["a".into(), "b".into()]));
    }

    #[test]
    fn what_is_not_supported_names_its_line() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(error("FROM a\nONBUILD RUN x"), "dockerfile line 2: instruction ONBUILD is not supported");
        assert_eq!(error("FROM a\n\nFETCH x"), "dockerfile line 3: unknown instruction: FETCH");
        assert_eq!(error("FROM a\nRUN --mount=type=cache x"), "dockerfile line 2: RUN flag --mount is not supported");
        assert_eq!(
            error("FROM a\nRUN cat <<EOF\nx\nEOF"),
            "dockerfile line 2: a here-document in RUN is not supported"
        );
        assert_eq!(error("FROM a\nCMD"), "dockerfile line 2: CMD requires at least one argument");
        assert_eq!(error("# nothing"), "dockerfile line 1: file with no instructions");
        assert!(error("# escape=`\nFROM a").contains("escape character"));
    }

    #[test]
    fn variables_and_quotes() {
        let check = |text: &str, expected: &str| assert_eq!(expand(text, &values()).unwrap(), expected, "{text}");
        check("$A-${A}x", "one-onex");
        check("${B:-two}${A:+three}${B:+four}${EMPTY:-five}${EMPTY-six}", "twothreefive");
        check(r#""$A" '$A' \$A $"#, "one $A $A $");
        assert_eq!(words(r#"a "b c" d\ e"#, &values()).unwrap(), ["a", "b c", "d e"]);
        assert!(expand("${A", &values()).is_err());
        assert!(expand("'a", &values()).is_err());
        assert!(expand("${A%x}", &values()).is_err());
    }

    #[test]
    fn pairs_in_both_forms() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(pairs("A=1 B=\"x y\"", &values()).unwrap(), [pair("A", "1"), pair("B", "x y")]);
        assert_eq!(pairs("NAME some text", &values()).unwrap(), [pair("NAME", "some text")]);
        assert!(pairs("A=1 B", &values()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", lines in prop::collection::vec("(FROM|RUN|COPY|#|)[ -~]{0,20}[\\\\]?", 0..8)) {
            let _ = parse(&text);
            let _ = parse(&lines.join("\n"));
            let _ = words(&text, &values());
            let _ = pairs(&text, &values());
        }

        #[test]
        fn plain_words_stay_what_they_are(parts in prop::collection::vec("[a-zA-Z0-9./:_-]{1,9}", 1..6)) {
            prop_assert_eq!(words(&parts.join(" "), &values()).unwrap(), parts);
        }
    }
}
