//! Loss and accuracy on the validation file: a rotating batch on every tenth step, the whole file
//! at the end of an epoch and as often as early stopping asks.
//!
//! Like a step, an evaluation is taken one micro-batch at a time. It changes nothing of the run.

use std::collections::VecDeque;

use domain::report::StepMetrics;
use model::{Adapter, BatchError, Decoder};

use super::objective::{MicroBatch, Objective, Rows};
use super::sums::Sums;

/// Steps between evaluations of a batch.
const EVERY_STEPS: u64 = 10;
/// Rows that are packed at a time, so that a large file is not copied whole.
const PACKED_AT_ONCE: usize = 64;

/// What an evaluation covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// `count` rows from `start` on, going round at the end of the file.
    Batch {
        start: usize,
        count: usize,
    },
    Full,
}

/// The evaluations that are due after `step` (from 1) on a file of `rows`, cheap one first.
pub fn due(step: u64, fully: bool, rows: usize, batch_size: usize) -> Vec<Extent> {
    let mut extents = Vec::new();
    if rows > 0 && step.is_multiple_of(EVERY_STEPS) {
        let count = batch_size.min(rows);
        let batches_before = step / EVERY_STEPS - 1;
        let start = (batches_before % rows as u64) as usize * batch_size % rows;
        extents.push(Extent::Batch { start, count });
    }
    if rows > 0 && fully {
        extents.push(Extent::Full);
    }
    extents
}

/// An evaluation in hand.
#[derive(Debug)]
pub struct Evaluation {
    extent: Extent,
    /// Rows taken so far.
    taken: usize,
    packed: VecDeque<MicroBatch>,
    sums: Sums,
}

impl Evaluation {
    pub fn new(extent: Extent) -> Self {
        Self { extent, taken: 0, packed: VecDeque::new(), sums: Sums::default() }
    }

    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Evaluates one micro-batch; true while more are left.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn micro_batch(
        &mut self,
        decoder: &Decoder,
        adapter: &Adapter,
        objective: &Objective,
        rows: &mut Rows,
        micro_batch_tokens: usize,
    ) -> Result<bool, BatchError> {
        let (start, count) = match self.extent {
            Extent::Batch { start, count } => (start, count),
            Extent::Full => (0, rows.data.rows()),
        };
        while self.packed.is_empty() && self.taken < count {
            let upto = count.min(self.taken + PACKED_AT_ONCE);
            let row = |n: usize| ((start + n) % rows.data.rows()) as u32;
            let chosen: Vec<u32> = (self.taken..upto).map(row).collect();
            self.packed = objective.micro_batches(rows, &chosen, micro_batch_tokens).into();
            self.taken = upto;
        }
        if let Some(batch) = self.packed.pop_front() {
            objective.evaluate(rows, &batch, decoder, adapter, &mut self.sums)?;
        }
        Ok(!self.packed.is_empty() || self.taken < count)
    }

    /// Enters the means into the step's metrics. A mean that is not a finite number is left out.
    pub fn record(&self, metrics: &mut StepMetrics) {
        let sums = &self.sums;
        let loss = Some(sums.loss / sums.units as f64).filter(|loss| loss.is_finite());
        let accuracy = loss.map(|_| sums.accuracy());
        let (reward_accuracy, margin) = (sums.rewards.accuracy(), sums.rewards.margin());
        match self.extent {
            Extent::Batch { .. } => {
                metrics.valid_loss = loss;
                metrics.valid_mean_token_accuracy = accuracy;
                metrics.rewards.valid_reward_accuracy = reward_accuracy;
                metrics.rewards.valid_reward_margin = margin;
            }
            Extent::Full => {
                metrics.full_valid_loss = loss;
                metrics.full_valid_mean_token_accuracy = accuracy;
                metrics.rewards.full_valid_reward_accuracy = reward_accuracy;
                metrics.rewards.full_valid_reward_margin = margin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_rotate_through_the_file_and_epoch_ends_take_it_whole() {
        let batch = |start, count| Extent::Batch { start, count };
        assert_eq!(due(9, false, 10, 4), []);
        assert_eq!(due(10, false, 10, 4), [batch(0, 4)]);
        assert_eq!(due(20, false, 10, 4), [batch(4, 4)]);
        assert_eq!(due(30, false, 10, 4), [batch(8, 4)]);
        assert_eq!(due(40, false, 10, 4), [batch(2, 4)]);
        assert_eq!(due(10, true, 3, 4), [batch(0, 3), Extent::Full]);
        assert_eq!(due(7, true, 3, 4), [Extent::Full]);
        assert_eq!(due(10, true, 0, 4), []);
    }
}
