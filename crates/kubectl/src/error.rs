//! What goes wrong, and the words in which kubectl says so.

use std::fmt;

use serde_json::Value;

/// The result of everything here.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Error {
    /// The API server said no: its `Status`.
    Status(Value),
    /// Anything else; said behind `error: `.
    Text(String),
    /// The command line is wrong; said behind `error: `.
    Usage(String),
    /// Said as it is.
    Plain(String),
    /// The server was not reached; `server` is host and port.
    Unreachable { server: String, reason: String },
    /// Nothing is said.
    Exit(u8),
    /// An error and the code to end with.
    Code(u8, Box<Error>),
    /// Several, each on a line.
    Many(Vec<Error>),
}

impl Error {
    pub(crate) fn text(text: impl Into<String>) -> Error {
        Error::Text(text.into())
    }

    /// A wrong use of a command, with kubectl's hint.
    pub(crate) fn usage(command: &str, text: impl fmt::Display) -> Error {
        Error::Usage(format!("{text}\nSee 'kubectl {command} -h' for help and examples"))
    }

    /// One error of several, or nothing of none.
    pub(crate) fn all(mut errors: Vec<Error>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Many(errors)),
        }
    }

    /// The reason of the server's `Status`, or nothing.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Error::Status(status) => status["reason"].as_str().unwrap_or_default(),
            _ => "",
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.reason() == "NotFound"
    }

    /// Says what was being done with which file.
    pub(crate) fn when(self, verb: &str, source: &str) -> Error {
        match self {
            _ if source.is_empty() => self,
            Error::Status(mut status) => {
                let message =
                    format!("error when {verb} {source:?}: {}", status["message"].as_str().unwrap_or_default());
                status["message"] = message.into();
                Error::Status(status)
            }
            Error::Text(text) => Error::Text(format!("error when {verb} {source:?}: {text}")),
            other => other,
        }
    }

    /// The whole message, as it goes to standard error; empty for nothing.
    pub(crate) fn message(&self) -> String {
        match self {
            Error::Status(status) if status["reason"] == "Invalid" => invalid(status),
            Error::Many(errors) => errors.iter().map(|error| error.line()).collect::<Vec<_>>().join("\n"),
            Error::Code(_, error) => error.message(),
            other => other.line(),
        }
    }

    /// The message where it is one of several.
    fn line(&self) -> String {
        match self {
            Error::Status(status) => {
                let message = status["message"].as_str().unwrap_or_default();
                match status["reason"].as_str().unwrap_or_default() {
                    "Unauthorized" => format!("error: You must be logged in to the server ({message})"),
                    "" => format!("Error from server: {message}"),
                    reason => format!("Error from server ({reason}): {message}"),
                }
            }
            Error::Text(text) | Error::Usage(text) if text.starts_with("error: ") => text.clone(),
            Error::Text(text) | Error::Usage(text) => format!("error: {text}"),
            Error::Plain(text) => text.clone(),
            Error::Unreachable { server, reason } if reason.contains("refused") => {
                format!("The connection to the server {server} was refused - did you specify the right host or port?")
            }
            Error::Unreachable { reason, .. } => format!("Unable to connect to the server: {reason}"),
            Error::Exit(_) => String::new(),
            Error::Code(_, error) => error.line(),
            Error::Many(_) => self.message(),
        }
    }

    /// What the program ends with.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Error::Exit(code) | Error::Code(code, _) => *code,
            _ => 1,
        }
    }
}

/// `The Pod "x" is invalid: …` with each cause.
fn invalid(status: &Value) -> String {
    let (message, details) = (status["message"].as_str().unwrap_or_default(), &status["details"]);
    let (kind, name) = (details["kind"].as_str().unwrap_or_default(), details["name"].as_str().unwrap_or_default());
    let mut causes: Vec<String> = Vec::new();
    for cause in details["causes"].as_array().into_iter().flatten() {
        let text = |field: &str| cause[field].as_str().unwrap_or_default();
        let line = format!("{}: {}", text("field"), text("message"));
        if !causes.contains(&line) {
            causes.push(line);
        }
    }
    let head = match (kind.is_empty() && name.is_empty(), causes.is_empty()) {
        (false, _) => format!("The {kind} {name:?} is invalid"),
        (true, true) if !message.is_empty() => format!("The request is invalid: {message}"),
        (true, _) => "The request is invalid".to_owned(),
    };
    match causes.as_slice() {
        [] => head,
        [one] => format!("{head}: {one}"),
        many => format!("{head}: \n* {}", many.join("\n* ")),
    }
}

/// Without `error: `, for messages within messages.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Status(status) => f.write_str(status["message"].as_str().unwrap_or_default()),
            Error::Text(text) | Error::Usage(text) | Error::Plain(text) => f.write_str(text),
            other => f.write_str(&other.message()),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::Text(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_servers_no_is_said_as_kubectl_says_it() {
        let status = json!({"reason": "NotFound", "message": "pods \"x\" not found"});
        assert_eq!(Error::Status(status.clone()).message(), "Error from server (NotFound): pods \"x\" not found");
        let told = Error::Status(status).when("deleting", "a.yaml").message();
        assert_eq!(told, "Error from server (NotFound): error when deleting \"a.yaml\": pods \"x\" not found");
        let cause = |n: u8| json!({"field": format!("spec.f{n}"), "message": "Required value"});
        let bad = |causes: Vec<Value>| json!({"reason": "Invalid", "details": {"kind": "Pod", "name": "x", "causes": causes}});
        assert_eq!(Error::Status(bad(vec![cause(1)])).message(), "The Pod \"x\" is invalid: spec.f1: Required value");
        let two = "The Pod \"x\" is invalid: \n* spec.f1: Required value\n* spec.f2: Required value";
        assert_eq!(Error::Status(bad(vec![cause(1), cause(2)])).message(), two);
    }
}
