//! Faults of objects, each with its field path, in upstream's words.

use std::fmt;

use serde_json::Value;

/// What kind of fault; decides the reason of the cause and the head of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    NotFound,
    TooLong,
    TooMany,
}

/// One fault of one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub fault: Fault,
    /// Path as upstream writes it: `spec.containers[0].name`.
    pub field: String,
    /// The value as shown in the message; unused where the fault shows none.
    pub value: Value,
    pub detail: String,
}

impl FieldError {
    pub fn new(fault: Fault, field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        FieldError { fault, field: field.into(), value: value.into(), detail: detail.into() }
    }
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        FieldError::new(Fault::Required, field, Value::Null, detail)
    }
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        FieldError::new(Fault::Invalid, field, value, detail)
    }
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        FieldError::new(Fault::Forbidden, field, Value::Null, detail)
    }
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        FieldError::new(Fault::Duplicate, field, value, "")
    }
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        FieldError::new(Fault::NotFound, field, value, "")
    }
    /// The value is none of the supported ones.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        FieldError::new(Fault::NotSupported, field, value, format!("supported values: {}", list.join(", ")))
    }
    /// The value has more than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        FieldError::new(Fault::TooLong, field, Value::Null, format!("may not be more than {max} bytes"))
    }

    /// The `reason` of the cause.
    pub fn reason(&self) -> &'static str {
        match self.fault {
            Fault::Required => "FieldValueRequired",
            Fault::Invalid => "FieldValueInvalid",
            Fault::NotSupported => "FieldValueNotSupported",
            Fault::Duplicate => "FieldValueDuplicate",
            Fault::Forbidden => "FieldValueForbidden",
            Fault::NotFound => "FieldValueNotFound",
            Fault::TooLong => "FieldValueTooLong",
            Fault::TooMany => "FieldValueTooMany",
        }
    }

    /// The message without the field path.
    pub fn body(&self) -> String {
        let head = match self.fault {
            Fault::Required => "Required value",
            Fault::Invalid => "Invalid value",
            Fault::NotSupported => "Unsupported value",
            Fault::Duplicate => "Duplicate value",
            Fault::Forbidden => "Forbidden",
            Fault::NotFound => "Not found",
            Fault::TooLong => "Too long",
            Fault::TooMany => "Too many",
        };
        let mut text = head.to_owned();
        if !matches!(self.fault, Fault::Required | Fault::Forbidden | Fault::TooLong) {
            text.push_str(": ");
            text.push_str(&self.value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// All faults of an object, collected while it is walked.
#[derive(Debug, Default)]
pub struct Faults(pub Vec<FieldError>);

impl Faults {
    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    pub fn required(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(FieldError::required(field, detail));
    }

    pub fn invalid(&mut self, field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(FieldError::invalid(field, value, detail));
    }

    /// One `Invalid` fault for each message that a rule of [`crate::names`] gave.
    pub fn rule(&mut self, field: &str, value: &str, messages: Vec<String>) {
        for m in messages {
            self.invalid(field, value, m);
        }
    }

    /// The value must be one of `supported`.
    pub fn one_of(&mut self, field: &str, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            self.push(FieldError::not_supported(field, value, supported));
        }
    }

    /// The number must not be negative.
    pub fn non_negative(&mut self, field: &str, value: i64) {
        if value < 0 {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        assert_eq!(FieldError::invalid("a.b", "X", "bad").to_string(), "a.b: Invalid value: \"X\": bad");
        assert_eq!(
            FieldError::invalid("a", -1, "must be greater than or equal to 0").to_string(),
            "a: Invalid value: -1: must be greater than or equal to 0"
        );
        assert_eq!(
            FieldError::not_supported("p", "x", &["A", "B"]).to_string(),
            "p: Unsupported value: \"x\": supported values: \"A\", \"B\""
        );
        assert_eq!(FieldError::required("p", "").to_string(), "p: Required value");
        assert_eq!(FieldError::duplicate("p", "v").to_string(), "p: Duplicate value: \"v\"");
    }
}
