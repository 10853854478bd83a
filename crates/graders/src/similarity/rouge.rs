//! ROUGE as rouge-score has it, without its stemmer: the F-measure of common n-grams, or of the longest common
//! subsequence of words.

use super::{ngrams, subsequence, tokens};

pub(super) fn of_ngrams(n: usize, input: &str, reference: &str) -> f64 {
    let (input, reference) = words(input, reference);
    let common = ngrams::common(&ngrams::count(&input, n), &ngrams::count(&reference, n));
    let total = |words: &[u32]| ngrams::total(words.len(), n);
    f_measure(common, total(&input), total(&reference))
}

pub(super) fn of_subsequence(input: &str, reference: &str) -> f64 {
    let (input, reference) = words(input, reference);
    f_measure(subsequence::longest_common(&input, &reference), input.len(), reference.len())
}

fn words(input: &str, reference: &str) -> (Vec<u32>, Vec<u32>) {
    tokens::numbered(&tokens::split_alphanumeric(input), &tokens::split_alphanumeric(reference))
}

fn f_measure(common: usize, of_input: usize, of_reference: usize) -> f64 {
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) =
        (common as f64 / of_input as f64, common as f64 / of_reference as f64);
    2.0 * precision * recall / (precision + recall)
}
