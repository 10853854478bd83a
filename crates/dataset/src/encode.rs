//! Text to ids: with offsets for the loss mask, and with users' special tokens kept as plain text.
//!
//! A tokenizer holds some hundred bytes per token while it works, so a long text is encoded in
//! pieces: a row of 4 MiB takes tens of megabytes and not more than a gigabyte.

use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
};

use crate::control::{Marks, Piece};
use crate::error::TemplateError;
use crate::tokenizer::ChatTokenizer;

/// Texts up to this length (bytes) are encoded as a whole.
const MAX_WHOLE: usize = 128 << 10;
/// Pieces of longer texts. They end before white space, where the usual vocabularies split anyway;
/// where a piece has none, a token or two may differ from those of the whole.
const PIECE: usize = 32 << 10;

/// Token ids and the bytes of the text that each stands for.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(u32, u32)>,
}

impl ChatTokenizer {
    /// The template writes the special tokens, so the tokenizer adds none.
    pub(crate) fn encode(&self, text: &str) -> Result<Encoded, TemplateError> {
        let mut out = Encoded::default();
        let mut start = 0;
        while start < text.len() {
            let rest = &text[start..];
            let piece = if text.len() <= MAX_WHOLE { rest } else { &rest[..cut(rest)] };
            let encoding = self.tokenizer.encode(piece, false).map_err(failed)?;
            out.ids.extend(encoding.get_ids());
            // Rendered texts are far below 4 GiB (`template::MAX_OUTPUT`).
            let shift = |at: usize| u32::try_from(start + at).unwrap_or(u32::MAX);
            out.offsets.extend(encoding.get_offsets().iter().map(|o| (shift(o.0), shift(o.1))));
            start += piece.len();
        }
        Ok(out)
    }

    /// Encodes a text that was rendered from marked messages.
    pub(crate) fn encode_marked(
        &self,
        text: &str,
        marks: Marks,
    ) -> Result<Vec<u32>, TemplateError> {
        let newline = self.encode("\n")?.ids;
        let mut ids = Vec::new();
        for (index, piece) in marks.cut(text).into_iter().enumerate() {
            // Tokenizers of SentencePiece's kind put a space before a text's beginning, and a piece
            // from the middle has no beginning: a newline takes the space, and is cut off again.
            let encode = |lead: &str| match piece {
                Piece::Usual(text) => Ok(self.encode(&format!("{lead}{text}"))?.ids),
                Piece::Plain(text) => self.encode_plain(&format!("{lead}{text}")),
            };
            if index == 0 {
                ids.extend(encode("")?);
                continue;
            }
            let led = encode("\n")?;
            match led.strip_prefix(newline.as_slice()) {
                Some(rest) => ids.extend(rest),
                None => ids.extend(encode("")?),
            }
        }
        Ok(ids)
    }

    /// Encodes with the special tokens switched off.
    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TemplateError> {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = self.tokenizer.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(failed)?;
        }
        let mut split = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split).map_err(failed)?;
        }
        let model = self.tokenizer.get_model();
        split.tokenize(|part| model.tokenize(part.get())).map_err(failed)?;
        let encoding = split.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        let ids = encoding.get_ids().to_vec();
        if ids.iter().any(|id| self.special_ids.binary_search(id).is_ok()) {
            let what = format!("the special token in '{text}' cannot be written as plain text");
            return Err(TemplateError::Tokenizer(what));
        }
        Ok(ids)
    }
}

fn failed(error: tokenizers::Error) -> TemplateError {
    TemplateError::Tokenizer(error.to_string())
}

/// Where to end the first piece of a text: before white space that follows something else.
fn cut(text: &str) -> usize {
    if text.len() <= PIECE {
        return text.len();
    }
    let mut after_space = true;
    for (at, c) in text[..text.floor_char_boundary(PIECE)].char_indices().rev() {
        let space = c.is_whitespace();
        if after_space && !space {
            let end = at + c.len_utf8();
            if text[end..].starts_with(char::is_whitespace) {
                return end;
            }
        }
        after_space = space;
    }
    text.floor_char_boundary(PIECE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn pieces_end_before_white_space() {
        let text = "some  words\n".repeat(10_000);
        let end = cut(&text);
        assert!(end > PIECE - 20 && end <= PIECE, "{end}");
        assert!(!text[..end].ends_with(char::is_whitespace));
        assert!(text[end..].starts_with(char::is_whitespace));
    }

    #[test]
    fn a_text_without_white_space_is_cut_between_characters() {
        let text = "漢".repeat(50_000);
        assert_eq!(cut(&text), PIECE / 3 * 3);
    }

    #[test]
    fn long_texts_have_the_ids_and_offsets_of_the_whole() {
        let tokenizer = testing::chat_ml();
        let text = "It uses an old  formula,\n\n but 12 émigrés <|im_end|>\nlike it. ".repeat(4000);
        assert!(text.len() > MAX_WHOLE);
        let encoded = tokenizer.encode(&text).unwrap();
        let whole = tokenizer.tokenizer.encode(text.as_str(), false).unwrap();
        assert_eq!(encoded.ids, whole.get_ids());
        let offsets: Vec<_> =
            encoded.offsets.iter().map(|o| (o.0 as usize, o.1 as usize)).collect();
        assert_eq!(offsets, whole.get_offsets());
    }
}
