//! `tokenizer.json`, `tokenizer_config.json` and the chat template from the keys of a GGUF file,
//! for byte-level BPE (`tokenizer.ggml.model` = `gpt2`).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::gguf_config::GgufConfig;
use super::{CHAT_TEMPLATE, ImportError, TOKENIZER, TOKENIZER_CONFIG, write_json, write_text};
use crate::gguf::{GgufError, GgufFile};

/// Values of `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How text is split before BPE.
#[derive(Debug, Clone, Copy)]
enum PreTokenizer {
    /// GPT-2's regular expression.
    Gpt2,
    /// Every digit alone, then GPT-2's.
    DigitsThenGpt2,
}

/// The names of pre-tokenizers in GGUF files.
const PRE_TOKENIZERS: &[(&str, PreTokenizer)] = &[
    ("default", PreTokenizer::Gpt2),
    ("gpt-2", PreTokenizer::Gpt2),
    ("smollm", PreTokenizer::DigitsThenGpt2),
];

pub struct GgufTokenizer {
    tokenizer: Value,
    config: Value,
    chat_template: Option<String>,
}

impl GgufTokenizer {
    pub fn write(&self, folder: &Path) -> Result<(), ImportError> {
        write_json(folder, TOKENIZER, &self.tokenizer)?;
        write_json(folder, TOKENIZER_CONFIG, &self.config)?;
        match &self.chat_template {
            Some(template) => write_text(folder, CHAT_TEMPLATE, template),
            None => Ok(()),
        }
    }
}

pub fn read(file: &GgufFile, config: &GgufConfig) -> Result<GgufTokenizer, ImportError> {
    let pre_tokenizer = pre_tokenizer(file)?;
    let vocabulary = Vocabulary::read(file, config)?;
    let merges = merges(file, &vocabulary)?;
    let flag = |name: &str| file.boolean(&format!("tokenizer.ggml.{name}"));
    let add_bos = flag("add_bos_token")?.unwrap_or(false);
    let add_eos = flag("add_eos_token")?.unwrap_or(false);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": vocabulary.post_processor(add_bos, add_eos),
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary.to_json(),
            "merges": merges,
        },
    });
    let chat_template = file.text("tokenizer.chat_template")?.map(str::to_owned);
    let mut tokenizer_config = vocabulary.config(config.max_positions, add_bos, add_eos);
    if let Some(template) = &chat_template {
        tokenizer_config.insert("chat_template".into(), json!(template));
    }
    Ok(GgufTokenizer { tokenizer, config: Value::Object(tokenizer_config), chat_template })
}

fn pre_tokenizer(file: &GgufFile) -> Result<Value, ImportError> {
    let model = required(file.text("tokenizer.ggml.model")?, file, "tokenizer.ggml.model")?;
    if model != "gpt2" {
        let what = format!("the tokenizer {model:?} (tokenizer.ggml.model; \"gpt2\" is)");
        return Err(ImportError::unsupported(file.path(), what));
    }
    let name = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let found = PRE_TOKENIZERS.iter().find(|(known, _)| *known == name);
    match found.map(|(_, kind)| kind) {
        Some(PreTokenizer::Gpt2) => Ok(byte_level()),
        Some(PreTokenizer::DigitsThenGpt2) => Ok(json!({
            "type": "Sequence",
            "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level()],
        })),
        None => {
            let known: Vec<&str> = PRE_TOKENIZERS.iter().map(|(known, _)| *known).collect();
            let known = known.join(", ");
            let what = format!("the pre-tokenizer {name:?} (tokenizer.ggml.pre; known: {known})");
            Err(ImportError::unsupported(file.path(), what))
        }
    }
}

fn byte_level() -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    })
}

fn required<T>(value: Option<T>, file: &GgufFile, key: &str) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::MissingKey { path: file.path().into(), key: key.into() })
}

