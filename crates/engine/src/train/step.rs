//! THE training step: draw a batch → gradients of its micro-batches → clip → learning rate → AdamW
//! → numbers.
//!
//! A step is taken one micro-batch at a time, because the scheduler gives other runs and chat
//! answers their turns in between; nothing that a checkpoint holds changes before
//! [`Training::finish_step`]. There is no input, output or logging here: evaluation, checkpoints
//! and reports are around it, in `train`.

use std::vec::IntoIter;

use dataset::{Cursor, Dataset};
use domain::hyperparameters::GradientCheckpointing;
use domain::plan::ResolvedHyperparameters;
use model::{Adapter, Batch, BatchError, Decoder, Gradients, LossSum, PassOptions, Recompute};

use super::optimizer::{Optimizer, Update};
use super::schedule;
use crate::seed::{Purpose, derive};

/// All that steps read and change.
#[derive(Debug)]
pub struct Training {
    pub data: Dataset,
    pub hyperparameters: ResolvedHyperparameters,
    pub total_steps: u64,
    /// The memory knob in force; results do not depend on it.
    pub micro_batch_tokens: usize,
    pub adapter: Adapter,
    pub gradients: Gradients,
    pub optimizer: Optimizer,
    /// Steps done.
    pub step: u64,
    /// Where the next batch begins.
    pub cursor: Cursor,
}

/// A step whose gradients are being summed.
#[derive(Debug)]
pub struct StepInHand {
    micro_batches: IntoIter<Batch>,
    micro_batch: u64,
    next_cursor: Cursor,
    numbers: StepNumbers,
    sum: LossSum,
}

/// What one step has to tell. Means are over the target tokens of the whole step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepNumbers {
    pub loss: f64,
    pub accuracy: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    pub tokens: u64,
    pub target_tokens: u64,
}

impl Training {
    /// Draws the examples of the next step and packs them into micro-batches.
    pub fn begin_step(&self) -> StepInHand {
        let h = &self.hyperparameters;
        let mut next_cursor = self.cursor;
        let order = derive(h.seed, Purpose::DataOrder, 0, 0);
        let rows = self.data.next_batch(order, &mut next_cursor, h.batch_size as usize);
        let examples: Vec<_> = rows.iter().map(|&row| &self.data.examples[row as usize]).collect();
        let micro_batches = micro_batches(&examples, self.micro_batch_tokens);
        let numbers = StepNumbers {
            tokens: examples.iter().map(|example| example.input_ids.len() as u64).sum(),
            target_tokens: micro_batches.iter().map(|batch| batch.target_ids.len() as u64).sum(),
            ..StepNumbers::default()
        };
        let micro_batches = micro_batches.into_iter();
        StepInHand { micro_batches, micro_batch: 0, next_cursor, numbers, sum: LossSum::default() }
    }

    /// Adds the gradient of one micro-batch; true while more are left.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn micro_batch(
        &mut self,
        decoder: &Decoder,
        step: &mut StepInHand,
    ) -> Result<bool, BatchError> {
        if let Some(batch) = step.micro_batches.next() {
            // Summed over targets, divided by the targets of the whole step: a mean per micro-batch
            // would weigh a target by the company it was packed with.
            let h = &self.hyperparameters;
            let options = PassOptions {
                scale: 1.0 / step.numbers.target_tokens as f64,
                dropout_seed: derive(h.seed, Purpose::Dropout, self.step, step.micro_batch),
                recompute: match h.gradient_checkpointing {
                    GradientCheckpointing::None => Recompute::Nothing,
                    GradientCheckpointing::Mlp => Recompute::Mlp,
                    GradientCheckpointing::Full => Recompute::Layer,
                },
            };
            let (adapter, gradients) = (&self.adapter, &mut self.gradients);
            step.sum += decoder.forward_backward(&batch, adapter, gradients, options)?;
            step.micro_batch += 1;
        }
        Ok(step.micro_batches.len() > 0)
    }

    /// Updates the adapter and moves on. A loss or gradient that is not finite updates nothing: the
    /// batch is passed over, and the numbers say it.
    pub fn finish_step(&mut self, step: StepInHand) -> StepNumbers {
        let h = &self.hyperparameters;
        let mut numbers = step.numbers;
        // A step whose every target was cut off by `max_seq_len` has a loss of 0, not of 0/0.
        let targets = numbers.target_tokens.max(1) as f64;
        numbers.loss = step.sum.loss / targets;
        numbers.accuracy = step.sum.correct as f64 / targets;
        let factor = schedule::factor(h.schedule, self.step, h.warmup_steps, self.total_steps);
        numbers.learning_rate = h.learning_rate * factor;
        numbers.grad_norm = f64::NAN;
        if numbers.loss.is_finite() {
            let update = Update {
                learning_rate: numbers.learning_rate,
                weight_decay: h.weight_decay,
                max_grad_norm: h.max_grad_norm,
            };
            let (values, gradients) = (self.adapter.values(), self.gradients.flat());
            numbers.grad_norm = self.optimizer.update(values, gradients, update);
            self.adapter.refresh();
        }
        self.gradients.zero();
        self.step += 1;
        self.cursor = step.next_cursor;
        numbers
    }

    /// Forgets a step in hand; [`begin_step`](Self::begin_step) will draw the same batch again.
    pub fn abandon_step(&mut self) {
        self.gradients.zero();
    }
}

impl StepNumbers {
    /// Whether the step updated the adapter.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// Packs examples; what holds no target teaches nothing and is left out.
pub fn micro_batches(examples: &[&dataset::Example], micro_batch_tokens: usize) -> Vec<Batch> {
    let with_targets = |packed: &dataset::Packed| !packed.target_ids.is_empty();
    let packed = dataset::pack(examples, micro_batch_tokens).into_iter().filter(with_targets);
    packed
        .map(|packed| Batch {
            input_ids: packed.input_ids,
            positions: packed.positions,
            cu_seqlens: packed.cu_seqlens,
            target_rows: packed.target_rows,
            target_ids: packed.target_ids,
        })
        .collect()
}
