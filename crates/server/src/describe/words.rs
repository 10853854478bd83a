//! Closed sets of words. A field's comment names them once, and so do errors and people's documentation:
//! "Always `file`." and "`asc` or `desc`." at the beginning of a comment become the schema's `enum`.

use serde_json::Value;

/// Gives every text, property or parameter, whose description begins with its words the set of them.
pub(super) fn close(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            let Some(Value::String(text)) = fields.get("description").cloned() else { return };
            let Some(words) = words(&text) else { return };
            match fields.get_mut("schema") {
                Some(Value::Object(schema)) => restrict(schema, words),
                Some(_) => {}
                None => restrict(fields, words),
            }
        }
        _ => {}
    }
}

fn restrict(schema: &mut serde_json::Map<String, Value>, words: Vec<&str>) {
    let Some(kind) = schema.get("type") else { return };
    let is_nullable = kind.as_array().is_some_and(|kinds| kinds.iter().any(|word| word == "null"));
    let is_text = kind == "string" || is_nullable && kind[0] == "string";
    if !is_text {
        return;
    }
    let mut values: Vec<Value> = words.into_iter().map(Value::from).collect();
    if is_nullable {
        values.push(Value::Null);
    }
    schema.insert("enum".to_owned(), values.into());
}

fn words(description: &str) -> Option<Vec<&str>> {
    let mut rest = description.strip_prefix("Always ").unwrap_or(description);
    let mut words = Vec::new();
    loop {
        let (word, after) = rest.strip_prefix('`')?.split_once('`')?;
        words.push(word);
        if after.starts_with('.') {
            return Some(words);
        }
        rest = after.strip_prefix(", ").or_else(|| after.strip_prefix(" or "))?;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_comments_that_begin_with_all_words_close_a_set() {
        assert_eq!(words("Always `file`."), Some(vec!["file"]));
        assert_eq!(words("`a`, `b` or `c`. Not `d`."), Some(vec!["a", "b", "c"]));
        for open in ["One of `a` or `b`.", "`a`; null: none.", "`a`, parentheses.", "", "`a"] {
            assert_eq!(words(open), None, "{open}");
        }
        let mut schema = json!({"type": ["string", "null"], "description": "`a` or `b`."});
        close(&mut schema);
        assert_eq!(schema["enum"], json!(["a", "b", null]));
        let mut number = json!({"type": "integer", "description": "Always `1`."});
        close(&mut number);
        assert_eq!(number.get("enum"), None);
    }
}
