//! BLEU of one sentence as sacrebleu's `sentence_bleu` has it, from 0 to 1: tokenizer 13a, n-grams up to 4,
//! exponential smoothing, effective order.

use super::{ngrams, tokens};

const ORDER: usize = 4;

pub(super) fn score(input: &str, reference: &str) -> f64 {
    let (input, reference) = (tokens::split_13a(input), tokens::split_13a(reference));
    let (input, reference) = tokens::numbered(&input, &reference);
    let correct: Vec<usize> = (1..=ORDER)
        .map(|n| ngrams::common(&ngrams::count(&input, n), &ngrams::count(&reference, n)))
        .collect();
    if correct.iter().all(|count| *count == 0) {
        return 0.0;
    }
    let mut smoothing = 1.0;
    let (mut logarithms, mut order) = (0.0, 0);
    for (n, correct) in (1..).zip(correct) {
        let total = ngrams::total(input.len(), n) as f64;
        if total == 0.0 {
            break;
        }
        order = n;
        let precision = if correct == 0 {
            smoothing *= 2.0;
            1.0 / (smoothing * total)
        } else {
            correct as f64 / total
        };
        logarithms += precision.ln();
    }
    let brevity = if input.len() < reference.len() {
        (1.0 - reference.len() as f64 / input.len() as f64).exp()
    } else {
        1.0
    };
    brevity * (logarithms / order as f64).exp()
}
