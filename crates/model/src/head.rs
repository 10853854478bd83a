//! What follows the last layer: final norm, head, loss, and the gradient of the last hidden state.
//!
//! Only rows that predict a target reach the head, in blocks whose logits are overwritten by their gradient:
//! the full logits never exist. What a loss is made of is the caller's part.

use std::ops::Range;

use kernels::{
    Compact, Factors, TargetLog, TokenLoss, cross_entropy_, cross_entropy_loss, rms_norm,
    rms_norm_backward, skinny, softcap_, softcap_backward_, target_logs,
};
use tch::{Device, Kind, Tensor};

use crate::adapter::{Gradients, add_norm};
use crate::batch::{Batch, LossSum};
use crate::decoder::Decoder;
use crate::products::{f32_product, product};

/// Rows of the head's blocks on a CPU, and the fewest anywhere: with 49,152 tokens their logits take 50 MB, with
/// 128,256 131 MB.
const HEAD_ROWS: usize = 256;
/// Bytes of a block's logits on a GPU, which is not filled by few rows.
const GPU_BLOCK_BYTES: usize = 512 << 20;
/// Rows that fill any GPU.
const GPU_ROWS: usize = 8192;
/// Bytes of logits up to which a group of more rows is one block all the same.
const KEPT_BYTES: usize = 128 << 20;

/// Targets whose losses depend on each other within a group, and on nothing else.
pub struct Groups<'a> {
    /// Where each group's targets end.
    pub ends: &'a [usize],
    /// From a group's number and its log-probabilities to −∂loss/∂log p of each; called in order.
    pub coefficients: &'a mut dyn FnMut(usize, &[TargetLog]) -> Vec<f64>,
}

impl Decoder {
    /// Loss at the target rows of the last hidden state `[T, D]`.
    pub(crate) fn head_loss(&self, batch: &Batch, hidden: &Tensor) -> LossSum {
        let x = self.final_norm(&self.target_states(batch, hidden).1).0;
        let mut sum = TokenLoss::default();
        for rows in self.blocks(0..batch.target_ids.len()) {
            let ids = &batch.target_ids[rows.clone()];
            add(&mut sum, cross_entropy_loss(&self.head_logits(&part(&x, &rows)), ids));
        }
        loss_sum(sum, batch)
    }

    /// log p of the targets, from the last hidden state `[T, D]`.
    pub(crate) fn head_logs(&self, batch: &Batch, hidden: &Tensor) -> Vec<TargetLog> {
        let x = self.final_norm(&self.target_states(batch, hidden).1).0;
        self.logs(&x, 0..batch.target_ids.len(), &batch.target_ids)
    }

    /// Loss at the target rows of the last hidden state `[T, D]`; the gradient of `scale` times its sum is
    /// written to `dh`.
    pub(crate) fn head_backward(
        &self,
        batch: &Batch,
        hidden: &Tensor,
        scale: f64,
        (dh, gradients): (&Tensor, &Gradients),
    ) -> LossSum {
        let mut sum = TokenLoss::default();
        self.through_norm(batch, hidden, (dh, gradients), |x, dx| {
            for rows in self.blocks(0..batch.target_ids.len()) {
                let (x, dx) = (part(x, &rows), part(dx, &rows));
                let (ids, logits) = (&batch.target_ids[rows], self.head_logits(&x));
                let factors = Factors::Equal(scale);
                add(&mut sum, self.logits_backward(&logits, (&x, ids), factors, &dx, gradients));
            }
        });
        loss_sum(sum, batch)
    }

