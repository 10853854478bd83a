//! What a run minimises: how rows become micro-batches, and what one micro-batch adds to the gradient.
//!
//! The loop around it is the same for every method (`step`, `evaluate`); they differ here, in what their
//! rows are and in their loss.

use dataset::{Dataset, PackedRows, pack, pack_rows};
use domain::preference::Preference;
use domain::report::RewardMetrics;
use model::{Adapter, Batch, BatchError, Decoder, Gradients, PassOptions, TargetLog};

use super::preference::{Answer, PairLoss, pair_loss};

/// The loss of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// −log p of every target token; the mean is over tokens.
    CrossEntropy,
    /// A loss over pairs of answers; the mean is over pairs.
    Preference(Preference),
}

/// The rows of a file, and what is remembered about them.
#[derive(Debug)]
pub struct Rows {
    pub data: Dataset,
    /// For each row, log p of its two answers without the adapter, once they were needed.
    references: Vec<Option<[f64; 2]>>,
}

/// One piece of a step or of an evaluation.
#[derive(Debug)]
pub struct MicroBatch {
    batch: Batch,
    /// Of compared answers: the rows, and where each answer's targets end.
    rows: Vec<u32>,
    target_ends: Vec<usize>,
}

/// Sums over micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    pub loss: f64,
    /// What the mean of the loss is over: target tokens, or pairs.
    pub units: u64,
    /// Tokens of trained answers (of pairs: of the preferred ones) that were the most probable.
    pub correct: u64,
    pub targets: u64,
    pub rewards: Rewards,
}

/// Sums over pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rewards {
    pub pairs: u64,
    /// Pairs whose preferred answer has the higher reward.
    pub won: u64,
    pub chosen: f64,
    pub rejected: f64,
}

impl Rows {
    pub fn new(data: Dataset) -> Self {
        Self { references: vec![None; data.rows()], data }
    }

    /// log p of a row's answers without the adapter. They are computed once per row, and for the row by
    /// itself: the company of other rows may change the last bit, and a run that was resumed has met them in
    /// other company.
    fn reference(&mut self, decoder: &Decoder, row: u32) -> Result<[f64; 2], BatchError> {
        let row = row as usize;
        if let Some(known) = self.references[row] {
            return Ok(known);
        }
        let mut sums = [0.0; 2];
        for alone in pack_rows(&[self.data.row(row)], usize::MAX) {
            let micro_batch = MicroBatch::of_rows(alone, &[row as u32]);
            let logs = decoder.target_logs(&micro_batch.batch, None)?;
            for (sum, answer) in sums.iter_mut().zip(micro_batch.answers(&logs)) {
                *sum = answer.log_p;
            }
        }
        self.references[row] = Some(sums);
        Ok(sums)
    }
}

impl MicroBatch {
    fn of_rows(packed: PackedRows, rows: &[u32]) -> Self {
        Self {
            batch: batch(packed.packed),
            rows: packed.rows.iter().map(|&index| rows[index]).collect(),
            target_ends: packed.target_ends,
        }
    }

    /// Target tokens.
    pub fn targets(&self) -> u64 {
        self.batch.target_ids.len() as u64
    }

    /// The answers in their order, each with its targets summed up; without a reference.
    fn answers<'a>(&'a self, logs: &'a [TargetLog]) -> impl Iterator<Item = Answer> + 'a {
        (0..self.target_ends.len()).map(move |answer| {
            let logs = &logs[self.targets_of(answer)];
            let log_p = logs.iter().map(|log| log.log_p).sum();
            Answer { log_p, tokens: logs.len() as u64, reference: 0.0 }
        })
    }

    fn targets_of(&self, answer: usize) -> std::ops::Range<usize> {
        let start = if answer == 0 { 0 } else { self.target_ends[answer - 1] };
        start..self.target_ends[answer]
    }
}

impl Objective {
    /// Packs rows; what has nothing to learn from is left out.
    pub fn micro_batches(&self, data: &Dataset, rows: &[u32], tokens: usize) -> Vec<MicroBatch> {
        let sequences = rows.iter().map(|&row| data.row(row as usize));
        match self {
            Self::CrossEntropy => {
                let examples: Vec<_> = sequences.flatten().collect();
                let packed = pack(&examples, tokens).into_iter();
                packed
                    .filter(|packed| packed.targets() > 0)
                    .map(|packed| MicroBatch {
                        batch: batch(packed),
                        rows: Vec::new(),
                        target_ends: Vec::new(),
                    })
                    .collect()
            }
            Self::Preference(_) => {
                let packed = pack_rows(&sequences.collect::<Vec<_>>(), tokens).into_iter();
                packed.map(|packed| MicroBatch::of_rows(packed, rows)).collect()
            }
        }
    }

    /// What a micro-batch adds to the number that the mean of the loss is over.
    pub fn units(&self, micro_batch: &MicroBatch) -> u64 {
        match self {
            Self::CrossEntropy => micro_batch.targets(),
            Self::Preference(_) => micro_batch.rows.len() as u64,
        }
    }

