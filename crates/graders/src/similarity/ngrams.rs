//! Runs of n words, counted.

use std::collections::HashMap;

/// How often each run of `n` words occurs.
pub(super) fn count(words: &[u32], n: usize) -> HashMap<&[u32], usize> {
    let mut counts = HashMap::new();
    for run in words.windows(n) {
        *counts.entry(run).or_insert(0) += 1;
    }
    counts
}

/// Occurrences that both have.
pub(super) fn common(a: &HashMap<&[u32], usize>, b: &HashMap<&[u32], usize>) -> usize {
    a.iter().map(|(run, count)| b.get(run).map_or(0, |other| *count.min(other))).sum()
}

/// How many runs of `n` there are in `length` words.
pub(super) fn total(length: usize, n: usize) -> usize {
    (length + 1).saturating_sub(n)
}
