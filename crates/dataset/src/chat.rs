//! OpenAI's message objects as chat templates expect them.
//!
//! Templates know less than the API: they want content as one string, arguments as objects, and the
//! roles that their model was trained with.

use serde_json::{Map, Value, json};

use crate::error::TemplateError;

/// One message for a template: absent instead of null, text parts joined, `developer` as `system`,
/// `function` as `tool`, calls in today's form with parsed arguments, a refusal as content.
pub(crate) fn for_template(index: usize, message: &Value) -> Result<Value, TemplateError> {
    let Value::Object(message) = message else {
        return Err(TemplateError::Render(format!("message {} is not an object", index + 1)));
    };
    let mut out = Map::new();
    for (key, value) in message {
        match (key.as_str(), value) {
            (_, Value::Null) | ("weight" | "refusal" | "function_call", _) => {}
            ("role", Value::String(role)) => {
                let role = match role.as_str() {
                    "developer" => "system",
                    "function" => "tool",
                    known => known,
                };
                out.insert(key.clone(), role.into());
            }
            ("content", Value::Array(parts)) => {
                out.insert(key.clone(), join_parts(index, parts)?.into());
            }
            ("tool_calls", Value::Array(calls)) => {
                out.insert(key.clone(), calls.iter().map(with_parsed_arguments).collect());
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    if let Some(refusal @ Value::String(_)) = message.get("refusal")
        && !out.contains_key("content")
    {
        out.insert("content".to_owned(), refusal.clone());
    }
    if let Some(call @ Value::Object(_)) = message.get("function_call")
        && !out.contains_key("tool_calls")
    {
        let call = with_parsed_arguments(&json!({"type": "function", "function": call}));
        out.insert("tool_calls".to_owned(), Value::Array(vec![call]));
    }
    Ok(Value::Object(out))
}

fn join_parts(index: usize, parts: &[Value]) -> Result<String, TemplateError> {
    let mut text = String::new();
    for part in parts {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
        match part.get(kind).and_then(Value::as_str) {
            Some(piece) if matches!(kind, "text" | "refusal") => text.push_str(piece),
            _ => {
                let kind = crate::row::short(kind);
                return Err(TemplateError::UnsupportedContent { message: index + 1, kind });
            }
        }
    }
    Ok(text)
}

/// OpenAI carries arguments as a string of JSON; templates print them with `tojson`, which would
/// quote a string a second time.
fn with_parsed_arguments(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(Ok(parsed @ Value::Object(_))) =
            arguments.as_str().map(serde_json::from_str::<Value>)
    {
        *arguments = parsed;
    }
    call
}

/// A call's id as nine letters and digits, the same for the same id.
pub(crate) fn shorten_ids(message: &mut Value) {
    let short = |id: &mut Value| {
        let Some(text) = id.as_str().filter(|text| text.len() != 9) else { return };
        // FNV-1a: ids only have to differ within one conversation.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        *id = format!("{hash:016x}")[..9].into();
    };
    if let Some(id) = message.get_mut("tool_call_id") {
        short(id);
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for id in calls.into_iter().flatten().filter_map(|call| call.get_mut("id")) {
        short(id);
    }
}

/// JSON as Python's `json.dumps` writes it: models have read it so in training.
pub(crate) fn spaced_json(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spaced_json).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| {
                    format!("{}: {}", Value::from(key.as_str()), spaced_json(value))
                })
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// A JSON value as a template sees it.
pub(crate) fn template_value(value: &Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(flag) => minijinja::Value::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => minijinja::Value::from(int),
            (None, Some(int)) => minijinja::Value::from(int),
            (None, None) => minijinja::Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => minijinja::Value::from(text),
        Value::Array(items) => items.iter().map(template_value).collect(),
        Value::Object(map) => minijinja::Value::from_pairs(
            map.iter().map(|(key, value)| (key.as_str(), template_value(value))),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_take_the_shape_that_templates_know() {
        let cases = [
            (
                json!({"role": "developer", "content": "x", "name": null}),
                json!({"role": "system", "content": "x"}),
            ),
            (
                json!({"role": "user", "content": [{"type": "text", "text": "a"},
                    {"type": "text", "text": "b"}]}),
                json!({"role": "user", "content": "ab"}),
            ),
            (
                json!({"role": "assistant", "content": null, "refusal": "no", "weight": 1}),
                json!({"role": "assistant", "content": "no"}),
            ),
            (
                json!({"role": "assistant",
                    "function_call": {"name": "f", "arguments": "{\"a\":1}"}}),
                json!({"role": "assistant", "tool_calls": [
                    {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}),
            ),
            (
                json!({"role": "function", "name": "f", "content": "r"}),
                json!({"role": "tool", "name": "f", "content": "r"}),
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(for_template(0, &given).unwrap(), expected);
        }
    }

    #[test]
    fn arguments_that_are_no_object_stay_text() {
        let call = json!({"function": {"name": "f", "arguments": "not json"}});
        assert_eq!(with_parsed_arguments(&call), call);
    }

    #[test]
    fn images_are_refused_with_the_number_of_the_message() {
        let message = json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]});
        let error = for_template(2, &message).unwrap_err();
        assert_eq!(error.message(), Some(3));
    }
}
