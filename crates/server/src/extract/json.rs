//! A JSON body whose refusals read like OpenAI's: the field by its path, what was expected, what
//! came.
//!
//! The body is read to a generic value first, so that the words of serde's errors carry no position
//! and can be turned into messages; syntax errors keep line and column.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::body;
use crate::error::ApiError;
use crate::state::AppState;

pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        parse(&read(request, state).await?).map(Self)
    }
}

/// The body, within the limit of JSON.
async fn read(request: Request, state: &AppState) -> Result<Bytes, ApiError> {
    let limit = state.config.max_json_bytes.as_u64() as usize;
    body::collect(request.into_body(), limit).await
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    from_value(object(bytes)?)
}

/// [`Json`], of a body that was read as a [`JsonObject`].
pub(crate) fn from_value<T: DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(body).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, &error.into_inner().to_string())
    })
}

/// The same where every field may be left out, and so the whole body.
pub(crate) struct JsonOrNothing<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<AppState> for JsonOrNothing<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let bytes = read(request, state).await?;
        match bytes.iter().all(u8::is_ascii_whitespace) {
            true => Ok(Self(T::default())),
            false => parse(&bytes).map(Self),
        }
    }
}

/// A JSON object of any shape, whose fields the handler reads.
pub(crate) struct JsonObject(pub Value);

impl FromRequest<AppState> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        object(&read(request, state).await?).map(Self)
    }
}

/// The body as an object without texts that no column can hold.
fn object(bytes: &Bytes) -> Result<Value, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::MalformedJson("the body is empty".to_owned()));
    }
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| ApiError::MalformedJson(e.to_string()))?;
    if !value.is_object() {
        return Err(ApiError::MalformedJson("the body must be a JSON object".to_owned()));
    }
    if let Some(path) = path_of_nul(&value, String::new()) {
        let message = format!("Invalid value for '{path}': the character U+0000 is not allowed.");
        return Err(ApiError::invalid_value(path, message));
    }
    Ok(value)
}

/// Where the text of `value` holds a NUL, which no text column can store.
fn path_of_nul(value: &Value, path: String) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then_some(path),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, v)| path_of_nul(v, format!("{path}[{i}]")))
        }
        Value::Object(fields) => fields.iter().find_map(|(key, v)| {
            let inner = join(&path, &key.replace('\0', ""));
            if key.contains('\0') { Some(inner) } else { path_of_nul(v, inner) }
        }),
        _ => None,
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// The field that serde names after `words`.
pub(crate) fn field_of<'m>(message: &'m str, words: &str) -> Option<&'m str> {
    message.strip_prefix(words).and_then(in_backticks)
}

/// serde's words for a failure at `path` → OpenAI's.
pub(crate) fn explain(path: &str, message: &str) -> ApiError {
    let path = if path == "." { "" } else { path };
    if let Some(field) = field_of(message, "missing field ") {
        return ApiError::missing(join(path, field));
    }
    if let Some(field) = field_of(message, "unknown field ") {
        // The path names the unknown field already where the parser had begun to read it.
        let parent = path.strip_suffix(field).map_or(path, |p| p.trim_end_matches('.'));
        return ApiError::unknown_parameter(join(parent, field));
    }
    if let Some(rest) = message.strip_prefix("invalid type: ")
        && let Some((got, expected)) = rest.rsplit_once(", expected ")
    {
        return ApiError::invalid_type(path, expected_words(expected), got_words(got));
    }
    if let Some(value) = message.strip_prefix("unknown variant ").and_then(in_backticks) {
        let supported: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        return ApiError::unsupported_value(path, value, &supported);
    }
    ApiError::invalid_value(path, format!("Invalid value for '{path}': {message}."))
}

fn in_backticks(text: &str) -> Option<&str> {
    text.strip_prefix('`')?.split('`').next()
}

