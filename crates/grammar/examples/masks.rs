//! What masks cost over a real vocabulary: `cargo run --example masks -- TOKENS.json`, where the file is a list of
//! the tokens' bytes in hexadecimal, null for special tokens. Walks an answer of some length as a sampler would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use grammar::{Grammar, Masks, Matcher, Strictness, Vocabulary};
use serde_json::{Value, json};

const ANSWER: &str = r#"{
  "title": "Der Fuchs und die Trauben – eine Fabel von Äsop \"neu erzählt\"",
  "year": 1843, "rating": 4.25, "in_print": true,
  "tags": ["fable", "fox", "grapes", "moral: sour, if out of reach"],
  "editions": [{"publisher": "Insel", "pages": 31}, {"publisher": "Reclam", "pages": 64}],
  "summary": "A fox sees high-hanging grapes and tries to reach them, again and again; at last he walks away."
}"#;

fn main() {
    let path = std::env::args().nth(1).expect("the file of tokens");
    let list: Vec<Option<String>> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let bytes = |hex: &String| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    };
    let tokens: Vec<Option<Vec<u8>>> = list.iter().map(|hex| hex.as_ref().map(bytes)).collect();
    let began = Instant::now();
    let vocabulary = Vocabulary::new(&tokens);
    println!("{} tokens, arranged in {:.1?}", tokens.len(), began.elapsed());
    let schema = json!({"type": "object", "properties": {
        "title": {"type": "string"}, "year": {"type": "integer"}, "rating": {"type": "number"},
        "in_print": {"type": "boolean"}, "tags": {"type": "array", "items": {"type": "string"}},
        "editions": {"type": "array", "items": {"type": "object", "required": ["publisher"],
            "properties": {"publisher": {"type": "string"}, "pages": {"type": "integer"}}}},
        "summary": {"type": "string"}}, "required": ["title", "summary"]});
    for (name, grammar) in [
        ("any object", Grammar::object()),
        ("a schema", Grammar::of_schema(&schema, Strictness::Strict).unwrap()),
    ] {
        walk(name, &Arc::new(grammar), &tokens, &vocabulary);
    }
}

fn walk(name: &str, grammar: &Arc<Grammar>, tokens: &[Option<Vec<u8>>], vocabulary: &Vocabulary) {
    let (mut matcher, mut masks) = (Matcher::new(grammar.clone()), Masks::default());
    let mut rest = ANSWER.as_bytes();
    let mut times: Vec<Duration> = Vec::new();
    while !rest.is_empty() {
        let fits =
            tokens.iter().flatten().filter(|token| !token.is_empty() && rest.starts_with(token));
        let token = fits.max_by_key(|token| token.len()).expect("every byte is a token").clone();
        let began = Instant::now();
        let mask = masks.of(&matcher, vocabulary);
        assert!(matcher.advance(&token));
        times.push(began.elapsed());
        assert!(!mask.is_empty());
        rest = &rest[token.len()..];
    }
    assert!(matcher.is_over());
    let _: Value = serde_json::from_str(ANSWER).unwrap();
    let total: Duration = times.iter().sum();
    times.sort();
    println!(
        "{name}: {} tokens, mean {:.3} ms, median {:.3} ms, slowest {:.3} ms",
        times.len(),
        total.as_secs_f64() * 1e3 / times.len() as f64,
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() - 1].as_secs_f64() * 1e3,
    );
}
