//! The order in which examples are trained: a function of seed and epoch alone.
//!
//! A resumed run must see the batches that the interrupted one would have seen, also after an
//! update of the program, so the generator and the shuffle are spelled out here and belong to the
//! format of checkpoints: SplitMix64, started from its own first output for the seed, XOR the
//! epoch; then a Fisher-Yates shuffle from the end, with Lemire's unbiased bounded numbers.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::format::Format;
use crate::mask::Example;

/// Sebastiano Vigna's SplitMix64.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, each equally likely.
    fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            let low = product as u64;
            // The few products that would make some numbers more likely than others.
            if low >= bound || low >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }
}

fn permutation(len: usize, seed: u64, epoch: u32) -> Vec<u32> {
    let mut random = SplitMix64(SplitMix64(seed).next() ^ u64::from(epoch));
    let count = u32::try_from(len).unwrap_or(u32::MAX);
    let mut order: Vec<u32> = (0..count).collect();
    for last in (1..order.len()).rev() {
        let other = random.below(last as u64 + 1) as usize;
        order.swap(last, other);
    }
    order
}

/// How far training has come: a position in the permutation of an epoch. Part of checkpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// From 0.
    pub epoch: u32,
    /// Examples of the epoch that are done.
    pub index: usize,
}

/// All examples of a file, in the order of its lines.
#[derive(Debug)]
pub struct Dataset {
    pub examples: Vec<Example>,
    /// Sequences of a row: 1, or 2 for pairs (the preferred answer first).
    per_row: usize,
    /// Of labelled rows: whether the answer is a good one.
    pub labels: Vec<bool>,
    /// What the rows of the file were.
    pub format: Format,
    /// The permutation in use; it saves a shuffle per step.
    current: Mutex<Option<Shuffled>>,
}

#[derive(Debug)]
struct Shuffled {
    seed: u64,
    epoch: u32,
    order: Arc<[u32]>,
}

impl Dataset {
    /// Rows of one sequence each.
    pub fn new(examples: Vec<Example>) -> Self {
        Self::grouped(examples, 1)
    }

    /// Rows of `per_row` sequences each, one row behind the other.
    pub fn grouped(examples: Vec<Example>, per_row: usize) -> Self {
        let per_row = per_row.max(1);
        let (labels, format) = (Vec::new(), Format::Chat);
        Self { examples, per_row, labels, format, current: Mutex::new(None) }
    }

    /// Rows: what batches are counted in.
    pub fn rows(&self) -> usize {
        self.examples.len() / self.per_row
    }

    /// The sequences of a row.
    pub fn row(&self, index: usize) -> &[Example] {
        &self.examples[index * self.per_row..(index + 1) * self.per_row]
    }

    /// The order of an epoch: a permutation of the rows.
    pub fn epoch_order(&self, seed: u64, epoch: u32) -> Vec<u32> {
        permutation(self.rows(), seed, epoch)
    }

    /// The next optimizer step's rows; moves the cursor behind them.
    ///
    /// Batches do not reach over the end of an epoch: the last one may be short, and leaves the
    /// cursor at the beginning of the next epoch. Empty only if the data set is.
    pub fn next_batch(&self, seed: u64, cursor: &mut Cursor, batch_size: usize) -> Vec<u32> {
        let len = self.rows();
        if len == 0 {
            return Vec::new();
        }
        if cursor.index >= len {
            *cursor = Cursor { epoch: cursor.epoch.saturating_add(1), index: 0 };
        }
        let order = self.current_order(seed, cursor.epoch);
        let end = len.min(cursor.index.saturating_add(batch_size.max(1)));
        let batch = order[cursor.index..end].to_vec();
        cursor.index = end;
        if end == len {
            *cursor = Cursor { epoch: cursor.epoch.saturating_add(1), index: 0 };
        }
        batch
    }

    /// Optimizer steps of one epoch.
    pub fn steps_per_epoch(&self, batch_size: usize) -> u64 {
        self.rows().div_ceil(batch_size.max(1)) as u64
    }

    fn current_order(&self, seed: u64, epoch: u32) -> Arc<[u32]> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(known)
                if (known.seed, known.epoch) == (seed, epoch)
                    && known.order.len() == self.rows() =>
            {
                known.order.clone()
            }
            _ => {
                let order: Arc<[u32]> = self.epoch_order(seed, epoch).into();
                *current = Some(Shuffled { seed, epoch, order: order.clone() });
                order
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dataset(len: usize) -> Dataset {
        Dataset::new(vec![Example::default(); len])
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // Vigna's published outputs for the seed 1234567.
        let published =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        let mut random = SplitMix64(1_234_567);
        assert_eq!([random.next(), random.next(), random.next()], published);
    }

    #[test]
    fn every_permutation_is_about_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            *counts.entry(permutation(3, seed, 0)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }

    #[test]
    fn an_empty_data_set_gives_empty_batches() {
        let mut cursor = Cursor::default();
        assert!(dataset(0).next_batch(1, &mut cursor, 4).is_empty());
        assert_eq!(dataset(0).steps_per_epoch(4), 0);
    }

    proptest! {
        #[test]
        fn an_epoch_visits_every_example_once(
            len in 1usize..200, size in 1usize..50, seed: u64, epoch in 0u32..9,
        ) {
            let data = dataset(len);
            let mut cursor = Cursor { epoch, index: 0 };
            let mut seen = Vec::new();
            for _ in 0..data.steps_per_epoch(size) {
                prop_assert_eq!(cursor.epoch, epoch);
                let batch = data.next_batch(seed, &mut cursor, size);
                prop_assert!(!batch.is_empty() && batch.len() <= size);
                seen.extend(batch);
            }
            prop_assert_eq!(cursor, Cursor { epoch: epoch + 1, index: 0 });
            prop_assert_eq!(&seen, &data.epoch_order(seed, epoch));
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..len as u32).collect::<Vec<_>>());
        }

        #[test]
        fn a_saved_cursor_goes_on_with_the_same_batches(
            len in 1usize..100, size in 1usize..20, seed: u64, stop in 0usize..40,
        ) {
            let run = |data: &Dataset, mut cursor: Cursor, steps: usize| {
                let batches = (0..steps).map(|_| data.next_batch(seed, &mut cursor, size));
                (batches.collect::<Vec<_>>(), cursor)
            };
            let (whole, _) = run(&dataset(len), Cursor::default(), stop + 20);
            let (_, saved) = run(&dataset(len), Cursor::default(), stop);
            let saved = serde_json::to_string(&saved).unwrap();
            let (rest, _) = run(&dataset(len), serde_json::from_str(&saved).unwrap(), 20);
            prop_assert_eq!(&whole[stop..], &rest[..]);
        }
    }
}
