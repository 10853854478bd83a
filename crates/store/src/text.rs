//! Text from outside, made fit for Postgres, which cannot hold the zero character.

use std::borrow::Cow;

use serde_json::Value;

/// Longest text of an event or an error, in characters.
const MESSAGE_LIMIT: usize = 10_000;

/// Without zero characters.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

/// Without zero characters, and not endless.
pub(crate) fn clean_message(text: &str) -> String {
    let cut = text.char_indices().nth(MESSAGE_LIMIT).map(|(end, _)| &text[..end]);
    match cut {
        Some(cut) => format!("{} …", clean(cut)),
        None => clean(text).into_owned(),
    }
}

/// Every string and key without zero characters.
pub(crate) fn clean_json(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(text).into_owned()),
        Value::Array(items) => items.iter().map(clean_json).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (clean(key).into_owned(), clean_json(value))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_characters_are_replaced_everywhere() {
        let value = serde_json::json!({"a\0": ["x\0y", 1, null]});
        assert_eq!(clean_json(&value), serde_json::json!({"a\u{fffd}": ["x\u{fffd}y", 1, null]}));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let message = clean_message(&"ä".repeat(MESSAGE_LIMIT + 5));
        assert_eq!(message.chars().count(), MESSAGE_LIMIT + 2);
        assert_eq!(clean_message("short"), "short");
    }
}
