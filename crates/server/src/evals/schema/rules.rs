//! The keywords of a schema that look at one value and at no other schema.

use serde_json::Value;

use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;

const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "string", "integer"];

/// What a keyword that needs no other schema says against a value.
pub(super) fn plain_fault(key: &str, rule: &Value, value: &Value) -> Option<String> {
    let number = value.as_f64();
    let bound = rule.as_f64();
    let below = |have: Option<f64>, what: &str| {
        let (have, least) = (have?, bound?);
        (have < least).then(|| format!("{what} {have}, and the least is {least}"))
    };
    let above = |have: Option<f64>, what: &str| {
        let (have, most) = (have?, bound?);
        (have > most).then(|| format!("{what} {have}, and the most is {most}"))
    };
    let characters = || value.as_str().map(|text| text.chars().count() as f64);
    let items = || value.as_array().map(|items| items.len() as f64);
    let properties = || value.as_object().map(|fields| fields.len() as f64);
    match key {
        "type" if !has_type(value, rule) => {
            let words = match rule {
                Value::String(word) => word.clone(),
                other => other.to_string(),
            };
            Some(format!("expected {words}, got {}", type_words(value)))
        }
        "const" if !equal(rule, value) => Some(format!("must be {}", short(rule))),
        "enum" if !rule.as_array().is_some_and(|all| all.iter().any(|one| equal(one, value))) => {
            Some(format!("must be one of {}", short(rule)))
        }
        "minimum" => below(number, "is"),
        "maximum" => above(number, "is"),
        "exclusiveMinimum" if number.zip(bound).is_some_and(|(n, least)| n <= least) => {
            Some(format!("must be above {rule}"))
        }
        "exclusiveMaximum" if number.zip(bound).is_some_and(|(n, most)| n >= most) => {
            Some(format!("must be below {rule}"))
        }
        "multipleOf" if number.zip(bound).is_some_and(|(n, unit)| !is_multiple(n, unit)) => {
            Some(format!("must be a multiple of {rule}"))
        }
        "minLength" => below(characters(), "characters:"),
        "maxLength" => above(characters(), "characters:"),
        "minItems" => below(items(), "items:"),
        "maxItems" => above(items(), "items:"),
        "minProperties" => below(properties(), "properties:"),
        "maxProperties" => above(properties(), "properties:"),
        _ => None,
    }
}

fn has_type(value: &Value, rule: &Value) -> bool {
    let is = |word: &str| match word {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        _ => value.as_f64().is_some_and(|number| number.fract() == 0.0),
    };
    match rule {
        Value::String(word) => is(word),
        Value::Array(words) => words.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

/// Equality of JSON, where 1 is 1.0.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

fn is_multiple(number: f64, unit: f64) -> bool {
    let ratio = number / unit;
    (ratio - ratio.round()).abs() <= 1e-9 * ratio.abs().max(1.0)
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

pub(super) fn check_types(value: &Value, path: &str) -> ApiResult<()> {
    let word = |value: &Value| match value {
        Value::String(word) if TYPES.contains(&word.as_str()) => Ok(()),
        Value::String(word) => Err(ApiError::unsupported_value(path, word, &TYPES)),
        other => Err(ApiError::invalid_type(path, "a string", type_words(other))),
    };
    match value {
        Value::Array(words) => words.iter().try_for_each(word),
        one => word(one),
    }
}

pub(super) fn check_names(value: &Value, path: &str) -> ApiResult<()> {
    match value.as_array().map(|names| names.iter().all(Value::is_string)) {
        Some(true) => Ok(()),
        _ => Err(ApiError::invalid_type(path, "an array of strings", type_words(value))),
    }
}
