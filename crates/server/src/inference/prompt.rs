//! A chat request's body → what an engine understands: plain messages and sampling options, all
//! checked.

use std::collections::BTreeMap;

use domain::engine::Sampling;
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::wire::completion::CreateCompletion;

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
const MAX_CHOICES: i64 = 128;
const MAX_STOPS: usize = 4;
const MAX_TOP_LOGPROBS: i64 = 20;
const MAX_BIAS: f64 = 100.0;

/// The messages as a chat template reads them: `developer` is `system`, content is one text.
pub(crate) fn messages(request: &CreateCompletion) -> ApiResult<Vec<Value>> {
    checked(&request.messages)
}

/// The same for the messages of any request.
pub(crate) fn checked(messages: &[Value]) -> ApiResult<Vec<Value>> {
    if messages.is_empty() {
        return Err(ApiError::Parameter {
            code: Some("empty_array"),
            param: "messages".to_owned(),
            message: "Invalid 'messages': empty array. Expected an array with minimum length 1, \
                      but got an empty array instead."
                .to_owned(),
        });
    }
    messages.iter().enumerate().map(|(i, m)| message(m, &format!("messages[{i}]"))).collect()
}

fn message(message: &Value, path: &str) -> ApiResult<Value> {
    let Some(fields) = message.as_object() else {
        return Err(ApiError::invalid_type(path, "an object", type_words(message)));
    };
    let role_path = format!("{path}.role");
    let role = match fields.get("role") {
        None => return Err(ApiError::missing(role_path)),
        Some(Value::String(role)) => role.as_str(),
        Some(other) => {
            return Err(ApiError::invalid_type(role_path, "a string", type_words(other)));
        }
    };
    if !ROLES.contains(&role) {
        return Err(ApiError::unsupported_value(role_path, role, &ROLES));
    }
    let has_call = |key: &str| fields.get(key).is_some_and(|call| !call.is_null());
    let may_be_empty =
        role == "assistant" && ["tool_calls", "function_call", "refusal"].into_iter().any(has_call);
    let content_path = format!("{path}.content");
    let content = match fields.get("content") {
        None | Some(Value::Null) if may_be_empty => None,
        None => return Err(ApiError::missing(content_path)),
        Some(content) => Some(text(content, &content_path)?),
    };
    let role = if role == "developer" { "system" } else { role };
    let mut plain = Map::new();
    plain.insert("role".to_owned(), Value::from(role));
    if let Some(content) = content {
        plain.insert("content".to_owned(), Value::from(content));
    }
    let others = fields.iter().filter(|(key, _)| *key != "role" && *key != "content");
    plain.extend(others.map(|(key, value)| (key.clone(), value.clone())));
    Ok(Value::Object(plain))
}

/// The text of a message's content: a string, or text parts joined without anything between.
fn text(content: &Value, path: &str) -> ApiResult<String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            parts.iter().enumerate().map(|(i, p)| part(p, &format!("{path}[{i}]"))).collect()
        }
        other => Err(ApiError::invalid_type(
            path,
            "one of a string or array of objects",
            type_words(other),
        )),
    }
}

fn part<'a>(part: &'a Value, path: &str) -> ApiResult<&'a str> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    let key = match kind {
        "text" | "refusal" => kind,
        "image_url" | "input_audio" | "file" => {
            let message = format!(
                "Invalid content type at '{path}': this model reads text only, not '{kind}'."
            );
            return Err(ApiError::invalid_value(path, message));
        }
        other => {
            let path = format!("{path}.type");
            return Err(ApiError::unsupported_value(path, other, &["text", "refusal"]));
        }
    };
    match part.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => {
            Err(ApiError::invalid_type(format!("{path}.{key}"), "a string", type_words(other)))
        }
        None => Err(ApiError::missing(format!("{path}.{key}"))),
    }
}