    /// Adds the gradient of a micro-batch; `scale` of the options is 1 over the [units](Self::units) of the
    /// whole step.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn learn(
        &self,
        rows: &mut Rows,
        micro_batch: &MicroBatch,
        decoder: &Decoder,
        (adapter, gradients): (&Adapter, &mut Gradients),
        pass: PassOptions,
    ) -> Result<Sums, BatchError> {
        let batch = &micro_batch.batch;
        match self {
            Self::CrossEntropy => {
                Ok(Sums::of_tokens(decoder.forward_backward(batch, adapter, gradients, pass)?))
            }
            Self::Preference(options) => {
                let references = references(options, rows, decoder, micro_batch)?;
                let mut sums = Sums::default();
                decoder.forward_backward_with(batch, adapter, gradients, pass, |logs| {
                    let mut coefficients = vec![0.0; logs.len()];
                    for (pair, loss) in pairs(options, micro_batch, logs, &references).enumerate() {
                        sums.add_pair(&loss, &logs[micro_batch.targets_of(2 * pair)]);
                        for (which, value) in loss.coefficients.into_iter().enumerate() {
                            let targets = micro_batch.targets_of(2 * pair + which);
                            coefficients[targets].fill(value);
                        }
                    }
                    coefficients
                })?;
                Ok(sums)
            }
        }
    }

    /// The same sums without learning, and without dropout.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn evaluate(
        &self,
        rows: &mut Rows,
        micro_batch: &MicroBatch,
        decoder: &Decoder,
        adapter: &Adapter,
    ) -> Result<Sums, BatchError> {
        match self {
            Self::CrossEntropy => {
                Ok(Sums::of_tokens(decoder.evaluate(&micro_batch.batch, Some(adapter))?))
            }
            Self::Preference(options) => {
                let references = references(options, rows, decoder, micro_batch)?;
                let logs = decoder.target_logs(&micro_batch.batch, Some(adapter))?;
                let mut sums = Sums::default();
                for (pair, loss) in pairs(options, micro_batch, &logs, &references).enumerate() {
                    sums.add_pair(&loss, &logs[micro_batch.targets_of(2 * pair)]);
                }
                Ok(sums)
            }
        }
    }
}

/// Of each row of a micro-batch; zeros for a loss that has no reference.
fn references(
    options: &Preference,
    rows: &mut Rows,
    decoder: &Decoder,
    micro_batch: &MicroBatch,
) -> Result<Vec<[f64; 2]>, BatchError> {
    if !options.loss_type.has_reference() {
        return Ok(vec![[0.0; 2]; micro_batch.rows.len()]);
    }
    micro_batch.rows.iter().map(|&row| rows.reference(decoder, row)).collect()
}

/// The loss of each pair of a micro-batch.
fn pairs<'a>(
    options: &'a Preference,
    micro_batch: &'a MicroBatch,
    logs: &'a [TargetLog],
    references: &'a [[f64; 2]],
) -> impl Iterator<Item = PairLoss> + 'a {
    let answers: Vec<Answer> = micro_batch.answers(logs).collect();
    references.iter().enumerate().map(move |(pair, reference)| {
        let answer =
            |which: usize| Answer { reference: reference[which], ..answers[2 * pair + which] };
        pair_loss(options, [answer(0), answer(1)])
    })
}

fn batch(packed: dataset::Packed) -> Batch {
    Batch {
        input_ids: packed.input_ids,
        positions: packed.positions,
        cu_seqlens: packed.cu_seqlens,
        target_rows: packed.target_rows,
        target_ids: packed.target_ids,
    }
}

impl Sums {
    fn of_tokens(sum: model::LossSum) -> Self {
        Self {
            loss: sum.loss,
            units: sum.targets,
            correct: sum.correct,
            targets: sum.targets,
            rewards: Rewards::default(),
        }
    }

    fn add_pair(&mut self, pair: &PairLoss, preferred: &[TargetLog]) {
        let [chosen, rejected] = pair.rewards;
        self.loss += pair.loss;
        self.units += 1;
        self.correct += preferred.iter().filter(|log| log.correct).count() as u64;
        self.targets += preferred.len() as u64;
        self.rewards.pairs += 1;
        self.rewards.won += u64::from(chosen > rejected);
        self.rewards.chosen += chosen;
        self.rewards.rejected += rejected;
    }

    /// Mean loss; 0 where there was nothing to learn from (every target was cut off).
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.units.max(1) as f64
    }

    /// Share of target tokens that were the most probable.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.targets.max(1) as f64
    }
}

impl Rewards {
    /// A sum as a mean over pairs; none where there were no pairs, or no number.
    pub fn mean(&self, sum: f64) -> Option<f64> {
        Some(sum / self.pairs as f64).filter(|mean| mean.is_finite())
    }

    /// Share of pairs that were won.
    pub fn accuracy(&self) -> Option<f64> {
        self.mean(self.won as f64).filter(|_| self.margin().is_some())
    }

    /// As a training step shows them; nothing where there were no pairs.
    pub fn of_training(&self) -> RewardMetrics {
        RewardMetrics {
            train_reward_accuracy: self.accuracy(),
            train_chosen_reward: self.mean(self.chosen),
            train_rejected_reward: self.mean(self.rejected),
            train_reward_margin: self.margin(),
            ..RewardMetrics::default()
        }
    }

    /// The preferred answers' mean lead.
    pub fn margin(&self) -> Option<f64> {
        self.mean(self.chosen - self.rejected)
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.units += other.units;
        self.correct += other.correct;
        self.targets += other.targets;
        self.rewards.pairs += other.rewards.pairs;
        self.rewards.won += other.rewards.won;
        self.rewards.chosen += other.rewards.chosen;
        self.rewards.rejected += other.rewards.rejected;
    }
}
