//! THE training step: draw a batch → gradients of its micro-batches → clip → learning rate → AdamW
//! → numbers.
//!
//! A step is taken one micro-batch at a time, because the scheduler gives other runs and chat
//! answers their turns in between; nothing that a checkpoint holds changes before
//! [`Training::finish_step`]. There is no input, output or logging here: evaluation, checkpoints
//! and reports are around it, in `train`.

use std::vec::IntoIter;

use dataset::Cursor;
use domain::hyperparameters::GradientCheckpointing;
use domain::plan::ResolvedHyperparameters;
use model::{Adapter, BatchError, Decoder, Gradients, PassOptions, Recompute};

use super::objective::{MicroBatch, Objective, Rows};
use super::optimizer::{Optimizer, Update};
use super::schedule;
use super::sums::{Rewards, Sums};
use crate::seed::{Purpose, derive};

/// All that steps read and change.
#[derive(Debug)]
pub struct Training {
    /// What the method wants: the rows' form and their loss.
    pub objective: Objective,
    pub rows: Rows,
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
    micro_batches: IntoIter<MicroBatch>,
    micro_batch: u64,
    next_cursor: Cursor,
    /// What the mean of the step's loss is over.
    units: u64,
    numbers: StepNumbers,
    sums: Sums,
}

/// What one step has to tell. The loss is the mean over the target tokens, or answers, of the whole step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepNumbers {
    pub loss: f64,
    pub accuracy: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    pub tokens: u64,
    pub target_tokens: u64,
    pub rewards: Rewards,
}

impl Training {
    /// Draws the examples of the next step and packs them into micro-batches.
    pub fn begin_step(&self) -> StepInHand {
        let h = &self.hyperparameters;
        let mut next_cursor = self.cursor;
        let order = derive(h.seed, Purpose::DataOrder, 0, 0);
        let data = &self.rows.data;
        let rows = data.next_batch(order, &mut next_cursor, h.batch_size as usize);
        let micro_batches =
            self.objective.micro_batches(&self.rows, &rows, self.micro_batch_tokens);
        let examples = rows.iter().flat_map(|&row| data.row(row as usize));
        StepInHand {
            units: micro_batches.iter().map(|batch| self.objective.units(batch)).sum(),
            numbers: StepNumbers {
                tokens: examples.map(|example| example.input_ids.len() as u64).sum(),
                target_tokens: micro_batches.iter().map(MicroBatch::targets).sum(),
                ..StepNumbers::default()
            },
            micro_batches: micro_batches.into_iter(),
            micro_batch: 0,
            next_cursor,
            sums: Sums::default(),
        }
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
            // Summed, and divided by the units of the whole step: a mean per micro-batch would weigh a
            // target or pair by the company it was packed with.
            let h = &self.hyperparameters;
            let options = PassOptions {
                scale: 1.0 / step.units as f64,
                dropout_seed: derive(h.seed, Purpose::Dropout, self.step, step.micro_batch),
                recompute: match h.gradient_checkpointing {
                    GradientCheckpointing::None => Recompute::Nothing,
                    GradientCheckpointing::Mlp => Recompute::Mlp,
                    GradientCheckpointing::Full => Recompute::Layer,
                },
            };
            let adapter = (&self.adapter, &mut self.gradients);
            let (rows, sums) = (&mut self.rows, &mut step.sums);
            self.objective.learn(rows, &batch, decoder, adapter, options, sums)?;
            step.micro_batch += 1;
        }
        Ok(step.micro_batches.len() > 0)
    }

    /// Updates the adapter and moves on. A loss or gradient that is not finite updates nothing: the
    /// batch is passed over, and the numbers say it.
    pub fn finish_step(&mut self, step: StepInHand) -> StepNumbers {
        let h = &self.hyperparameters;
        let mut numbers = step.numbers;
        numbers.loss = step.sums.mean_loss();
        numbers.accuracy = step.sums.accuracy();
        numbers.rewards = step.sums.rewards;
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