/// The sampling options, checked against OpenAI's ranges.
pub(crate) fn sampling(request: &CreateCompletion) -> ApiResult<Sampling> {
    let limit = request.max_completion_tokens.or(request.max_tokens);
    let limit_name = match request.max_completion_tokens {
        Some(_) => "max_completion_tokens",
        None => "max_tokens",
    };
    let max_tokens =
        limit.map(|limit| integer(limit_name, limit, 0, i64::from(u32::MAX))).transpose()?;
    Ok(Sampling {
        temperature: decimal("temperature", request.temperature, 0.0, 2.0, 1.0)?,
        top_p: decimal("top_p", request.top_p, 0.0, 1.0, 1.0)?,
        // A negative seed is as good as any: only equality matters.
        seed: request.seed.map(i64::cast_unsigned),
        max_tokens: max_tokens.map(|limit| limit as u32),
        stop: stop(request.stop.as_ref())?,
        frequency_penalty: decimal("frequency_penalty", request.frequency_penalty, -2.0, 2.0, 0.0)?,
        presence_penalty: decimal("presence_penalty", request.presence_penalty, -2.0, 2.0, 0.0)?,
        n: integer("n", request.n.unwrap_or(1), 1, MAX_CHOICES)? as u32,
        logit_bias: logit_bias(request.logit_bias.as_ref())?,
        logprobs: logprobs(request)?,
    })
}

fn logprobs(request: &CreateCompletion) -> ApiResult<Option<u32>> {
    let wanted = request.logprobs.unwrap_or(false);
    match request.top_logprobs {
        None => Ok(wanted.then_some(0)),
        Some(top) => {
            let top = integer("top_logprobs", top, 0, MAX_TOP_LOGPROBS)?;
            if !wanted {
                let message = "Invalid 'top_logprobs': it needs 'logprobs' to be true.";
                return Err(ApiError::invalid_value("top_logprobs", message));
            }
            Ok(Some(top as u32))
        }
    }
}

fn logit_bias(bias: Option<&BTreeMap<String, f64>>) -> ApiResult<Vec<(u32, f32)>> {
    let pairs = bias.into_iter().flatten().map(|(token, &bias)| {
        let path = format!("logit_bias.{token}");
        let bias = decimal(&path, Some(bias), -MAX_BIAS, MAX_BIAS, 0.0)?;
        let id: u32 = token.parse().map_err(|_| {
            let message = format!("Invalid key in 'logit_bias': '{token}'. Keys are token ids.");
            ApiError::invalid_value("logit_bias", message)
        })?;
        Ok((id, bias as f32))
    });
    pairs.collect()
}

fn stop(stop: Option<&Value>) -> ApiResult<Vec<String>> {
    const EXPECTED: &str = "one of a string or array of strings";
    let texts = match stop {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(i, item)| {
                item.as_str().map(str::to_owned).ok_or_else(|| {
                    ApiError::invalid_type(format!("stop[{i}]"), "a string", type_words(item))
                })
            })
            .collect::<ApiResult<_>>()?,
        Some(other) => return Err(ApiError::invalid_type("stop", EXPECTED, type_words(other))),
    };
    if texts.len() > MAX_STOPS {
        return Err(ApiError::Parameter {
            code: Some("array_above_max_length"),
            param: "stop".to_owned(),
            message: format!(
                "Invalid 'stop': array too long. Expected an array with maximum length \
                 {MAX_STOPS}, but got an array with length {} instead.",
                texts.len()
            ),
        });
    }
    if texts.iter().any(String::is_empty) {
        let message = "Invalid 'stop': an empty string would stop every answer at once.";
        return Err(ApiError::invalid_value("stop", message));
    }
    Ok(texts)
}

/// `value` when it lies in `least..=most`, else OpenAI's refusal.
pub(crate) fn integer(param: &str, value: i64, least: i64, most: i64) -> ApiResult<i64> {
    let (code, side, sign, bound) = if value < least {
        ("integer_below_min_value", "below minimum", ">=", least)
    } else if value > most {
        ("integer_above_max_value", "above maximum", "<=", most)
    } else {
        return Ok(value);
    };
    let message = format!(
        "Invalid '{param}': integer {side} value. Expected a value {sign} {bound}, but got \
         {value} instead."
    );
    Err(ApiError::Parameter { code: Some(code), param: param.to_owned(), message })
}

