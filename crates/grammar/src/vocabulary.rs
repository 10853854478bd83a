//! A machine's state → the tokens that may come next.
//!
//! Tokens are walked in the order of their bytes, so that what a beginning has led to serves all that share
//! it, and a beginning that breaks skips them all. Inside a string nearly every token fits, whatever the
//! grammar: those are known once for all, and only the others are tried. Masks are kept by state, because
//! an answer meets the same state again and again.

use std::collections::HashMap;
use std::rc::Rc;

use crate::frame::{Frame, StringAt, StringStep};
use crate::machine::{Matcher, Thread};

/// Masks that are kept per answer: each takes an eighth of a byte per token.
const MOST_KEPT: usize = 256;

/// The bytes of a tokenizer's tokens, arranged once per model.
#[derive(Debug)]
pub struct Vocabulary {
    /// Tokens of a vocabulary, those without text included.
    len: usize,
    /// Tokens with text, in the order of their bytes.
    sorted: Vec<Entry>,
    bytes: Vec<u8>,
    /// Tokens that leave a string where it stands: whole characters, none with a meaning.
    plain: Mask,
    /// Places in `sorted` of the others.
    odd: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    token: u32,
    start: u32,
    len: u16,
}

/// A set of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask(Vec<u64>);

impl Mask {
    fn none(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn insert(&mut self, token: u32) {
        self.0[token as usize / 64] |= 1 << (token % 64);
    }

    pub fn contains(&self, token: u32) -> bool {
        self.0.get(token as usize / 64).is_some_and(|bits| bits & (1 << (token % 64)) != 0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    /// One bit per token, the lowest first.
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// The same with these tokens too.
    pub fn with(&self, tokens: &[u32]) -> Self {
        let mut mask = self.clone();
        for &token in tokens {
            if let Some(bits) = mask.0.get_mut(token as usize / 64) {
                *bits |= 1 << (token % 64);
            }
        }
        mask
    }
}

impl Vocabulary {
    /// The text of each token by its id; none for those that are no text (special tokens).
    pub fn new(tokens: &[Option<Vec<u8>>]) -> Self {
        let text = |token: u32| tokens[token as usize].as_deref().unwrap_or_default();
        let mut order: Vec<u32> = (0..tokens.len() as u32)
            .filter(|token| (1..=usize::from(u16::MAX)).contains(&text(*token).len()))
            .collect();
        order.sort_unstable_by_key(|token| (text(*token), *token));
        let (mut sorted, mut bytes) = (Vec::with_capacity(order.len()), Vec::new());
        let (mut plain, mut odd) = (Mask::none(tokens.len()), Vec::new());
        for (place, &token) in order.iter().enumerate() {
            let text = text(token);
            sorted.push(Entry { token, start: bytes.len() as u32, len: text.len() as u16 });
            bytes.extend_from_slice(text);
            if is_plain(text) {
                plain.insert(token);
            } else {
                odd.push(place as u32);
            }
        }
        Self { len: tokens.len(), sorted, bytes, plain, odd }
    }

    fn text(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.start as usize..][..usize::from(entry.len)]
    }

    fn mask(&self, matcher: &Matcher) -> Mask {
        if matcher.threads.iter().any(takes_plain_text) {
            let mut mask = self.plain.clone();
            self.walk(matcher, self.odd.iter().map(|&place| place as usize), &mut mask);
            return mask;
        }
        let mut mask = Mask::none(self.len);
        self.walk(matcher, 0..self.sorted.len(), &mut mask);
        mask
    }

    /// Adds those of the entries (in order) that fit.
    fn walk(&self, matcher: &Matcher, places: impl Iterator<Item = usize>, mask: &mut Mask) {
        // `reached[n]` is what the first n bytes of the entry in hand lead to.
        let mut reached: Vec<Vec<Thread>> = vec![matcher.threads.clone()];
        let mut before: &[u8] = &[];
        let mut broken = usize::MAX;
        for place in places {
            let entry = &self.sorted[place];
            let text = self.text(entry);
            let shared = before.iter().zip(text).take_while(|(a, b)| a == b).count();
            before = text;
            if shared > broken {
                // It begins with what has broken already.
                continue;
            }
            broken = usize::MAX;
            reached.truncate(shared + 1);
            for at in reached.len() - 1..text.len() {
                let after = matcher.after(&reached[at], text[at]);
                if after.is_empty() {
                    broken = at;
                    break;
                }
                reached.push(after);
            }
            if broken == usize::MAX {
                mask.insert(entry.token);
            }
        }
    }
}

/// Whether any text without quotes, backslashes and control characters may follow.
fn takes_plain_text(thread: &Thread) -> bool {
    matches!(
        thread.stack.last(),
        Some(Frame::String(StringAt::Free) | Frame::Key { text: StringAt::Free, free: true, .. })
    )
}

fn is_plain(text: &[u8]) -> bool {
    let mut at = StringAt::Free;
    for &byte in text {
        match at.next(byte) {
            StringStep::Stays(StringAt::Backslash) | StringStep::Ends | StringStep::Breaks => {
                return false;
            }
            StringStep::Stays(next) => at = next,
        }
    }
    at == StringAt::Free
}

/// The masks of one answer.
#[derive(Debug, Default)]
pub struct Masks {
    kept: HashMap<Vec<Thread>, Rc<Mask>>,
}

impl Masks {
    /// The tokens that may come next.
    pub fn of(&mut self, matcher: &Matcher, vocabulary: &Vocabulary) -> Rc<Mask> {
        if let Some(mask) = self.kept.get(&matcher.threads) {
            return mask.clone();
        }
        if self.kept.len() >= MOST_KEPT {
            self.kept.clear();
        }
        let mask = Rc::new(vocabulary.mask(matcher));
        self.kept.insert(matcher.threads.clone(), mask.clone());
        mask
    }
}
