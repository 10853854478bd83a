//! The highest token id of a `tokenizer.json`, without keeping its vocabulary in memory: these
//! files have tens of megabytes, and as a JSON tree many times that.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

#[derive(Deserialize)]
struct Tokenizer {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Model {
    vocab: AfterHighest,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
}

/// One more than the highest id, over the model's vocabulary and the added tokens.
///
/// # Errors
/// Text that is not a tokenizer in JSON, with line and column.
pub fn after(tokenizer_json: &str) -> Result<u64, serde_json::Error> {
    let tokenizer: Tokenizer = serde_json::from_str(tokenizer_json)?;
    let added = tokenizer.added_tokens.iter().map(|token| u64::from(token.id) + 1).max();
    Ok(tokenizer.model.vocab.0.max(added.unwrap_or(0)))
}

/// Read from a map of token → id (BPE, WordPiece) or from a list of pieces (Unigram).
struct AfterHighest(u64);

impl<'de> Deserialize<'de> for AfterHighest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Vocabulary).map(Self)
    }
}

struct Vocabulary;

impl<'de> Visitor<'de> for Vocabulary {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary (a map of ids, or a list)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
        let mut after = 0;
        while let Some((_, id)) = map.next_entry::<IgnoredAny, u32>()? {
            after = after.max(u64::from(id) + 1);
        }
        Ok(after)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pieces: A) -> Result<u64, A::Error> {
        let mut count = 0;
        while pieces.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::after;

    #[test]
    fn the_highest_id_is_found_in_every_form() {
        let map = r#"{"model":{"vocab":{"a":0,"b":7,"c":3}}}"#;
        assert_eq!(after(map).unwrap(), 8);
        let added = r#"{"added_tokens":[{"id":9,"content":"x"}],"model":{"vocab":{"a":0}}}"#;
        assert_eq!(after(added).unwrap(), 10);
        assert_eq!(after(r#"{"model":{"vocab":[["a",-1.0],["b",-2.0]]}}"#).unwrap(), 2);
        assert!(after(r#"{"model":{"vocab":{"a":-1}}}"#).is_err());
        assert!(after(r#"{"model":{}}"#).is_err());
    }
}