fn decimal(param: &str, value: Option<f64>, least: f64, most: f64, default: f64) -> ApiResult<f64> {
    let value = value.unwrap_or(default);
    let (code, side, sign, bound) = if value < least {
        ("decimal_below_min_value", "below minimum", ">=", least)
    } else if value > most {
        ("decimal_above_max_value", "above maximum", "<=", most)
    } else {
        return Ok(value);
    };
    let message = format!(
        "Invalid '{param}': decimal {side} value. Expected a value {sign} {bound}, but got \
         {value} instead."
    );
    Err(ApiError::Parameter { code: Some(code), param: param.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(mut body: Value) -> CreateCompletion {
        let fields = body.as_object_mut().unwrap();
        fields.entry("model").or_insert(json!("m"));
        fields.entry("messages").or_insert(json!([{"role": "user", "content": "hi"}]));
        serde_json::from_value(body).unwrap()
    }

    fn refused<T>(result: ApiResult<T>) -> (String, String) {
        let Err(error) = result else { panic!("accepted") };
        let body = error.envelope().error;
        (body.code.unwrap(), body.param.unwrap())
    }

    #[test]
    fn content_parts_become_one_text_and_developer_becomes_system() {
        let request = request(json!({"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
        ]}));
        assert_eq!(
            messages(&request).unwrap(),
            vec![
                json!({"role": "system", "content": "Be brief."}),
                json!({"role": "user", "content": "ab"}),
                json!({"role": "assistant", "tool_calls": [{"id": "1"}]}),
            ]
        );
    }

    #[test]
    fn bad_messages_are_refused_by_path() {
        let of = |message: Value| refused(messages(&request(json!({"messages": [message]}))));
        let expect = |code: &str, param: &str| (code.to_owned(), param.to_owned());
        assert_eq!(of(json!("hi")), expect("invalid_type", "messages[0]"));
        assert_eq!(
            of(json!({"content": "x"})),
            expect("missing_required_parameter", "messages[0].role")
        );
        assert_eq!(
            of(json!({"role": "robot", "content": "x"})),
            expect("invalid_value", "messages[0].role")
        );
        assert_eq!(
            of(json!({"role": "user"})),
            expect("missing_required_parameter", "messages[0].content")
        );
        assert_eq!(
            of(json!({"role": "user", "content": null})),
            expect("invalid_type", "messages[0].content")
        );
        assert_eq!(
            of(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
            expect("invalid_value", "messages[0].content[0]")
        );
        assert_eq!(
            refused(messages(&request(json!({"messages": []})))),
            expect("empty_array", "messages")
        );
    }

    #[test]
    fn sampling_has_openais_defaults_and_ranges() {
        assert_eq!(sampling(&request(json!({}))).unwrap(), Sampling::default());
        let both = request(json!({"max_tokens": 5, "max_completion_tokens": 7, "stop": "\n"}));
        let both = sampling(&both).unwrap();
        assert_eq!((both.max_tokens, both.stop), (Some(7), vec!["\n".to_owned()]));
        for (field, value, code) in [
            ("temperature", json!(2.1), "decimal_above_max_value"),
            ("top_p", json!(-0.1), "decimal_below_min_value"),
            ("n", json!(0), "integer_below_min_value"),
            ("max_tokens", json!(-1), "integer_below_min_value"),
            ("stop", json!(["a", "b", "c", "d", "e"]), "array_above_max_length"),
            ("stop", json!(5), "invalid_type"),
            ("top_logprobs", json!(21), "integer_above_max_value"),
            ("top_logprobs", json!(2), "invalid_value"),
            ("logit_bias", json!({"x": 1}), "invalid_value"),
        ] {
            let refusal = refused(sampling(&request(json!({field: value}))));
            assert_eq!(refusal, (code.to_owned(), field.to_owned()));
        }
    }
}