/// Texts, kinds and roles of all tokens, by id.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
    id_of: HashMap<&'a str, usize>,
    /// `bos_token` and so on with the id.
    roles: Vec<(&'static str, usize)>,
    end_of_turn: Option<usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile, config: &GgufConfig) -> Result<Self, ImportError> {
        let invalid = |reason: String| ImportError::invalid(file.path(), reason);
        let key = "tokenizer.ggml.tokens";
        let tokens = required(file.texts(key)?, file, key)?;
        let rows = config.spec.vocab_size;
        if tokens.len() > rows {
            let count = tokens.len();
            return Err(invalid(format!("{count} tokens but the embedding has {rows} rows")));
        }
        let mut id_of = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = id_of.insert(*token, id) {
                return Err(invalid(format!("tokens {other} and {id} are both {token:?}")));
            }
        }
        let kinds = match file.integers("tokenizer.ggml.token_type")? {
            Some(kinds) if kinds.len() != tokens.len() => {
                let (kinds, tokens) = (kinds.len(), tokens.len());
                return Err(invalid(format!("{kinds} token types for {tokens} tokens")));
            }
            Some(kinds) => kinds,
            None => vec![1; tokens.len()],
        };
        let check = |name: &'static str, id: Option<u64>| match id.map(usize::try_from) {
            None => Ok(None),
            Some(Ok(id)) if id < tokens.len() => Ok(Some((name, id))),
            Some(_) => Err(invalid(format!("the id of the {name} is not in the vocabulary"))),
        };
        let ids = &config.tokens;
        let roles = [
            check("bos_token", ids.bos)?,
            check("eos_token", ids.eos)?,
            check("unk_token", ids.unknown)?,
            check("pad_token", ids.padding)?,
        ];
        let roles = roles.into_iter().flatten().collect();
        let end_of_turn = check("end-of-turn token", ids.eot)?.map(|(_, id)| id);
        Ok(Self { tokens, kinds, id_of, roles, end_of_turn })
    }

    fn is_special(&self, id: usize) -> bool {
        matches!(self.kinds[id], CONTROL | UNKNOWN)
            || self.end_of_turn == Some(id)
            || self.roles.iter().any(|&(_, role)| role == id)
    }

    /// Tokens that are found in text before it is split: special ones, and user-defined ones.
    fn added(&self) -> impl Iterator<Item = (usize, Value)> {
        (0..self.tokens.len()).filter_map(|id| {
            let special = self.is_special(id);
            (special || self.kinds[id] == USER_DEFINED).then(|| {
                let content = self.tokens[id];
                let token = json!({
                    "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                });
                (id, token)
            })
        })
    }

    fn added_tokens(&self) -> Vec<Value> {
        let with_id = |(id, token): (usize, Value)| {
            let mut entry = Map::from_iter([("id".to_owned(), json!(id))]);
            if let Value::Object(fields) = token {
                entry.extend(fields);
            }
            Value::Object(entry)
        };
        self.added().map(with_id).collect()
    }

    fn to_json(&self) -> Map<String, Value> {
        let pairs = self.tokens.iter().enumerate();
        pairs.map(|(id, token)| ((*token).to_owned(), json!(id))).collect()
    }

    fn role(&self, name: &str) -> Option<usize> {
        self.roles.iter().find(|(role, _)| *role == name).map(|&(_, id)| id)
    }

    /// Adds the begin or end token to every text, if the file asks for it.
    fn post_processor(&self, add_bos: bool, add_eos: bool) -> Value {
        let bos = self.role("bos_token").filter(|_| add_bos);
        let eos = self.role("eos_token").filter(|_| add_eos);
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let special = |id: usize, sequence: u8| {
            let token = self.tokens[id];
            json!({ "SpecialToken": { "id": token, "type_id": sequence } })
        };
        let around = |name: &str, sequence: u8| {
            let text = json!({ "Sequence": { "id": name, "type_id": sequence } });
            let parts = [bos.map(|id| special(id, sequence)), Some(text)];
            let end = eos.map(|id| special(id, sequence));
            parts.into_iter().chain([end]).flatten().collect::<Vec<Value>>()
        };
        let tokens = bos.iter().chain(&eos).map(|&id| {
            let token = self.tokens[id];
            (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }))
        });
        let pair = [around("A", 0), around("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": tokens.collect::<Map<String, Value>>(),
        })
    }

    fn config(&self, max_length: u64, add_bos: bool, add_eos: bool) -> Map<String, Value> {
        let decoder = self.added().map(|(id, token)| (id.to_string(), token));
        let mut config = Map::from_iter([
            // The class that takes tokenizer.json as it is.
            ("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast")),
            ("model_max_length".to_owned(), json!(max_length)),
            ("add_prefix_space".to_owned(), json!(false)),
            ("add_bos_token".to_owned(), json!(add_bos)),
            ("add_eos_token".to_owned(), json!(add_eos)),
            ("clean_up_tokenization_spaces".to_owned(), json!(false)),
            ("added_tokens_decoder".to_owned(), Value::Object(decoder.collect())),
        ]);
        for &(name, id) in &self.roles {
            config.insert(name.to_owned(), json!(self.tokens[id]));
        }
        config
    }
}

/// The merges as pairs, each part of which must be a token (a tokenizer would not load otherwise).
fn merges(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Vec<Value>, ImportError> {
    let key = "tokenizer.ggml.merges";
    let merges = required(file.texts(key)?, file, key)?;
    let known = |token: &str| vocabulary.id_of.contains_key(token);
    let pair = |merge: &&str| {
        // Byte-level tokens have no spaces: the only one is between the two parts.
        let pair = merge.split_once(' ');
        match pair {
            Some((left, right))
                if known(left) && known(right) && known(&format!("{left}{right}")) =>
            {
                Ok(json!([left, right]))
            }
            _ => Err(ImportError::invalid(
                file.path(),
                format!("the merge {merge:?} does not join two tokens of the vocabulary"),
            )),
        }
    };
    merges.iter().map(pair).collect()
}
