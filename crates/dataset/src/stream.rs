//! Generated ids to text, piece by piece, never half a character.
//!
//! A token may hold part of a character, so text is held back until it is whole. Vocabularies of
//! bytes (GPT-2's scheme: Llama 3, Qwen, SmolLM) are followed byte by byte, which is exact and
//! takes constant time; others are decoded in a small window.

use std::sync::LazyLock;

use crate::tokenizer::ChatTokenizer;

/// Turns token ids into text; made by [`ChatTokenizer::text_stream`]. Special tokens are left out.
pub struct TextStream<'t> {
    tokenizer: &'t ChatTokenizer,
    /// Bytes that are not yet a whole character (byte-level vocabularies).
    bytes: Vec<u8>,
    /// The ids whose text is not all given out, after one that gives them context (others).
    window: Vec<u32>,
    /// How many of `window` are given out already.
    given: usize,
}

/// Ids that a window may hold back: no character takes more than four bytes.
const MAX_HELD_BACK: usize = 8;

impl<'t> TextStream<'t> {
    pub(crate) fn new(tokenizer: &'t ChatTokenizer) -> Self {
        Self { tokenizer, bytes: Vec::new(), window: Vec::new(), given: 0 }
    }

    /// Goes on after ids whose text is known.
    pub(crate) fn after(tokenizer: &'t ChatTokenizer, ids: &[u32]) -> Self {
        let mut stream = Self::new(tokenizer);
        if !tokenizer.byte_level {
            let is_text = |id: &&u32| tokenizer.special_ids.binary_search(id).is_err();
            stream.window.extend(ids.last().filter(is_text));
            stream.given = stream.window.len();
        }
        stream
    }

    /// Takes the next id; gives the text that became whole with it.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.tokenizer.special_ids.binary_search(&id).is_ok() {
            return None;
        }
        if self.tokenizer.byte_level { self.push_bytes(id) } else { self.push_window(id) }
    }

    /// Gives what is left; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let rest = if self.tokenizer.byte_level {
            String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
        } else {
            let rest = self.window_text();
            self.window.clear();
            self.given = 0;
            rest
        };
        (!rest.is_empty()).then_some(rest)
    }

    fn push_bytes(&mut self, id: u32) -> Option<String> {
        self.bytes.extend(token_bytes(self.tokenizer, id)?);
        let whole = whole_characters(&self.bytes);
        let text = String::from_utf8_lossy(&self.bytes[..whole]).into_owned();
        self.bytes.drain(..whole);
        (!text.is_empty()).then_some(text)
    }

    fn push_window(&mut self, id: u32) -> Option<String> {
        self.window.push(id);
        let text = self.window_text();
        let held_back = self.window.len() - self.given;
        if text.is_empty() || (text.ends_with('\u{fffd}') && held_back < MAX_HELD_BACK) {
            return None;
        }
        // The last piece stays as context: whether a token begins with a space depends on it.
        self.window.drain(..self.given);
        self.given = self.window.len();
        Some(text)
    }

    fn window_text(&self) -> String {
        let decode = |ids: &[u32]| self.tokenizer.tokenizer.decode(ids, true).unwrap_or_default();
        let before = decode(&self.window[..self.given]);
        let all = decode(&self.window);
        all.get(before.len()..).unwrap_or_default().to_owned()
    }
}

/// The bytes of a token that is text.
pub(crate) fn token_bytes(tokenizer: &ChatTokenizer, id: u32) -> Option<Vec<u8>> {
    if tokenizer.special_ids.binary_search(&id).is_ok() {
        return None;
    }
    let token = tokenizer.tokenizer.id_to_token(id)?;
    if tokenizer.byte_level {
        let mapped: Option<Vec<u8>> = token.chars().map(byte_of).collect();
        // Added tokens may hold characters outside the scheme: those stand for themselves.
        return Some(mapped.unwrap_or_else(|| token.into_bytes()));
    }
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        return Some(vec![byte]);
    }
    Some(token.replace('\u{2581}', " ").into_bytes())
}

/// The length of the longest beginning that no further byte can change.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                Some(wrong) => done += error.valid_up_to() + wrong,
                None => return done + error.valid_up_to(),
            },
        }
    }
}

/// The byte that a character of a byte-level token stands for.
fn byte_of(c: char) -> Option<u8> {
    /// GPT-2's scheme: printable bytes stand for themselves, the others for U+0100 and up, in
    /// order.
    static SHIFTED: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..=255).filter(|&byte| !is_printable(byte)).collect());
    match u32::from(c) {
        code @ 0..=255 => u8::try_from(code).ok().filter(|&byte| is_printable(byte)),
        code => SHIFTED.get(code as usize - 256).copied(),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn stream(tokenizer: &ChatTokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.text_stream();
        let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
        pieces.extend(stream.finish());
        pieces
    }

    #[test]
    fn characters_of_several_tokens_come_out_whole() {
        let tokenizer = testing::chat_ml();
        let text = "Grüße 👩‍🚀 – 漢字";
        let ids = tokenizer.encode(text).unwrap().ids;
        assert!(ids.len() > text.chars().count());
        let pieces = stream(&tokenizer, &ids);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn an_unfinished_character_is_flushed_at_the_end() {
        let tokenizer = testing::chat_ml();
        let ids = tokenizer.encode("a漢").unwrap().ids;
        let pieces = stream(&tokenizer, &ids[..ids.len() - 1]);
        assert_eq!(pieces.concat(), "a\u{fffd}");
    }

    #[test]
    fn special_tokens_are_left_out() {
        let tokenizer = testing::chat_ml();
        let ids = tokenizer.encode("a<|im_end|>b").unwrap().ids;
        assert_eq!(tokenizer.decode(&ids), "ab");
    }

    #[test]
    fn ids_outside_the_vocabulary_are_ignored() {
        let tokenizer = testing::chat_ml();
        assert_eq!(tokenizer.decode(&[u32::MAX, 1_000_000]), "");
    }

    #[test]
    fn words_of_a_space_marking_vocabulary_keep_their_spaces() {
        let tokenizer = testing::word_pieces();
        let ids = tokenizer.encode("one two two one").unwrap().ids;
        assert_eq!(ids.len(), 4);
        assert_eq!(stream(&tokenizer, &ids), ["one", " two", " two", " one"]);
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text_of_the_whole(
            ids in proptest::collection::vec(0u32..700, 0..40),
        ) {
            let tokenizer = testing::chat_ml();
            let whole = tokenizer.tokenizer.decode(&ids, true).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids).concat(), whole);
        }
    }
}
