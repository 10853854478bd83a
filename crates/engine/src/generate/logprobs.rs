//! Log-probabilities of tokens, under the model's own distribution: before temperature, penalties, bias and
//! what the answer must look like. Those of a token wait until the text that begins with it is passed on.

use std::collections::VecDeque;

use dataset::ChatTokenizer;
use domain::engine::{TokenLogprob, TokenText};

/// The log-probability of a token after these logits, and of the `top` most probable ones.
pub fn of_token(tokenizer: &ChatTokenizer, logits: &[f32], token: u32, top: usize) -> TokenLogprob {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - highest).exp()).sum();
    let base = highest + sum.ln();
    let of = |token: u32| f64::from(logits[token as usize]) - base;
    let text = |token| TokenText(tokenizer.token_text(token));
    let top = most_probable(logits, top).into_iter().map(|token| (text(token), of(token)));
    TokenLogprob { token: text(token), logprob: Some(of(token)), top: top.collect() }
}

/// A token before which there is nothing.
pub fn unknown(tokenizer: &ChatTokenizer, token: u32) -> TokenLogprob {
    let token = TokenText(tokenizer.token_text(token));
    TokenLogprob { token, logprob: None, top: Vec::new() }
}

/// The first `count` by probability; of equal ones the lower id comes first.
fn most_probable(logits: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let better =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(order.len());
    if count == 0 {
        return Vec::new();
    }
    order.select_nth_unstable_by(count - 1, better);
    order.truncate(count);
    order.sort_by(better);
    order
}

/// The log-probabilities of one choice that wait for their text.
#[derive(Debug)]
pub struct Pending {
    pub top: usize,
    /// Each with the byte of the answer's text at which its token begins.
    waiting: VecDeque<(usize, TokenLogprob)>,
    /// Bytes of all tokens so far.
    written: usize,
}

impl Pending {
    pub fn new(top: u32) -> Self {
        Self { top: top as usize, waiting: VecDeque::new(), written: 0 }
    }

    pub fn push(&mut self, logprob: TokenLogprob, bytes: usize) {
        self.waiting.push_back((self.written, logprob));
        self.written += bytes;
    }

    /// Those whose text begins before byte `upto`.
    pub fn take(&mut self, upto: usize) -> Vec<TokenLogprob> {
        let count = self.waiting.iter().take_while(|(start, _)| *start < upto).count();
        self.waiting.drain(..count).map(|(_, logprob)| logprob).collect()
    }
}
