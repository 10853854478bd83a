//! Phrases that most inputs of a file share, such as an instruction before every question: two rows are
//! not alike because of them.
//!
//! They are learned from the first rows, which wait for it.

use std::collections::{HashMap, HashSet};

/// Inputs to learn from.
pub(crate) const SAMPLE: usize = 500;
/// Fewer inputs tell nothing about a file.
const LEAST: usize = 20;
/// A pair of words in more of the inputs than this is the file's and not the row's.
const SHARE: f64 = 0.2;

/// The shingles of one input, with the hash of its text.
pub(crate) fn learn<'a>(inputs: impl Iterator<Item = (u64, &'a [u64])>) -> HashSet<u64> {
    // A file of copies has no phrases, only copies.
    let mut seen = HashSet::new();
    let mut in_inputs: HashMap<u64, usize> = HashMap::new();
    for (text, shingles) in inputs {
        if seen.insert(text) {
            let distinct: HashSet<u64> = shingles.iter().copied().collect();
            distinct.into_iter().for_each(|shingle| *in_inputs.entry(shingle).or_default() += 1);
        }
    }
    if seen.len() < LEAST {
        return HashSet::new();
    }
    let most = SHARE * seen.len() as f64;
    in_inputs.retain(|_, count| *count as f64 > most);
    in_inputs.into_keys().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_different_inputs_share_is_a_phrase() {
        let inputs: Vec<Vec<u64>> = (0..50).map(|i| vec![1, 2, 100 + i]).collect();
        let all = |inputs: &[Vec<u64>]| {
            learn(inputs.iter().enumerate().map(|(i, s)| (i as u64, s.as_slice())))
        };
        assert_eq!(all(&inputs), HashSet::from([1, 2]));
        assert_eq!(all(&inputs[..10]), HashSet::new());
        let copies = (0..50).map(|_| (7, inputs[0].as_slice()));
        assert_eq!(learn(copies), HashSet::new());
    }
}
