//! What a checked file amounts to, in examples and tokens.

use serde::Serialize;

/// Most line numbers that a list of [`Stats`] holds; the counts beside them are exact.
const MAX_LINES: usize = 1000;

/// Figures of a file, counted with one tokenizer and one `max_seq_len`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Rows: lines that are not blank.
    pub n_examples: u64,
    /// What batches are counted in: examples, long texts by their pieces.
    pub n_sequences: u64,
    /// Tokens of all whole examples.
    pub tokens: u64,
    /// Tokens after cutting, or splitting, each example at `max_seq_len`.
    pub tokens_after_truncation: u64,
    /// Tokens that are trained on, after truncation.
    pub target_tokens: u64,
    /// Tokens of the longest whole sequence: an example, or one of a pair's two answers with its input.
    pub max_tokens: u64,
    /// Examples that are cut.
    pub n_truncated: u64,
    /// Their lines, the first 1000.
    pub truncated_lines: Vec<u64>,
    /// Texts that are longer than `max_seq_len` and were split into several sequences.
    pub n_split: u64,
    /// Their lines, the first 1000.
    pub split_lines: Vec<u64>,
    /// Examples that lose every token to train on to `max_seq_len` (pairs: those of an answer).
    pub n_targets_cut: u64,
    /// Their lines, the first 1000.
    pub lines_targets_cut: Vec<u64>,
    /// Examples of which an answer is cut before its end, so that its end is not learned.
    pub n_ends_cut: u64,
    /// Their lines, the first 1000.
    pub lines_ends_cut: Vec<u64>,
    /// Examples that never had a token to train on: all weights are 0.
    pub n_without_targets: u64,
    /// Their lines, the first 1000.
    pub lines_without_targets: Vec<u64>,
    /// Examples that use an older key, and are read all the same.
    pub n_old_keys: u64,
    /// Of labelled examples: the bad ones.
    pub n_undesirable: u64,
    /// Pairs whose two answers are the same text: they teach nothing.
    pub n_equal_pairs: u64,
    /// Their lines, the first 1000.
    pub lines_of_equal_pairs: Vec<u64>,
    /// Whole examples by length, up to the longest.
    pub lengths: Vec<LengthBucket>,
}

/// Examples with at most `max_tokens` tokens, and more than the bucket before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LengthBucket {
    /// A power of two, from 16 on.
    pub max_tokens: u64,
    pub examples: u64,
}

/// The token counts of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowCounts {
    /// Of all sequences of the row.
    pub full: usize,
    /// Of its longest sequence.
    pub longest: usize,
    pub kept: usize,
    pub targets: usize,
    /// Whether the whole row has targets.
    pub trains: bool,
    /// Whether what is kept ends within an answer.
    pub loses_end: bool,
    /// What batches are counted in.
    pub sequences: usize,
}

impl Stats {
    pub(crate) fn add(&mut self, line: u64, row: RowCounts) {
        self.tokens += row.full as u64;
        self.tokens_after_truncation += row.kept as u64;
        self.target_tokens += row.targets as u64;
        self.max_tokens = self.max_tokens.max(row.longest as u64);
        self.n_sequences += row.sequences as u64;
        if row.sequences > 1 {
            self.n_split += 1;
            push_line(&mut self.split_lines, line);
        }
        if row.kept < row.full {
            self.n_truncated += 1;
            push_line(&mut self.truncated_lines, line);
        }
        if row.targets == 0 && row.trains {
            self.n_targets_cut += 1;
            push_line(&mut self.lines_targets_cut, line);
        } else if row.targets == 0 {
            self.n_without_targets += 1;
            push_line(&mut self.lines_without_targets, line);
        }
        if row.loses_end && row.targets > 0 {
            self.n_ends_cut += 1;
            push_line(&mut self.lines_ends_cut, line);
        }
        let bucket = bucket_of(row.longest);
        while self.lengths.len() <= bucket {
            let max_tokens = 16 << self.lengths.len();
            self.lengths.push(LengthBucket { max_tokens, examples: 0 });
        }
        self.lengths[bucket].examples += 1;
    }
}

impl Stats {
    pub(crate) fn add_equal_pair(&mut self, line: u64) {
        self.n_equal_pairs += 1;
        push_line(&mut self.lines_of_equal_pairs, line);
    }
}

pub(crate) fn push_line(lines: &mut Vec<u64>, line: u64) {
    if lines.len() < MAX_LINES {
        lines.push(line);
    }
}

fn bucket_of(tokens: usize) -> usize {
    (tokens.max(16).next_power_of_two() / 16).trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: RowCounts = RowCounts {
        full: 10,
        longest: 10,
        kept: 10,
        targets: 2,
        trains: true,
        loses_end: false,
        sequences: 1,
    };

    #[test]
    fn lengths_fall_into_powers_of_two() {
        let mut stats = Stats::default();
        for full in [1, 16, 17, 32, 100] {
            stats.add(1, RowCounts { full, longest: full, kept: full, ..WHOLE });
        }
        let buckets: Vec<_> = stats.lengths.iter().map(|b| (b.max_tokens, b.examples)).collect();
        assert_eq!(buckets, [(16, 2), (32, 2), (64, 0), (128, 1)]);
    }

    #[test]
    fn cut_and_empty_rows_are_named() {
        let mut stats = Stats::default();
        stats.add(4, WHOLE);
        stats.add(6, RowCounts { targets: 0, trains: false, ..WHOLE });
        let cut = RowCounts { full: 20, longest: 20, kept: 12, loses_end: true, ..WHOLE };
        stats.add(5, RowCounts { targets: 0, ..cut });
        stats.add(7, RowCounts { targets: 3, ..cut });
        assert_eq!((stats.tokens, stats.tokens_after_truncation, stats.target_tokens), (60, 44, 5));
        assert_eq!((stats.n_truncated, stats.truncated_lines), (2, vec![5, 7]));
        assert_eq!((stats.n_targets_cut, stats.lines_targets_cut), (1, vec![5]));
        assert_eq!((stats.n_ends_cut, stats.lines_ends_cut), (1, vec![7]));
        assert_eq!((stats.n_without_targets, stats.lines_without_targets), (1, vec![6]));
        assert_eq!(stats.max_tokens, 20);
    }
}