    /// The same for a loss over groups. A group's logits are computed once if they are few enough to be kept
    /// until their factors are known, and twice if not.
    pub(crate) fn head_backward_with(
        &self,
        batch: &Batch,
        hidden: &Tensor,
        scale: f64,
        groups: Groups<'_>,
        (dh, gradients): (&Tensor, &Gradients),
    ) {
        let mut factors_of = |groups_here: Range<usize>, logs: &[TargetLog]| {
            let first = start_of(groups.ends, groups_here.start);
            let mut factors = Vec::with_capacity(logs.len());
            for group in groups_here {
                let own = start_of(groups.ends, group) - first..groups.ends[group] - first;
                factors.extend((groups.coefficients)(group, &logs[own]));
            }
            factors.iter_mut().for_each(|factor| *factor *= scale);
            factors
        };
        let kept_rows = self.block_rows().max(KEPT_BYTES / 4 / self.spec.vocab_size);
        self.through_norm(batch, hidden, (dh, gradients), |x, dx| {
            for here in blocks_of_groups(groups.ends, self.block_rows()) {
                let rows = start_of(groups.ends, here.start)..groups.ends[here.end - 1];
                let ids = &batch.target_ids[rows.clone()];
                if rows.len() <= kept_rows {
                    let (x, dx) = (part(x, &rows), part(dx, &rows));
                    let logits = self.head_logits(&x);
                    // On a copy, because exponentials are left there.
                    let factors = factors_of(here, &target_logs(&logits.copy(), ids));
                    let factors = Factors::Each(&factors);
                    self.logits_backward(&logits, (&x, ids), factors, &dx, gradients);
                    continue;
                }
                let factors = factors_of(here, &self.logs(x, rows.clone(), &batch.target_ids));
                for block in self.blocks(rows.clone()) {
                    let (x, dx) = (part(x, &block), part(dx, &block));
                    let logits = self.head_logits(&x);
                    let own = block.start - rows.start..block.end - rows.start;
                    let (ids, factors) = (&ids[own.clone()], Factors::Each(&factors[own]));
                    self.logits_backward(&logits, (&x, ids), factors, &dx, gradients);
                }
            }
        });
    }

    fn block_rows(&self) -> usize {
        block_rows(self.device, self.spec.vocab_size)
    }

    /// A range in blocks of the usual size.
    fn blocks(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let each = self.block_rows();
        rows.clone().step_by(each).map(move |start| start..rows.end.min(start + each))
    }

    /// log p of some of the targets, from normalised rows `[targets, D]`.
    fn logs(&self, x: &Tensor, rows: Range<usize>, ids: &[i64]) -> Vec<TargetLog> {
        self.blocks(rows)
            .flat_map(|rows| target_logs(&self.head_logits(&part(x, &rows)), &ids[rows.clone()]))
            .collect()
    }

    /// Numbers of the target rows, and these rows of the last hidden state, `[targets, D]`.
    fn target_states(&self, batch: &Batch, hidden: &Tensor) -> (Tensor, Tensor) {
        let rows = Tensor::from_slice(&batch.target_rows).to_device(self.device);
        let states = hidden.index_select(0, &rows);
        (rows, states)
    }

    /// Gives `head` the normalised target rows and room for their gradients, both `[targets, D]`, and writes
    /// the last hidden state's gradient to `dh`.
    fn through_norm(
        &self,
        batch: &Batch,
        hidden: &Tensor,
        (dh, gradients): (&Tensor, &Gradients),
        head: impl FnOnce(&Tensor, &Tensor),
    ) {
        let mut dh = dh.shallow_clone();
        let _ = dh.zero_();
        let (rows, states) = self.target_states(batch, hidden);
        let (x, rstd) = self.final_norm(&states);
        let dx = x.empty_like();
        head(&x, &dx);
        if let Some(whole) = gradients.whole() {
            // The factor on logits stands in this norm.
            add_norm(&whole.norm, &dx, &states, &rstd, self.spec.logit_scale);
        }
        let d_states = states.zeros_like();
        rms_norm_backward(&dx, &states, &self.norm, &rstd, &d_states);
        let _ = dh.index_copy_(0, &rows, &d_states);
    }

    /// Overwrites a block's logits by their gradient, and writes that of its rows `x` to `dx`; the head's own
    /// is added where it is trained.
    fn logits_backward(
        &self,
        logits: &Tensor,
        (x, ids): (&Tensor, &[i64]),
        factors: Factors<'_>,
        dx: &Tensor,
        gradients: &Gradients,
    ) -> TokenLoss {
        let capped = self.spec.logit_softcap.map(|cap| (cap, logits.copy()));
        let loss = cross_entropy_(logits, ids, factors);
        if let Some((cap, capped)) = capped {
            softcap_backward_(logits, &capped, cap);
        }
        product(logits, &self.head, dx);
        if let Some(whole) = gradients.whole() {
            whole.add_head(logits, x);
        }
        loss
    }