fn expected_words(expected: &str) -> &str {
    match expected {
        "a string" | "a borrowed string" => "a string",
        "u8" | "u16" | "u32" | "u64" | "i64" | "i32" | "usize" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" => "a boolean",
        "a sequence" => "an array",
        _ if expected.starts_with("struct ") || expected == "a map" => "an object",
        other => other,
    }
}

fn got_words(got: &str) -> &'static str {
    match got.split(' ').next().unwrap_or_default() {
        "string" => "a string",
        "integer" => "an integer",
        "floating" => "a decimal",
        "boolean" => "a boolean",
        "sequence" => "an array",
        "map" => "an object",
        _ => "null",
    }
}

/// The words for a JSON value's type, as messages name it.
pub(crate) fn type_words(value: &Value) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::completion::CreateCompletion;
    use crate::wire::job::CreateJob;

    /// (code, param, message) of the refusal of `body` as a `T`.
    fn refusal<T: DeserializeOwned>(body: &str) -> (Option<String>, Option<String>, String) {
        let Err(error) = parse::<T>(&Bytes::copy_from_slice(body.as_bytes())) else {
            panic!("{body} was accepted")
        };
        let body = error.envelope().error;
        (body.code, body.param, body.message)
    }

    fn job_refusal(body: &str) -> (String, String, String) {
        let (code, param, message) = refusal::<CreateJob>(body);
        (code.unwrap(), param.unwrap(), message)
    }

    #[test]
    fn refusals_name_the_field_in_openais_words() {
        let ours = |code: &str, param: &str, message: &str| {
            (code.to_owned(), param.to_owned(), message.to_owned())
        };
        assert_eq!(
            job_refusal(r#"{"training_file":"file-1"}"#),
            ours("missing_required_parameter", "model", "Missing required parameter: 'model'.")
        );
        assert_eq!(
            job_refusal(r#"{"model":5,"training_file":"f"}"#),
            ours(
                "invalid_type",
                "model",
                "Invalid type for 'model': expected a string, but got an integer instead."
            )
        );
        assert_eq!(
            job_refusal(r#"{"model":"m","training_file":"f","n_epochs":3}"#),
            ours("unknown_parameter", "n_epochs", "Unknown parameter: 'n_epochs'.")
        );
        assert_eq!(
            job_refusal(r#"{"model":"m","training_file":"f","method":{"supervised":{}}}"#),
            ours(
                "missing_required_parameter",
                "method.type",
                "Missing required parameter: 'method.type'."
            )
        );
        assert_eq!(
            job_refusal(r#"{"model":"m","training_file":"f","finetuned":{"lora":{"rang":8}}}"#),
            ours(
                "unknown_parameter",
                "finetuned.lora.rang",
                "Unknown parameter: 'finetuned.lora.rang'."
            )
        );
        assert_eq!(
            job_refusal(r#"{"model":"m","training_file":"f","finetuned":{"schedule":"step"}}"#),
            ours(
                "invalid_value",
                "finetuned.schedule",
                "Invalid value: 'step'. Supported values are: 'linear', 'cosine', 'constant'."
            )
        );
        let (code, param, _) = job_refusal("{\"model\":\"a\\u0000b\",\"training_file\":\"f\"}");
        assert_eq!((code.as_str(), param.as_str()), ("invalid_value", "model"));
    }

    #[test]
    fn what_is_not_json_names_no_field() {
        for body in ["", "  ", "{", "[]", "nul", "{\"model\": }", "\u{feff}{}"] {
            let (code, param, message) = refusal::<CreateCompletion>(body);
            assert_eq!((code, param), (None, None), "{body}");
            assert!(message.starts_with("We could not parse the JSON body"), "{message}");
        }
        let deep = "[".repeat(100_000);
        let (_, _, message) = refusal::<CreateCompletion>(&format!("{{\"a\":{deep}"));
        assert!(message.contains("recursion limit"), "{message}");
    }
}
