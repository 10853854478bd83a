//! `response_format` → what the engine holds an answer to.

use domain::engine::AnswerForm;
use grammar::{Grammar, Strictness};
use serde_json::Value;

use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;

const PARAM: &str = "response_format";
const KINDS: [&str; 3] = ["json_object", "json_schema", "text"];
const MAX_NAME: usize = 64;

pub(crate) fn answer_form(format: Option<&Value>) -> ApiResult<AnswerForm> {
    let Some(format) = format.filter(|format| !format.is_null()) else {
        return Ok(AnswerForm::Free);
    };
    let Some(fields) = format.as_object() else {
        return Err(ApiError::invalid_type(PARAM, "an object", type_words(format)));
    };
    match fields.get("type") {
        Some(Value::String(kind)) if kind == "text" => Ok(AnswerForm::Free),
        Some(Value::String(kind)) if kind == "json_object" => Ok(AnswerForm::Object),
        Some(Value::String(kind)) if kind == "json_schema" => {
            json_schema(fields.get("json_schema"))
        }
        Some(Value::String(kind)) => {
            Err(ApiError::unsupported_value(format!("{PARAM}.type"), kind, &KINDS))
        }
        Some(other) => {
            Err(ApiError::invalid_type(format!("{PARAM}.type"), "a string", type_words(other)))
        }
        None => Err(ApiError::missing(format!("{PARAM}.type"))),
    }
}

fn json_schema(given: Option<&Value>) -> ApiResult<AnswerForm> {
    let path = format!("{PARAM}.json_schema");
    let given = given.ok_or_else(|| ApiError::missing(path.as_str()))?;
    let Some(fields) = given.as_object() else {
        return Err(ApiError::invalid_type(path, "an object", type_words(given)));
    };
    let name_path = format!("{path}.name");
    let name = match fields.get("name") {
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(ApiError::invalid_type(name_path, "a string", type_words(other)));
        }
        None => return Err(ApiError::missing(name_path)),
    };
    if name.len() > MAX_NAME {
        return Err(ApiError::too_long(&name_path, MAX_NAME, name.len()));
    }
    let strict = match fields.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(other) => {
            let path = format!("{path}.strict");
            return Err(ApiError::invalid_type(path, "a boolean", type_words(other)));
        }
    };
    let schema = match fields.get("schema") {
        // Without a schema there is nothing to hold to but that it is JSON.
        None | Some(Value::Null) => return Ok(AnswerForm::Object),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => {
            let path = format!("{path}.schema");
            return Err(ApiError::invalid_type(path, "an object", type_words(other)));
        }
    };
    let strictness = if strict { Strictness::Strict } else { Strictness::Lenient };
    match Grammar::of_schema(schema, strictness) {
        Ok(_) => Ok(AnswerForm::Schema { schema: schema.clone(), strict }),
        Err(error) => {
            let at = if error.path.is_empty() { "its root" } else { error.path.as_str() };
            let hint = if strict {
                " Leave it out, or set 'strict' to false to have it passed over."
            } else {
                ""
            };
            let message =
                format!("Invalid schema for response_format '{name}': {error}, at {at}.{hint}");
            Err(ApiError::invalid_value(PARAM, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn formats_become_forms() {
        let of = |format: Value| answer_form(Some(&format)).unwrap();
        assert_eq!(answer_form(None).unwrap(), AnswerForm::Free);
        assert_eq!(of(json!({"type": "text"})), AnswerForm::Free);
        assert_eq!(of(json!({"type": "json_object"})), AnswerForm::Object);
        let schema =
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}});
        let format = |strict: bool| {
            json!({"type": "json_schema", "json_schema":
            {"name": "n", "schema": schema, "strict": strict}})
        };
        assert_eq!(of(format(false)), AnswerForm::Schema { schema: schema.clone(), strict: false });
        let error = answer_form(Some(&format(true))).unwrap_err().envelope().error;
        assert_eq!(
            (error.code.as_deref(), error.param.as_deref()),
            (Some("invalid_value"), Some(PARAM))
        );
        assert!(
            error.message.contains("'pattern'") && error.message.contains("properties.a.pattern")
        );
    }

    #[test]
    fn faulty_formats_are_refused_by_path() {
        for (format, code, param) in [
            (json!("json"), "invalid_type", "response_format"),
            (json!({}), "missing_required_parameter", "response_format.type"),
            (json!({"type": "xml"}), "invalid_value", "response_format.type"),
            (
                json!({"type": "json_schema"}),
                "missing_required_parameter",
                "response_format.json_schema",
            ),
            (
                json!({"type": "json_schema", "json_schema": {"schema": {}}}),
                "missing_required_parameter",
                "response_format.json_schema.name",
            ),
        ] {
            let error = answer_form(Some(&format)).unwrap_err().envelope().error;
            assert_eq!((error.code.as_deref(), error.param.as_deref()), (Some(code), Some(param)));
        }
    }
}
