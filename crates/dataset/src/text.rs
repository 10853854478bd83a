//! Rows of plain text (`{"text": "…"}`), for continued pre-training: every token after the first is a
//! target.
//!
//! A row becomes what the model's tokenizer makes of a text (with the token that begins texts, where the
//! model has one) and the end-of-text token. A row that is longer than a sequence may be becomes several,
//! so that every token of it is predicted once: a later piece begins as a text does, and with the last
//! token of the piece before it, which is only its context. Special tokens in the text are refused
//! elsewhere (`inspect.rs`).

use serde_json::{Map, Value};

use crate::error::TemplateError;
use crate::mask::Example;
use crate::message::name_of_type;
use crate::problem::{Problem, ProblemList, code};
use crate::row::check_keys;
use crate::tokenizer::ChatTokenizer;

pub(crate) const KEY: &str = "text";

/// What the model's tokenizer puts around a text.
#[derive(Debug, Default)]
pub(crate) struct TextEnds {
    /// Mostly nothing or one token.
    pub start: Vec<u32>,
    pub end: u32,
}

/// Checks a row; None when it has a fault.
pub(crate) fn read_text(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<String> {
    check_keys(line, &row, &[KEY], "", problems);
    let (code, message) = match row.remove(KEY) {
        Some(Value::String(text)) if !text.trim().is_empty() => {
            return problems.is_empty().then_some(text);
        }
        Some(Value::String(_)) => {
            (code::MISSING_CONTENT, format!("Example {line} key '{KEY}' is empty"))
        }
        Some(other) => {
            let found = name_of_type(&other);
            let message = format!("Example {line} key '{KEY}' is {found}, but must be a string");
            (code::DATA_TYPE, message)
        }
        None => (code::MISSING_KEY, format!("Example {line} is missing key '{KEY}'.")),
    };
    problems.push(Problem::of_line(code, line, message).at(KEY));
    None
}

impl ChatTokenizer {
    /// Turns a text into sequences of at most `max_tokens` tokens each. The [full lengths](Example::full_len)
    /// of the pieces add up to the tokens of the whole.
    pub fn encode_text(
        &self,
        text: &str,
        max_tokens: usize,
    ) -> Result<Vec<Example>, TemplateError> {
        let TextEnds { start, end } = &self.text_ends;
        let mut ids = self.encode(text)?.ids;
        ids.push(*end);
        // The start, one token of context and one to predict must fit.
        let start = if start.len() + 2 <= max_tokens { start.as_slice() } else { &[] };
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < ids.len() {
            let context = &ids[done.saturating_sub(1)..done];
            let lead = start.len() + context.len();
            let take = max_tokens.saturating_sub(lead).clamp(1, ids.len() - done);
            let input_ids = [start, context, &ids[done..done + take]].concat();
            // The row's own first token has nothing before it that could predict it.
            let is_target = (0..input_ids.len()).map(|at| at >= lead.max(1)).collect();
            let full_len = if done == 0 { input_ids.len() } else { take };
            pieces.push(Example { input_ids, is_target, truncated: false, full_len });
            done += take;
        }
        Ok(pieces)
    }

    /// As transformers does it: what the configuration says outright counts, else what the tokenizer
    /// itself puts before a text.
    pub(crate) fn learn_text_ends(&mut self, config: &Value) {
        let id_of = |name: &str| {
            let (_, text) = self.special_tokens.iter().find(|(known, _)| known == name)?;
            self.tokenizer.token_to_id(text)
        };
        let flag = |name: &str| config.get(name).and_then(Value::as_bool);
        let start = match (flag("add_bos_token"), flag("add_eos_token")) {
            (None, None) => self.own_start(),
            (Some(true), _) => id_of("bos_token").into_iter().collect(),
            _ => Vec::new(),
        };
        let end = id_of("eos_token").or(self.stop_ids().first().copied());
        self.text_ends = TextEnds { start, end: end.unwrap_or_default() };
    }

    fn own_start(&self) -> Vec<u32> {
        const PROBE: &str = "a";
        let ids = |special: bool| {
            self.tokenizer.encode(PROBE, special).map(|e| e.get_ids().to_vec()).unwrap_or_default()
        };
        let (whole, bare) = (ids(true), ids(false));
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare);
        whole[..at.unwrap_or(0)].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing;

    fn read(row: &Value) -> (Option<String>, Vec<(&'static str, String)>) {
        let mut problems = ProblemList::new(usize::MAX);
        let text = read_text(3, row.as_object().unwrap().clone(), &mut problems);
        let found = problems.kept.into_iter().map(|p| (p.code, p.path.unwrap_or_default()));
        (text, found.collect())
    }

    #[test]
    fn a_row_is_a_text_and_nothing_else() {
        assert_eq!(read(&json!({"text": " a\n"})), (Some(" a\n".to_owned()), Vec::new()));
        for (row, code, path) in [
            (json!({"text": ""}), code::MISSING_CONTENT, "text"),
            (json!({"text": " \n"}), code::MISSING_CONTENT, "text"),
            (json!({"text": ["a"]}), code::DATA_TYPE, "text"),
            (json!({"text": null}), code::DATA_TYPE, "text"),
            (json!({"text": "a", "source": "b"}), code::UNRECOGNIZED_KEY, "source"),
        ] {
            assert_eq!(read(&row), (None, vec![(code, path.to_owned())]), "{row}");
        }
    }

    #[test]
    fn every_token_after_the_first_is_a_target() {
        let tokenizer = testing::chat_ml();
        let [example] = &tokenizer.encode_text("one two", 100).unwrap()[..] else { panic!() };
        let mut expected = tokenizer.encode("one two").unwrap().ids;
        expected.push(tokenizer.tokenizer.token_to_id("<|im_end|>").unwrap());
        assert_eq!(example.input_ids, expected);
        assert_eq!(example.targets(), expected.len() - 1);
        assert!(!example.is_target[0]);
    }

    /// Tokens of the row in the order in which the pieces predict them, the first one included.
    fn predicted(pieces: &[Example], start: &[u32]) -> Vec<u32> {
        let mut all = vec![pieces[0].input_ids[0]];
        for (index, piece) in pieces.iter().enumerate() {
            assert!(piece.input_ids.starts_with(start));
            if index > 0 {
                // What only gives context was the end of the piece before.
                assert_eq!(Some(&piece.input_ids[start.len()]), pieces[index - 1].input_ids.last());
            }
            let targets = piece.input_ids.iter().zip(&piece.is_target);
            all.extend(targets.filter(|(_, target)| **target).map(|(id, _)| id));
        }
        all
    }

    #[test]
    fn pieces_of_a_long_text_lose_and_repeat_no_target() {
        let mut tokenizer = testing::chat_ml();
        let text = "The quick brown fox jumps over the lazy dog, 12 times.";
        for start in [vec![], vec![3]] {
            tokenizer.text_ends.start = start.clone();
            let whole = tokenizer.encode_text(text, usize::MAX).unwrap();
            assert_eq!(whole.len(), 1);
            let whole = &whole[0];
            for max_tokens in 3 + start.len()..=whole.input_ids.len() {
                let pieces = tokenizer.encode_text(text, max_tokens).unwrap();
                assert!(pieces.iter().all(|piece| piece.input_ids.len() <= max_tokens));
                assert_eq!(predicted(&pieces, &start), whole.input_ids, "{max_tokens}");
                let lengths: usize = pieces.iter().map(|piece| piece.full_len).sum();
                assert_eq!(lengths, whole.input_ids.len());
            }
        }
    }

    #[test]
    fn the_configuration_decides_about_the_first_token() {
        let mut tokenizer = testing::chat_ml();
        let mut start_of = |config: Value| {
            tokenizer.learn_text_ends(&config);
            tokenizer.text_ends.start.len()
        };
        assert_eq!(start_of(json!({})), 0);
        assert_eq!(start_of(json!({"add_bos_token": true})), 1);
        assert_eq!(start_of(json!({"add_bos_token": false})), 0);
        assert_eq!(start_of(json!({"add_eos_token": true})), 0);
    }
}
