//! Special tokens as text: finding them in what users wrote, and keeping them text.
//!
//! A user who writes `<|im_end|>` must not end a turn. In training rows such text is refused; in
//! prompts each occurrence is wrapped in two private-use characters before rendering, so that the
//! encoder can tell it from the tokens that the template itself writes (transformers calls the same
//! scheme `sanitize_control_tokens`).

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

/// Two characters that occur in no text of a conversation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub open: char,
    pub close: char,
}

/// A part of a rendered text.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece<'t> {
    /// Encoded as usual: its special tokens come from the template.
    Usual(&'t str),
    /// Text that a user wrote and that spells a special token.
    Plain(&'t str),
}

/// The texts of a tokenizer's special tokens.
pub(crate) struct ControlTokens {
    finder: Option<AhoCorasick>,
}

impl ControlTokens {
    pub fn new(texts: &[String]) -> Result<Self, String> {
        if texts.is_empty() {
            return Ok(Self { finder: None });
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|error| error.to_string())?;
        Ok(Self { finder: Some(finder) })
    }

    /// The first special token that `text` spells.
    pub fn find<'t>(&self, text: &'t str) -> Option<&'t str> {
        Some(&text[self.finder.as_ref()?.find(text)?.range()])
    }

    /// The first special token in any string of `value`, keys included.
    pub fn find_in<'v>(&self, value: &'v Value) -> Option<&'v str> {
        match value {
            Value::String(text) => self.find(text),
            Value::Array(items) => items.iter().find_map(|item| self.find_in(item)),
            Value::Object(map) => {
                map.iter().find_map(|(key, item)| self.find(key).or_else(|| self.find_in(item)))
            }
            _ => None,
        }
    }

    /// `value` with every special token in its strings wrapped in marks.
    pub fn mark(&self, value: &Value, marks: Marks) -> Value {
        match value {
            Value::String(text) => self.mark_text(text, marks).into(),
            Value::Array(items) => items.iter().map(|item| self.mark(item, marks)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, item)| (self.mark_text(key, marks), self.mark(item, marks)))
                .collect(),
            other => other.clone(),
        }
    }

    fn mark_text(&self, text: &str, marks: Marks) -> String {
        let Some(finder) = &self.finder else { return text.to_owned() };
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        for found in finder.find_iter(text) {
            out.push_str(&text[done..found.start()]);
            out.push(marks.open);
            out.push_str(&text[found.range()]);
            out.push(marks.close);
            done = found.end();
        }
        out.push_str(&text[done..]);
        out
    }
}

impl Marks {
    /// The first pair of private-use characters that none of the values contains.
    pub fn absent_from(values: &[&[Value]]) -> Option<Self> {
        let pairs = (0xf0000..0xf1000).step_by(2).filter_map(|code| {
            Some(Self { open: char::from_u32(code)?, close: char::from_u32(code + 1)? })
        });
        pairs.into_iter().find(|marks| {
            let free = |text: &str| !text.contains([marks.open, marks.close]);
            values.iter().all(|list| list.iter().all(|value| every_string(value, &free)))
        })
    }

    /// Cuts a rendered text at its marks. Marks that a template has separated are dropped, and
    /// still part the text, so that nothing can join into a special token.
    pub fn cut<'t>(self, text: &'t str) -> Vec<Piece<'t>> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find([self.open, self.close]) {
            if at > 0 {
                pieces.push(Piece::Usual(&rest[..at]));
            }
            let opened = rest[at..].starts_with(self.open);
            rest = &rest[at + self.open.len_utf8()..];
            if opened
                && let Some(end) = rest.find([self.open, self.close])
                && rest[end..].starts_with(self.close)
            {
                pieces.push(Piece::Plain(&rest[..end]));
                rest = &rest[end + self.close.len_utf8()..];
            }
        }
        if !rest.is_empty() {
            pieces.push(Piece::Usual(rest));
        }
        pieces
    }
}

fn every_string(value: &Value, test: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(items) => items.iter().all(|item| every_string(item, test)),
        Value::Object(map) => map.iter().all(|(key, item)| test(key) && every_string(item, test)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokens() -> ControlTokens {
        ControlTokens::new(&["<s>".to_owned(), "<|end|>".to_owned(), "<|end|>x".to_owned()])
            .unwrap()
    }

    const MARKS: Marks = Marks { open: '\u{f0000}', close: '\u{f0001}' };

    #[test]
    fn finds_tokens_in_nested_strings_and_keys() {
        let tokens = tokens();
        assert_eq!(tokens.find_in(&json!({"a": [1, "b <s> c"]})), Some("<s>"));
        assert_eq!(tokens.find_in(&json!({"<|end|>": 1})), Some("<|end|>"));
        assert_eq!(tokens.find_in(&json!({"a": ["< s>", null]})), None);
    }

    #[test]
    fn marked_tokens_come_back_as_plain_pieces() {
        let marked = tokens().mark(&json!("a<s>b<|end|>x"), MARKS);
        let pieces = MARKS.cut(marked.as_str().unwrap());
        let expected =
            [Piece::Usual("a"), Piece::Plain("<s>"), Piece::Usual("b"), Piece::Plain("<|end|>x")];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn separated_marks_part_the_text() {
        let text = "a\u{f0000}b\u{f0000}c\u{f0001}d\u{f0001}e\u{f0000}f";
        let expected = [
            Piece::Usual("a"),
            Piece::Usual("b"),
            Piece::Plain("c"),
            Piece::Usual("d"),
            Piece::Usual("e"),
            Piece::Usual("f"),
        ];
        assert_eq!(MARKS.cut(text), expected);
    }

    #[test]
    fn marks_are_characters_that_no_string_has() {
        let values = [json!("x\u{f0000}"), json!({"\u{f0003}": 1})];
        let marks = Marks::absent_from(&[&values]).unwrap();
        assert_eq!(marks.open, '\u{f0004}');
    }
}
