//! Tokenizers for unit tests: the small fixture of `tests/golden/dataset`, with any template.

use crate::tokenizer::{ChatTokenizer, TokenizerParts};

const TOKENIZER: &[u8] = include_bytes!("../../../tests/golden/dataset/tokenizer.json");
const CONFIG: &[u8] = include_bytes!("../../../tests/golden/dataset/tokenizer_config.json");
const CHAT_ML: &str = include_str!("../../../tests/golden/dataset/chat_ml.jinja");

pub(crate) fn chat_ml() -> ChatTokenizer {
    with_template(CHAT_ML)
}

pub(crate) fn with_template(source: &str) -> ChatTokenizer {
    ChatTokenizer::from_parts(TokenizerParts {
        tokenizer_json: TOKENIZER,
        tokenizer_config_json: Some(CONFIG),
        chat_template: Some(source),
    })
    .unwrap()
}

/// A vocabulary that marks spaces as SentencePiece does.
pub(crate) fn word_pieces() -> ChatTokenizer {
    let space = serde_json::json!(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let token = |id: u32, text: &str| {
        serde_json::json!({"id": id, "content": text, "special": true, "single_word": false,
                           "lstrip": false, "rstrip": false, "normalized": false})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [token(3, "</s>")],
        "pre_tokenizer": space,
        "decoder": space,
        "model": {"type": "WordLevel", "unk_token": "?",
                  "vocab": {"?": 0, "▁one": 1, "▁two": 2, "</s>": 3}},
    });
    ChatTokenizer::from_parts(TokenizerParts {
        tokenizer_json: json.to_string().as_bytes(),
        tokenizer_config_json: Some(br#"{"eos_token": "</s>"}"#),
        chat_template: Some("{% for m in messages %}{{ m.content }}</s>{% endfor %}"),
    })
    .unwrap()
}