    /// Logits `[N, V]` of rows `[N, D]` after the final norm: f32 always, because a bf16 logit of 20 is up to
    /// 0.06 away from its value, and so would be the log-probabilities.
    pub(crate) fn head_logits(&self, x: &Tensor) -> Tensor {
        let logits = f32_product(x, &self.head.tr());
        if let Some(cap) = self.spec.logit_softcap {
            softcap_(&logits, cap);
        }
        logits
    }

    /// The same for the few rows whose next token is to be drawn.
    pub(crate) fn head_logits_few(&self, x: &Tensor) -> Tensor {
        let exact = || Compact::exact(&self.head);
        let head = self.computes_f32_on_cpu().then(|| self.compact_head.get_or_init(exact));
        let Some(Some(head)) = head else { return self.head_logits(x) };
        let shape = [x.size()[0], self.spec.vocab_size as i64];
        let logits = Tensor::empty(shape, (Kind::Float, self.device));
        skinny(x, head, &logits, false);
        if let Some(cap) = self.spec.logit_softcap {
            softcap_(&logits, cap);
        }
        logits
    }

    /// The final norm of rows `[N, D]`, and 1/rms of each.
    pub(crate) fn final_norm(&self, rows: &Tensor) -> (Tensor, Tensor) {
        let x = rows.empty_like();
        let statistic = (kernels::wide_kind(rows.kind()), self.device);
        let rstd = Tensor::empty([rows.size()[0]], statistic);
        rms_norm(rows, &self.norm, self.spec.rms_norm_eps, &x, &rstd);
        (x, rstd)
    }
}

/// Rows of a block of the head. `domain::memory` counts with the same numbers.
fn block_rows(device: Device, vocabulary: usize) -> usize {
    if device == Device::Cpu {
        return HEAD_ROWS;
    }
    let rows = GPU_BLOCK_BYTES / 4 / vocabulary.max(1);
    (rows / HEAD_ROWS * HEAD_ROWS).clamp(HEAD_ROWS, GPU_ROWS)
}

/// Groups in blocks: as many as have room in one of `each` rows, or one group that has not.
fn blocks_of_groups(ends: &[usize], each: usize) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for (group, &end) in ends.iter().enumerate() {
        match blocks.last_mut() {
            Some(block) if end - start_of(ends, block.start) <= each => block.end = group + 1,
            _ => blocks.push(group..group + 1),
        }
    }
    blocks
}

/// Where a group's targets begin.
fn start_of(ends: &[usize], group: usize) -> usize {
    if group == 0 { 0 } else { ends[group - 1] }
}

fn part(matrix: &Tensor, rows: &Range<usize>) -> Tensor {
    matrix.narrow(0, rows.start as i64, rows.len() as i64)
}

fn add(sum: &mut TokenLoss, part: TokenLoss) {
    sum.loss += part.loss;
    sum.correct += part.correct;
}

fn loss_sum(sum: TokenLoss, batch: &Batch) -> LossSum {
    LossSum { loss: sum.loss, correct: sum.correct, targets: batch.target_ids.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_blocks_while_there_is_room_and_large_ones_stand_alone() {
        let ends = [100, 200, 256, 300, 900, 901];
        assert_eq!(blocks_of_groups(&ends, HEAD_ROWS), [0..3, 3..4, 4..5, 5..6]);
        assert_eq!(blocks_of_groups(&[], HEAD_ROWS), []);
    }

    #[test]
    fn a_gpu_gets_larger_blocks_within_their_bytes() {
        assert_eq!(block_rows(Device::Cpu, 128_256), 256);
        let rows = [300, 49_152, 128_256, 5_000_000].map(|v| block_rows(Device::Cuda(0), v));
        assert_eq!(rows, [8192, 2560, 1024, 256]);
    }
}
