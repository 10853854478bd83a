//! GLEU of one sentence as nltk's `sentence_gleu` has it, over the words of tokenizer 13a: the n-grams of 1 to 4
//! words that both have, against those of the richer text.

use super::{ngrams, tokens};

const ORDER: usize = 4;

pub(super) fn score(input: &str, reference: &str) -> f64 {
    let (input, reference) = (tokens::split_13a(input), tokens::split_13a(reference));
    let (input, reference) = tokens::numbered(&input, &reference);
    let all = |length: usize| (1..=ORDER).map(|n| ngrams::total(length, n)).sum::<usize>();
    let most = all(input.len()).max(all(reference.len()));
    if most == 0 {
        return 0.0;
    }
    let common: usize = (1..=ORDER)
        .map(|n| ngrams::common(&ngrams::count(&input, n), &ngrams::count(&reference, n)))
        .sum();
    common as f64 / most as f64
}
