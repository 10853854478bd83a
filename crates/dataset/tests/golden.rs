//! Ids, masks and texts against transformers (`tests/golden/dataset.py` made the fixtures).

use std::path::{Path, PathBuf};

use dataset::{ChatTokenizer, Conversation, Dataset, Example, TokenizerParts};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/dataset").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn tokenizer(template: &str, special_tokens: &Value) -> ChatTokenizer {
    ChatTokenizer::from_parts(TokenizerParts {
        tokenizer_json: &std::fs::read(fixture("tokenizer.json")).unwrap(),
        tokenizer_config_json: Some(special_tokens.to_string().as_bytes()),
        chat_template: Some(
            &std::fs::read_to_string(fixture(&format!("{template}.jinja"))).unwrap(),
        ),
    })
    .unwrap()
}

/// Calls `test` for every case of the fixture, with the tokenizer of its template.
fn for_each(list: &str, test: impl Fn(&ChatTokenizer, &Value)) {
    let fixture = read_json("cases.json");
    for (name, special_tokens) in fixture["special_tokens"].as_object().unwrap() {
        let tokenizer = tokenizer(name, special_tokens);
        let cases = fixture[list].as_array().unwrap();
        let cases: Vec<_> = cases.iter().filter(|case| case["template"] == *name).collect();
        assert!(!cases.is_empty(), "{name}");
        cases.into_iter().for_each(|case| test(&tokenizer, case));
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn example(tokenizer: &ChatTokenizer, case: &Value) -> Example {
    let mut messages = case["messages"].clone();
    for message in messages.as_array_mut().unwrap() {
        // A row of the API names the type of a call's function and gives arguments as a string.
        for call in
            message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
        {
            assert!(call["function"]["arguments"].is_string());
        }
    }
    let row = json!({"messages": messages, "tools": case["tools"]}).to_string();
    let conversation = Conversation::parse(1, &row).unwrap();
    tokenizer.encode_example(&conversation, usize::MAX).unwrap()
}

fn check_mask(tokenizer: &ChatTokenizer, case: &Value) {
    let example = example(tokenizer, case);
    assert_eq!(example.input_ids, ids(&case["ids"]), "{}", case["messages"]);
    let expected: Vec<bool> = list(&case["mask"]).iter().map(|bit| *bit == 1).collect();
    assert_eq!(example.is_target, expected, "{} {}", case["template"], case["messages"]);
}

#[test]
fn rendered_text_is_that_of_transformers() {
    for_each("cases", |tokenizer, case| {
        let text = tokenizer.render(list(&case["messages"]), list(&case["tools"]), false).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap(), "{}", case["template"]);
    });
}

#[test]
fn ids_and_masks_are_those_of_transformers() {
    for_each("cases", check_mask);
}

#[test]
fn prompt_ids_are_those_of_transformers() {
    for_each("cases", |tokenizer, case| {
        let prompt = tokenizer.encode_prompt(list(&case["messages"]), list(&case["tools"]));
        assert_eq!(prompt.unwrap(), ids(&case["prompt_ids"]), "{}", case["template"]);
    });
}

#[test]
fn special_tokens_in_prompts_are_plain_text_as_in_transformers() {
    for_each("prompts", |tokenizer, case| {
        let prompt = tokenizer.encode_prompt(list(&case["messages"]), &[]).unwrap();
        assert_eq!(prompt, ids(&case["prompt_ids"]), "{} {}", case["template"], case["messages"]);
    });
}

#[test]
fn generation_blocks_of_a_template_change_nothing() {
    let fixture = read_json("cases.json");
    let tokenizer = tokenizer("chat_ml_generation", &fixture["special_tokens"]["chat_ml"]);
    let cases = list(&fixture["cases"]).iter().filter(|case| case["template"] == "chat_ml");
    cases.for_each(|case| check_mask(&tokenizer, case));
}

#[test]
fn texts_are_tokenised_as_by_transformers_and_trl() {
    let fixture = read_json("texts.json");
    for case in list(&fixture["cases"]) {
        let mut json = read_json("tokenizer.json");
        json["post_processor"] = case["post_processor"].clone();
        let tokenizer = ChatTokenizer::from_parts(TokenizerParts {
            tokenizer_json: json.to_string().as_bytes(),
            tokenizer_config_json: Some(case["config"].to_string().as_bytes()),
            chat_template: Some("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"),
        })
        .unwrap();
        for (text, expected) in list(&fixture["texts"]).iter().zip(list(&case["ids"])) {
            let text = text.as_str().unwrap();
            let [example] = &tokenizer.encode_text(text, 512).unwrap()[..] else {
                panic!("{text:?} was split")
            };
            assert_eq!(example.input_ids, ids(expected), "{} {text:?}", case["name"]);
            assert_eq!(example.targets(), example.input_ids.len() - 1);
        }
    }
}

#[test]
fn epoch_orders_are_those_of_an_independent_implementation() {
    for case in list(&read_json("orders.json")) {
        let number = |key: &str| case[key].as_u64().unwrap();
        let data = Dataset::new(vec![Example::default(); number("len") as usize]);
        let order = data.epoch_order(number("seed"), number("epoch") as u32);
        assert_eq!(order, ids(&case["order"]), "{case}");
    }
}

#[test]
#[ignore = "needs FINETUNED_SMOLLM2: the folder of an imported SmolLM2-135M-Instruct"]
fn smollm2_is_tokenised_as_by_transformers() {
    let folder = std::env::var_os("FINETUNED_SMOLLM2").expect("FINETUNED_SMOLLM2 names a folder");
    let tokenizer = ChatTokenizer::from_folder(Path::new(&folder)).unwrap();
    let fixture = read_json("smollm2.json");
    for case in list(&fixture["cases"]) {
        check_mask(&tokenizer, case);
        let prompt = tokenizer.encode_prompt(list(&case["messages"]), &[]).unwrap();
        assert_eq!(prompt, ids(&case["prompt_ids"]));
    }
    for case in list(&fixture["prompts"]) {
        let prompt = tokenizer.encode_prompt(list(&case["messages"]), &[]).unwrap();
        assert_eq!(prompt, ids(&case["prompt_ids"]), "{}", case["messages"]);
    }
}
