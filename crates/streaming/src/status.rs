//! How a command ended, as the error stream tells it.

use serde_json::json;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With exit code 0, or an attach that was left.
    Success,
    /// With another exit code.
    Exit {
        /// The code.
        code: i32,
        /// What was run, for the message.
        command: Vec<String>,
    },
    /// It could not be run, or its end was not seen.
    Error(String),
}

impl Outcome {
    /// The `metav1.Status` of protocol version 4 and later.
    pub(crate) fn to_status(&self) -> Vec<u8> {
        let status = match self {
            Outcome::Success => json!({ "metadata": {}, "status": "Success" }),
            Outcome::Exit { code, .. } => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.to_text(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Outcome::Error(text) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {text}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": text }] },
                "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }

    /// The text of earlier versions; empty for success.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Outcome::Success => String::new(),
            Outcome::Exit { code, command } => format!(
                "command terminated with non-zero exit code: error executing command [{}], exit code {code}",
                command.join(" ")
            ),
            Outcome::Error(text) => text.clone(),
        }
    }
}
