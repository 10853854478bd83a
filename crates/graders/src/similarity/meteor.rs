//! METEOR as nltk's `meteor_score` has it with no WordNet, over the words of tokenizer 13a: words are matched
//! exactly, then by their stems; synonyms are not known.

use std::collections::HashMap;

use super::porter::stem;
use super::tokens;

const ALPHA: f64 = 0.9;
const BETA: f64 = 3.0;
const GAMMA: f64 = 0.5;

/// A word and its place in the text.
type Word = (usize, String);

pub(super) fn score(input: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<Word> {
        let words = tokens::split_13a(text);
        words.into_iter().map(|word| word.to_lowercase()).enumerate().collect()
    };
    let (input, reference) = (words(input), words(reference));
    let (in_input, in_reference) = (input.len() as f64, reference.len() as f64);
    let (mut pairs, input, reference) = matched(input, reference);
    let stems = |words: Vec<Word>| -> Vec<Word> {
        words.into_iter().map(|(place, word)| (place, stem(&word))).collect()
    };
    let (by_stem, ..) = matched(stems(input), stems(reference));
    pairs.extend(by_stem);
    if pairs.is_empty() {
        return 0.0;
    }
    pairs.sort_unstable();
    let count = pairs.len() as f64;
    let (precision, recall) = (count / in_input, count / in_reference);
    let mean = precision * recall / (ALPHA * precision + (1.0 - ALPHA) * recall);
    let penalty = GAMMA * (chunks(&pairs) as f64 / count).powf(BETA);
    (1.0 - penalty) * mean
}

/// Pairs of places of equal words, and the words that are left over. Both texts are gone through from their ends.
fn matched(input: Vec<Word>, reference: Vec<Word>) -> (Vec<(usize, usize)>, Vec<Word>, Vec<Word>) {
    let mut unused: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, (_, word)) in reference.iter().enumerate() {
        unused.entry(word).or_default().push(i);
    }
    let mut pairs = Vec::new();
    let (mut in_input, mut in_reference) = (vec![false; input.len()], vec![false; reference.len()]);
    for (i, (place, word)) in input.iter().enumerate().rev() {
        if let Some(j) = unused.get_mut(word.as_str()).and_then(Vec::pop) {
            pairs.push((*place, reference[j].0));
            in_input[i] = true;
            in_reference[j] = true;
        }
    }
    let left = |words: Vec<Word>, used: &[bool]| {
        let unused = words.into_iter().zip(used).filter(|(_, used)| !**used);
        unused.map(|(word, _)| word).collect::<Vec<Word>>()
    };
    (pairs, left(input, &in_input), left(reference, &in_reference))
}

/// Runs of pairs that are neighbours in both texts.
fn chunks(pairs: &[(usize, usize)]) -> usize {
    let breaks = |pair: &&[(usize, usize)]| pair[1] != (pair[0].0 + 1, pair[0].1 + 1);
    1 + pairs.windows(2).filter(breaks).count()
}
