//! Why a definition is refused: OpenAI's code, the field by its path, and a sentence for its author.

use serde_json::Value;

/// One refused field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// As OpenAI's errors have it: `missing_required_parameter`, `invalid_type`, …
    pub code: &'static str,
    /// The field, as in `grader.graders.style.operation`.
    pub path: String,
    pub message: String,
}

impl Fault {
    pub(crate) fn missing(path: String) -> Self {
        let message = format!("Missing required parameter: '{path}'.");
        Self { code: "missing_required_parameter", path, message }
    }

    pub(crate) fn unknown(path: String) -> Self {
        let message = format!("Unknown parameter: '{path}'.");
        Self { code: "unknown_parameter", path, message }
    }

    pub(crate) fn wrong_type(path: String, expected: &str, got: &Value) -> Self {
        let got = type_words(got);
        let message =
            format!("Invalid type for '{path}': expected {expected}, but got {got} instead.");
        Self { code: "invalid_type", path, message }
    }

    pub(crate) fn unsupported(path: String, value: &str, supported: &[&str]) -> Self {
        let listed: Vec<String> = supported.iter().map(|word| format!("'{word}'")).collect();
        let listed = listed.join(", ");
        let value = shortened(value);
        let message = format!("Invalid value: '{value}'. Supported values are: {listed}.");
        Self { code: "invalid_value", path, message }
    }

    /// `why` completes the sentence "Invalid 'path': …".
    pub(crate) fn invalid(path: String, why: impl std::fmt::Display) -> Self {
        let message = format!("Invalid '{path}': {why}");
        Self { code: "invalid_value", path, message }
    }

    pub(crate) fn too_long(path: String, maximum: usize, length: usize) -> Self {
        let message = format!(
            "Invalid '{path}': string too long. Expected a string with maximum length {maximum}, but got a \
             string with length {length} instead."
        );
        Self { code: "string_above_max_length", path, message }
    }

    pub(crate) fn too_many(path: String, maximum: usize, length: usize) -> Self {
        let message = format!(
            "Invalid '{path}': too many entries. Expected at most {maximum}, but got {length} instead."
        );
        Self { code: "array_above_max_length", path, message }
    }
}

/// Enough of a value to recognise it.
pub(crate) fn shortened(text: &str) -> String {
    const LENGTH: usize = 64;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn type_words(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
