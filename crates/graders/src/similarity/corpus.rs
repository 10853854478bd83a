//! BLEU and chrF of many answers together as sacrebleu's `corpus_bleu` and `corpus_chrf` have them with their
//! defaults, from 0 to 100 as it prints them: counts are summed over all answers before anything is divided.

use std::collections::HashMap;

use super::{ngrams, tokens};

/// Of words, in BLEU.
const WORDS: usize = 4;
/// Of characters, in chrF.
const CHARACTERS: usize = 6;
/// What chrF's recall weighs against its precision, squared.
const BETA_SQUARED: f64 = 4.0;

/// BLEU of (answer, reference): tokenizer 13a, n-grams up to 4, exponential smoothing.
pub fn bleu<'t>(pairs: impl IntoIterator<Item = (&'t str, &'t str)>) -> f64 {
    let (mut correct, mut total) = ([0; WORDS], [0; WORDS]);
    let (mut length, mut wanted) = (0, 0);
    for (answer, reference) in pairs {
        let (answer, reference) = (tokens::split_13a(answer), tokens::split_13a(reference));
        let (answer, reference) = tokens::numbered(&answer, &reference);
        for n in 1..=WORDS {
            let both = (ngrams::count(&answer, n), ngrams::count(&reference, n));
            correct[n - 1] += ngrams::common(&both.0, &both.1);
            total[n - 1] += ngrams::total(answer.len(), n);
        }
        length += answer.len();
        wanted += reference.len();
    }
    // An order that no answer is long enough for has no precision, and the mean over all four is none.
    if correct.iter().all(|count| *count == 0) || total.contains(&0) {
        return 0.0;
    }
    let mut smoothing = 1.0;
    let logarithms = correct.into_iter().zip(total).map(|(correct, total)| {
        let precision = if correct == 0 {
            smoothing *= 2.0;
            1.0 / (smoothing * total as f64)
        } else {
            correct as f64 / total as f64
        };
        precision.ln()
    });
    let mean = logarithms.sum::<f64>() / WORDS as f64;
    let brevity = if length < wanted { (1.0 - wanted as f64 / length as f64).exp() } else { 1.0 };
    100.0 * brevity * mean.exp()
}

/// chrF2 of (answer, reference): n-grams of up to 6 characters, without spaces.
pub fn chrf<'t>(pairs: impl IntoIterator<Item = (&'t str, &'t str)>) -> f64 {
    let mut sums = [[0usize; 3]; CHARACTERS];
    for (answer, reference) in pairs {
        let (answer, reference) = (letters(answer), letters(reference));
        for (i, sums) in sums.iter_mut().enumerate() {
            let (of_answer, of_reference) = (runs(&answer, i + 1), runs(&reference, i + 1));
            // Where the reference has none, those of the answer are not held against it.
            if !of_reference.is_empty() {
                sums[0] += of_answer.values().sum::<usize>();
            }
            sums[1] += of_reference.values().sum::<usize>();
            let common = |(run, count): (&&[char], &usize)| {
                of_reference.get(run).map_or(0, |other| *count.min(other))
            };
            sums[2] += of_answer.iter().map(common).sum::<usize>();
        }
    }
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for [of_answer, of_reference, common] in sums {
        if of_answer > 0 && of_reference > 0 {
            precision += common as f64 / of_answer as f64;
            recall += common as f64 / of_reference as f64;
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}

fn letters(text: &str) -> Vec<char> {
    text.chars().filter(|c| !tokens::is_space(*c)).collect()
}

fn runs(letters: &[char], n: usize) -> HashMap<&[char], usize> {
    let mut counts = HashMap::new();
    for run in letters.windows(n) {
        *counts.entry(run).or_insert(0) += 1;
    }
    counts
}
