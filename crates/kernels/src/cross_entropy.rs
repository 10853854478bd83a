//! Softmax cross-entropy on a block of logits: loss, accuracy, and the gradient in the logits' own place.

use rayon::prelude::*;
use tch::Tensor;

use crate::rows::Rows;
use crate::simd::{exp_sum, max, scale};
use crate::{on_cpu, reference};

/// Sums over target tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenLoss {
    /// Σ −log p(target), in nats.
    pub loss: f64,
    /// Targets that were the most probable token.
    pub correct: u64,
}

/// Loss of each row against its target; the logits become `factor · (softmax − onehot)`, the gradient of
/// `factor · loss`.
///
/// Shapes: logits `[N, V]`, overwritten; targets has N entries below V.
pub fn cross_entropy_(logits: &Tensor, targets: &[i64], factor: f64) -> TokenLoss {
    if !on_cpu(logits) {
        return reference::cross_entropy_(logits, targets, factor);
    }
    for_each_row(logits, targets, |row, target| {
        let row_loss = loss_of_row(row, target);
        scale(row, factor as f32 / row_loss.sum);
        row[target] -= factor as f32;
        row_loss
    })
}

/// As [`cross_entropy_`] without the gradient; the logits' contents are lost all the same.
pub fn cross_entropy_loss(logits: &Tensor, targets: &[i64]) -> TokenLoss {
    if !on_cpu(logits) {
        return reference::cross_entropy_(logits, targets, 0.0);
    }
    for_each_row(logits, targets, loss_of_row)
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
    work: impl Fn(&mut [f32], usize) -> RowLoss + Send + Sync,
) -> TokenLoss {
    let matrix = Rows::of(logits);
    assert_eq!(matrix.len, targets.len());
    // A row is a whole vocabulary, so even two rows are worth two threads.
    let rows: Vec<RowLoss> = (0..matrix.len)
        .into_par_iter()
        // SAFETY: one thread per row index, so row n is ours alone.
        .map(|n| work(unsafe { matrix.row_mut(n) }, targets[n] as usize))
        .collect();
    // Summed in row order: the result must not depend on which thread was first.
    TokenLoss {
        loss: rows.iter().map(|row| row.loss).sum(),
        correct: rows.iter().filter(|row| row.correct).count() as u64,
    }
}
