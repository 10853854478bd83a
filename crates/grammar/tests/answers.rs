//! Answers that random models give under a grammar: they parse, and satisfy the schema.

use std::sync::Arc;

use grammar::{Function, Grammar, Masks, Matcher, Strictness, Vocabulary};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Every byte, and pieces of several that cross all kinds of borders.
fn tokens() -> Vec<Option<Vec<u8>>> {
    let mut tokens: Vec<Option<Vec<u8>>> = (0..=255u8).map(|byte| Some(vec![byte])).collect();
    let pieces = [
        "{\"", "\":", "\": ", "\",", "\"}", "}}", "},", "[]", "{}", " \"", "\"name\"", "na", "me",
        "true", "false", "null", "12", "0.", "e+", "ö", "漢", "\\n", "\\u00", "\\\"", "]}", "\n  ",
        "tags", "red", "green", "re",
    ];
    tokens.extend(pieces.iter().map(|piece| Some(piece.as_bytes().to_vec())));
    tokens.push(Some(vec![0xe6, 0xbc])); // two bytes of a character of three
    tokens.push(None); // a special token
    tokens
}

/// Writes an answer from random choices; prefers what ends it once it is long. None if it did not end.
fn write(grammar: &Arc<Grammar>, choices: &[u16]) -> Option<String> {
    let tokens = tokens();
    let vocabulary = Vocabulary::new(&tokens);
    let (mut matcher, mut masks) = (Matcher::new(grammar.clone()), Masks::default());
    let mut text = Vec::new();
    let closing: Vec<u32> = "\"}],:0ln".bytes().map(u32::from).collect();
    for (turn, &choice) in choices.iter().enumerate() {
        if matcher.may_end() && (matcher.is_over() || choice % 3 == 0) {
            return Some(String::from_utf8(text).expect("answers are text"));
        }
        let mask = masks.of(&matcher, &vocabulary);
        let fits: Vec<u32> = (0..tokens.len() as u32).filter(|&t| mask.contains(t)).collect();
        assert!(!fits.is_empty(), "a dead end after {}", String::from_utf8_lossy(&text));
        let closes = closing.iter().find(|t| turn > choices.len() / 2 && fits.contains(t));
        let token = closes.copied().unwrap_or(fits[usize::from(choice) % fits.len()]);
        let bytes = tokens[token as usize].as_deref().expect("a token with text");
        assert!(matcher.advance(bytes));
        text.extend_from_slice(bytes);
    }
    None
}

fn grammar(schema: &Value) -> Arc<Grammar> {
    Arc::new(Grammar::of_schema(schema, Strictness::Strict).unwrap())
}

