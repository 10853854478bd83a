//! Softmax cross-entropy on a block of logits: loss, accuracy, and the gradient in the logits' own place.

use rayon::prelude::*;
use tch::Tensor;

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::Rows;
use crate::simd::{exp_sum, max, scale};

/// Sums over target tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenLoss {
    /// Σ −log p(target), in nats.
    pub loss: f64,
    /// Targets that were the most probable token.
    pub correct: u64,
}

/// One target's log-probability.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TargetLog {
    /// log p(target), nats.
    pub log_p: f64,
    /// Whether the target was the most probable token.
    pub correct: bool,
}

/// By how much each row's loss counts.
#[derive(Debug, Clone, Copy)]
pub enum Factors<'a> {
    /// All rows alike.
    Equal(f64),
    /// One per row.
    Each(&'a [f64]),
}

impl Factors<'_> {
    /// Those of `count` rows from `start` on.
    pub fn part(&self, start: usize, count: usize) -> Self {
        match *self {
            Self::Equal(factor) => Self::Equal(factor),
            Self::Each(factors) => Self::Each(&factors[start..start + count]),
        }
    }

    fn of(&self, row: usize) -> f32 {
        match self {
            Self::Equal(factor) => *factor as f32,
            Self::Each(factors) => factors[row] as f32,
        }
    }
}

/// Loss of each row against its target; the logits become `factor · (softmax − onehot)`, the gradient of
/// the sum of `factor · loss`.
///
/// Shapes: logits `[N, V]`, overwritten; targets has N entries below V.
pub fn cross_entropy_(logits: &Tensor, targets: &[i64], factors: Factors<'_>) -> TokenLoss {
    if let Factors::Each(factors) = factors {
        assert_eq!(factors.len(), targets.len(), "one factor per target");
    }
    if !on_cpu(logits) {
        return road::cross_entropy_(logits, targets, factors);
    }
    sum(&for_each_row(logits, targets, |n, row| {
        let (target, factor) = (targets[n] as usize, factors.of(n));
        let row_loss = loss_of_row(row, target);
        scale(row, factor / row_loss.sum);
        row[target] -= factor;
        row_loss
    }))
}

/// As [`cross_entropy_`] without the gradient; the logits' contents are lost all the same.
pub fn cross_entropy_loss(logits: &Tensor, targets: &[i64]) -> TokenLoss {
    if !on_cpu(logits) {
        return road::cross_entropy_loss(logits, targets);
    }
    sum(&for_each_row(logits, targets, |n, row| loss_of_row(row, targets[n] as usize)))
}

/// log p of each row's target; the logits' contents are lost.
///
/// Shapes as in [`cross_entropy_`].
pub fn target_logs(logits: &Tensor, targets: &[i64]) -> Vec<TargetLog> {
    if !on_cpu(logits) {
        return road::target_logs(logits, targets);
    }
    let rows = for_each_row(logits, targets, |n, row| loss_of_row(row, targets[n] as usize));
    rows.iter().map(|row| TargetLog { log_p: -row.loss, correct: row.correct }).collect()
}

struct RowLoss {
    loss: f64,
    correct: bool,
    /// Σ e^(x − max) over the vocabulary.
    sum: f32,
}

/// Leaves e^(x − max) in the row.
fn loss_of_row(row: &mut [f32], target: usize) -> RowLoss {
    let (top, at_target) = (max(row), row[target]);
    let sum = exp_sum(row, 1.0, top);
    let loss = f64::from(sum).ln() - f64::from(at_target - top);
    RowLoss { loss, correct: at_target == top, sum }
}

fn for_each_row(
    logits: &Tensor,
    targets: &[i64],
    work: impl Fn(usize, &mut [f32]) -> RowLoss + Send + Sync,
) -> Vec<RowLoss> {
    let matrix = Rows::of(logits);
    assert_eq!(matrix.len, targets.len());
    // A row is a whole vocabulary, so even two rows are worth two threads.
    (0..matrix.len)
        .into_par_iter()
        // SAFETY: one thread per row index, so row n is ours alone.
        .map(|n| work(n, unsafe { matrix.row_mut(n) }))
        .collect()
}

/// In row order: the result must not depend on which thread was first.
fn sum(rows: &[RowLoss]) -> TokenLoss {
    TokenLoss {
        loss: rows.iter().map(|row| row.loss).sum(),
        correct: rows.iter().filter(|row| row.correct).count() as u64,
    }
}