/// Whether exactly these texts are answers.
fn takes(grammar: &Arc<Grammar>, text: &str) -> bool {
    let mut matcher = Matcher::new(grammar.clone());
    matcher.advance(text.as_bytes()) && matcher.may_end()
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "colour": {"enum": ["red", "green", "reddish", 7, 71]},
            "tags": {"type": "array", "items": {"type": ["string", "null"]}, "minItems": 1, "maxItems": 2},
            "inner": {"anyOf": [{"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
                                {"type": "boolean"}]},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

fn satisfies(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    let known = ["name", "age", "colour", "tags", "inner"];
    object.keys().all(|key| known.contains(&key.as_str()))
        && value["name"].is_string()
        && (value["age"].is_i64() || value["age"].is_u64() || value["age"].is_number())
        && value["tags"].as_array().is_some_and(|tags| {
            (1..=2).contains(&tags.len()) && tags.iter().all(|t| t.is_string() || t.is_null())
        })
        && object.get("colour").is_none_or(|c| {
            json!(["red", "green", "reddish", 7, 71]).as_array().unwrap().contains(c)
        })
        && object.get("inner").is_none_or(|i| i.is_boolean() || i["x"].is_number())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_answers_satisfy_the_schema(choices in proptest::collection::vec(any::<u16>(), 400)) {
        if let Some(text) = write(&grammar(&person()), &choices) {
            let value: Value = serde_json::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
            prop_assert!(satisfies(&value), "{}", text);
        }
    }

    #[test]
    fn random_objects_parse(choices in proptest::collection::vec(any::<u16>(), 300)) {
        if let Some(text) = write(&Arc::new(Grammar::object()), &choices) {
            let value: Result<Value, _> = serde_json::from_str(&text);
            prop_assert!(value.is_ok_and(|value| value.is_object()), "{}", text);
        }
    }

    #[test]
    fn a_mask_holds_exactly_what_can_be_taken(choices in proptest::collection::vec(any::<u16>(), 0..60)) {
        let (tokens, grammar) = (tokens(), grammar(&person()));
        let vocabulary = Vocabulary::new(&tokens);
        let (mut matcher, mut masks) = (Matcher::new(grammar), Masks::default());
        for choice in choices {
            let mask = masks.of(&matcher, &vocabulary);
            for (token, bytes) in tokens.iter().enumerate() {
                let takes = bytes.as_ref().is_some_and(|bytes| matcher.clone().advance(bytes));
                prop_assert_eq!(mask.contains(token as u32), takes);
            }
            let fits: Vec<usize> = (0..tokens.len()).filter(|&t| mask.contains(t as u32)).collect();
            let Some(&token) = fits.get(usize::from(choice) % fits.len().max(1)) else { break };
            matcher.advance(tokens[token].as_ref().unwrap());
        }
    }
}

#[test]
fn what_the_schema_says_is_held_to() {
    let person = grammar(&person());
    for good in [
        r#"{"name":"a","age":3,"tags":["x"]}"#,
        "{ \"tags\": [null, \"\\u00e9\\n\"],\n  \"age\": -0, \"name\": \"漢\" }",
        r#"{"age":1,"colour":71,"name":"","inner":{"x":1e-3},"tags":["a"]}"#,
        r#"{"age":1,"colour":"reddish","name":"","inner":true,"tags":["a"]}"#,
    ] {
        assert!(takes(&person, good), "{good}");
    }
    for bad in [
        r#"{"name":"a","age":3}"#,
        r#"{"name":"a","age":3.5,"tags":["x"]}"#,
        r#"{"name":"a","age":03,"tags":["x"]}"#,
        r#"{"name":"a","name":"b","age":3,"tags":["x"]}"#,
        r#"{"name":"a","age":3,"tags":[]}"#,
        r#"{"name":"a","age":3,"tags":["x","y","z"]}"#,
        r#"{"name":"a","age":3,"tags":["x"],"more":1}"#,
        r#"{"name":"a","age":3,"tags":["x"],"colour":"re"}"#,
        r#"{"name":"a","age":3,"tags":["x"]} "#,
        r#"{"name":"a","age":3,"tags":["x"],}"#,
        r#"{"name":"\ud800","age":3,"tags":["x"]}"#,
        "[]",
    ] {
        assert!(!takes(&person, bad), "{bad}");
    }
}

#[test]
fn schemas_may_refer_to_themselves() {
    let tree = grammar(&json!({
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "required": ["children"],
            "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}},
    }));
    assert!(takes(&tree, r#"{"children":[{"children":[]},{"children":[]}]}"#));
    assert!(!takes(&tree, r#"{"children":[{}]}"#));
}

#[test]
fn what_cannot_be_held_to_is_named() {
    let refused = |schema: Value| {
        let error = Grammar::of_schema(&schema, Strictness::Strict).unwrap_err();
        (error.path, error.message)
    };
    for (schema, path, word) in [
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}),
            "properties.a.pattern",
            "pattern",
        ),
        (json!({"oneOf": [{"type": "string"}]}), "oneOf", "oneOf"),
        (json!({"type": "text"}), "type", "text"),
        (json!({"$ref": "#/nowhere"}), "$ref", "#/nowhere"),
        (json!({"$ref": "other.json"}), "$ref", "other.json"),
        (json!({"$ref": "#"}), "$ref", "itself"),
        (json!({"anyOf": [{"$ref": "#"}, {"type": "null"}]}), "$ref", "itself"),
        (json!({"enum": []}), "enum", "at least one"),
        (json!({"type": "object", "properties": {}, "required": ["a"]}), "required", "'a'"),
        (json!([]), "", "object"),
    ] {
        let (at, message) = refused(schema.clone());
        assert!(at == path && message.contains(word), "{schema}: {at}: {message}");
    }
    for odd in [json!({"type": "text"}), json!({"$ref": "#/nowhere"}), json!({"required": ["a"]})] {
        assert!(Grammar::of_schema(&odd, Strictness::Lenient).is_ok(), "{odd}");
    }
    let lenient = json!({"type": "string", "pattern": "x"});
    let lenient = Arc::new(Grammar::of_schema(&lenient, Strictness::Lenient).unwrap());
    assert!(takes(&lenient, "\"y\""));
}

#[test]
fn a_call_is_of_a_known_function_with_its_arguments() {
    let [a, b] = [
        json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}),
        json!({}),
    ];
    let function =
        |name, parameters| Function { name, parameters, strictness: Strictness::Lenient };
    let functions =
        [function("add", Some(&a)), function("address", Some(&b)), function("open", None)];
    let calls = Arc::new(Grammar::call(&functions, "arguments").unwrap());
    assert!(takes(&calls, r#"{"name": "add", "arguments": {"x": 1}}"#));
    assert!(takes(&calls, r#"{"name": "open", "arguments": {"y": [1]}}"#));
    assert!(!takes(&calls, r#"{"name": "add", "arguments": {"y": 1}}"#));
    assert!(!takes(&calls, r#"{"name": "ad", "arguments": {}}"#));
    assert!(!takes(&calls, r#"{"arguments": {"x": 1}, "name": "add"}"#));
    let or = Arc::new(Grammar::object().or_text("<tool_call>"));
    assert!(takes(&or, "<tool_call>") && takes(&or, "{}") && !takes(&or, "<tool_call>{}"));
}

#[test]
fn endless_answers_end() {
    let any = Arc::new(Grammar::of_schema(&json!({}), Strictness::Strict).unwrap());
    let mut matcher = Matcher::new(any);
    assert!(!matcher.advance("[".repeat(10_000).as_bytes()));
    assert!(!matcher.advance(" ".repeat(10_000).as_bytes()));
    assert!(matcher.advance(b"[ 1"));
}
