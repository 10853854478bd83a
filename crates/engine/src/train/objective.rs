//! What a run minimises: how rows become micro-batches, and what one micro-batch adds to the gradient.
//!
//! The loop around it is the same for every method (`step`, `evaluate`); they differ here, in what their
//! rows are and in their loss.

use std::rc::Rc;

use dataset::{Dataset, Example, PackedRows, Room, pack, pack_rows};
use domain::preference::Preference;
use model::{Adapter, Batch, BatchError, Decoder, Gradients, Groups, PassOptions, TargetLog};

use super::preference::{Answer, label_loss, pair_loss, reward_loss};
use super::sums::Sums;

/// The loss of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// −log p of every target token; the mean is over tokens.
    CrossEntropy,
    /// A loss over pairs of answers; the mean is over pairs.
    Pairs(Preference),
    /// KTO: a loss over single answers, good or bad; the mean is over answers.
    Labelled(Preference),
    /// A reward model: a loss over the scores of pairs of answers; the mean is over pairs.
    Reward(Preference),
}

/// The rows of a file, and what is remembered about them.
#[derive(Debug)]
pub struct Rows {
    pub data: Dataset,
    /// Tokens that a sequence may have.
    max_tokens: usize,
    /// Rows that each sequence takes in a pass beside its tokens.
    rows_per_document: usize,
    /// The model that losses with a reference compare with; none is the base model.
    start: Option<Rc<Adapter>>,
    /// For each row, log p of its answers by that model, once they were needed.
    references: Vec<Option<[f64; 2]>>,
}

/// One piece of a step or of an evaluation.
#[derive(Debug)]
pub struct MicroBatch {
    batch: Batch,
    /// Of compared answers: the rows, and where each answer's targets end.
    rows: Vec<u32>,
    target_ends: Vec<usize>,
    part: Part,
}

/// What a micro-batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Learning,
    /// Only to measure what the adapter adds to answers that belong to other inputs (KTO's z₀); the first of
    /// a batch begins the measurement anew.
    Baseline {
        is_first: bool,
    },
}

impl Rows {
    pub fn new(data: Dataset, max_tokens: usize) -> Self {
        let references = vec![None; data.rows()];
        Self { start: None, references, max_tokens, rows_per_document: 0, data }
    }

    /// For a run that goes on from a tuned model: that model is the reference.
    pub fn with_start(self, start: Option<Rc<Adapter>>) -> Self {
        Self { start, ..self }
    }

    /// For adapters with virtual tokens among a batch's rows.
    pub fn with_rows_per_document(self, rows: u32) -> Self {
        Self { rows_per_document: rows as usize, ..self }
    }

    /// log p of a row's answers by the model at the start. They are computed once per row, and for the row by
    /// itself: the company of other rows may change the last bit, and a run that was resumed has met them in
    /// other company.
    fn reference(&mut self, decoder: &Decoder, row: u32) -> Result<[f64; 2], BatchError> {
        let row = row as usize;
        if let Some(known) = self.references[row] {
            return Ok(known);
        }
        let mut sums = [0.0; 2];
        for alone in pack_rows(&[self.data.row(row)], usize::MAX) {
            let micro_batch = MicroBatch::of_rows(alone, &[row as u32], Part::Learning);
            let logs = decoder.target_logs(&micro_batch.batch, self.start.as_deref())?;
            for (sum, answer) in sums.iter_mut().zip(micro_batch.answers(&logs)) {
                *sum = answer.log_p;
            }
        }
        self.references[row] = Some(sums);
        Ok(sums)
    }
}

impl MicroBatch {
    fn of_rows(packed: PackedRows, rows: &[u32], part: Part) -> Self {
        Self {
            batch: batch(packed.packed),
            rows: packed.rows.iter().map(|&index| rows[index]).collect(),
            target_ends: packed.target_ends,
            part,
        }
    }

    /// Target tokens that are learned from.
    pub fn targets(&self) -> u64 {
        if self.part == Part::Learning { self.batch.target_ids.len() as u64 } else { 0 }
    }

    /// Adds what training has added to these answers.
    fn measure_baseline(
        &self,
        is_first: bool,
        decoder: &Decoder,
        (adapter, start): (&Adapter, Option<&Adapter>),
        sums: &mut Sums,
    ) -> Result<(), BatchError> {
        if is_first {
            sums.reset_baseline();
        }
        let logs = decoder.target_logs(&self.batch, Some(adapter))?;
        let base = decoder.target_logs(&self.batch, start)?;
        for (with, without) in self.answers(&logs).zip(self.answers(&base)) {
            sums.add_to_baseline(with.log_p - without.log_p);
        }
        Ok(())
    }

    /// The answers in their order, each with its targets summed up; without a reference.
    fn answers<'a>(&'a self, logs: &'a [TargetLog]) -> impl Iterator<Item = Answer> + 'a {
        (0..self.target_ends.len()).map(move |answer| Answer::of(&logs[self.targets_of(answer)]))
    }

    /// Where the targets of each row end, all of its answers together.
    fn row_ends(&self) -> Vec<usize> {
        let answers = self.target_ends.len() / self.rows.len().max(1);
        self.target_ends.chunks_exact(answers.max(1)).map(|ends| ends[answers - 1]).collect()
    }

    fn targets_of(&self, answer: usize) -> std::ops::Range<usize> {
        let start = if answer == 0 { 0 } else { self.target_ends[answer - 1] };
        start..self.target_ends[answer]
    }
}

impl Objective {
    /// Packs rows; what has nothing to learn from is left out.
    pub fn micro_batches(&self, data: &Rows, rows: &[u32], tokens: usize) -> Vec<MicroBatch> {
        let sequences = rows.iter().map(|&row| data.data.row(row as usize));
        let room = Room { tokens, per_document: data.rows_per_document };
        match self {
            Self::CrossEntropy => {
                let examples: Vec<_> = sequences.flatten().collect();
                let packed = pack(&examples, room).into_iter();
                packed
                    .filter(|packed| packed.targets() > 0)
                    .map(|packed| MicroBatch {
                        batch: batch(packed),
                        rows: Vec::new(),
                        target_ends: Vec::new(),
                        part: Part::Learning,
                    })
                    .collect()
            }
            Self::Pairs(_) | Self::Reward(_) => {
                let packed = pack_rows(&sequences.collect::<Vec<_>>(), room).into_iter();
                packed.map(|packed| MicroBatch::of_rows(packed, rows, Part::Learning)).collect()
            }
            Self::Labelled(_) => {
                let sequences: Vec<_> = sequences.collect();
                let others = mismatched(&sequences, data.max_tokens);
                let others: Vec<_> = others.iter().map(std::slice::from_ref).collect();
                let others = pack_rows(&others, room).into_iter().enumerate();
                let baseline = others.map(|(index, packed)| {
                    MicroBatch::of_rows(packed, rows, Part::Baseline { is_first: index == 0 })
                });
                let matched = pack_rows(&sequences, room).into_iter();
                let learning =
                    matched.map(|packed| MicroBatch::of_rows(packed, rows, Part::Learning));
                baseline.chain(learning).collect()
            }
        }
    }

    /// What a micro-batch adds to the number that the mean of the loss is over.
    pub fn units(&self, micro_batch: &MicroBatch) -> u64 {
        match (self, micro_batch.part) {
            (_, Part::Baseline { .. }) => 0,
            (Self::CrossEntropy, Part::Learning) => micro_batch.targets(),
            (Self::Pairs(_) | Self::Labelled(_) | Self::Reward(_), Part::Learning) => {
                micro_batch.rows.len() as u64
            }
        }
    }

    /// Adds the gradient of a micro-batch, and its numbers to `sums`; `scale` of the options is 1 over the
    /// [units](Self::units) of the whole step.
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
        sums: &mut Sums,
    ) -> Result<(), BatchError> {
        if let Part::Baseline { is_first } = micro_batch.part {
            let adapters = (adapter, rows.start.as_deref());
            return micro_batch.measure_baseline(is_first, decoder, adapters, sums);
        }
        let batch = &micro_batch.batch;
        if let Self::Reward(options) = self {
            let enter = |scores: &[f64]| enter_scores(options, scores, sums);
            return decoder.forward_backward_scores(batch, adapter, gradients, pass, enter);
        }
        let Some(comparison) = self.comparison(rows, decoder, micro_batch)? else {
            sums.add_tokens(decoder.forward_backward(batch, adapter, gradients, pass)?);
            return Ok(());
        };
        let mut coefficients = |row: usize, logs: &[TargetLog]| comparison.enter(row, logs, sums);
        let ends = micro_batch.row_ends();
        let groups = Groups { ends: &ends, coefficients: &mut coefficients };
        decoder.forward_backward_with(batch, adapter, gradients, pass, groups)
    }

    /// The same numbers without learning, and without dropout.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn evaluate(
        &self,
        rows: &mut Rows,
        micro_batch: &MicroBatch,
        decoder: &Decoder,
        adapter: &Adapter,
        sums: &mut Sums,
    ) -> Result<(), BatchError> {
        if let Part::Baseline { is_first } = micro_batch.part {
            let adapters = (adapter, rows.start.as_deref());
            return micro_batch.measure_baseline(is_first, decoder, adapters, sums);
        }
        if let Self::Reward(options) = self {
            enter_scores(options, &decoder.scores(&micro_batch.batch, adapter)?, sums);
            return Ok(());
        }
        match self.comparison(rows, decoder, micro_batch)? {
            None => sums.add_tokens(decoder.evaluate(&micro_batch.batch, Some(adapter))?),
            Some(comparison) => {
                let logs = decoder.target_logs(&micro_batch.batch, Some(adapter))?;
                let mut start = 0;
                for (row, end) in micro_batch.row_ends().into_iter().enumerate() {
                    comparison.enter(row, &logs[start..end], sums);
                    start = end;
                }
            }
        }
        Ok(())
    }

    /// What a loss over answers needs beside their log-probabilities; none for a loss over tokens.
    fn comparison<'a>(
        &self,
        rows: &'a mut Rows,
        decoder: &Decoder,
        micro_batch: &'a MicroBatch,
    ) -> Result<Option<Comparison<'a>>, BatchError> {
        let (options, is_labelled) = match *self {
            Self::CrossEntropy | Self::Reward(_) => return Ok(None),
            Self::Pairs(options) => (options, false),
            Self::Labelled(options) => (options, true),
        };
        let reference = |&row: &u32| match options.loss_type.has_reference() {
            true => rows.reference(decoder, row),
            false => Ok([0.0; 2]),
        };
        let references =
            micro_batch.rows.iter().map(reference).collect::<Result<Vec<_>, BatchError>>()?;
        let labels = is_labelled.then_some(rows.data.labels.as_slice());
        Ok(Some(Comparison { options, references, labels, micro_batch }))
    }
}

/// Enters the losses of pairs of scores, the preferred answers' first; answers −∂loss/∂score of each.
fn enter_scores(options: &Preference, scores: &[f64], sums: &mut Sums) -> Vec<f64> {
    let pairs = scores.chunks_exact(2);
    pairs
        .flat_map(|pair| {
            let loss = reward_loss(options, [pair[0], pair[1]]);
            sums.add_scored(&loss);
            loss.coefficients
        })
        .collect()
}

/// Compared answers of a micro-batch.
struct Comparison<'a> {
    options: Preference,
    /// Of each row.
    references: Vec<[f64; 2]>,
    /// Of all rows of the file; none when answers come in pairs.
    labels: Option<&'a [bool]>,
    micro_batch: &'a MicroBatch,
}

impl Comparison<'_> {
    /// Enters the loss and rewards of one row of the micro-batch, from the log-probabilities of its targets;
    /// answers −∂loss/∂log p of each of them.
    fn enter(&self, index: usize, logs: &[TargetLog], sums: &mut Sums) -> Vec<f64> {
        let (row, reference) = (self.micro_batch.rows[index] as usize, self.references[index]);
        if let Some(labels) = self.labels {
            let answer = Answer { reference: reference[0], ..Answer::of(logs) };
            let loss = label_loss(&self.options, answer, labels[row], sums.baseline());
            sums.add_labelled(&loss, labels[row], logs);
            return vec![loss.coefficient; logs.len()];
        }
        let first = 2 * index;
        let (chosen, rejected) = logs.split_at(self.micro_batch.targets_of(first).len());
        let answers = [chosen, rejected].map(Answer::of);
        let answer = |which: usize| Answer { reference: reference[which], ..answers[which] };
        let loss = pair_loss(&self.options, [answer(0), answer(1)]);
        sums.add_pair(&loss, chosen);
        let coefficients = [chosen, rejected].into_iter().zip(loss.coefficients);
        coefficients.flat_map(|(logs, value)| vec![value; logs.len()]).collect()
    }
}

/// Each row's input with the answer of the row before it. None of a single row.
fn mismatched(rows: &[&[Example]], max_tokens: usize) -> Vec<Example> {
    let count = if rows.len() > 1 { rows.len() } else { 0 };
    let other = |index: usize| {
        let (input, answer) = (&rows[index][0], &rows[(index + rows.len() - 1) % rows.len()][0]);
        let start = |example: &Example| {
            let first = example.is_target.iter().position(|&target| target);
            first.unwrap_or(example.input_ids.len())
        };
        let (end, begin) = (start(input), start(answer));
        let mut input_ids = [&input.input_ids[..end], &answer.input_ids[begin..]].concat();
        let mut is_target = [&input.is_target[..end], &answer.is_target[begin..]].concat();
        let full_len = input_ids.len();
        input_ids.truncate(max_tokens);
        is_target.truncate(max_tokens);
        Example { truncated: input_ids.len() < full_len, input_ids, is_target, full_len }
    };
    (0..count).map(other).collect()
}

fn batch(packed: dataset::Packed) -> Batch {
    Batch {
        input_ids: packed.input_ids,
        positions: packed.positions,
        cu_seqlens: packed.cu_seqlens,
        continues: packed.continues,
        target_rows: packed.target_rows,
        target_ids: packed.target_ids,
    }
}

#[cfg(test)]
mod tests {
    use domain::preference::{LossType, PreferenceRequest};

    use super::*;

    /// What each token's log-probability is told, against central differences of the loss of its row, for every
    /// loss there is. What the model makes of it is proved in `crates/model/src/finite_differences.rs`.
    #[test]
    fn the_coefficient_of_every_token_is_the_slope_of_the_loss() {
        let (step, bound) = (1e-5, 1e-8);
        // Two rows, in another order than in the file; pairs of answers of 3 and 4, and of 2 and 1 tokens.
        let micro_batch = |target_ends: &[usize]| MicroBatch {
            batch: Batch::default(),
            rows: vec![1, 0],
            target_ends: target_ends.to_vec(),
            part: Part::Learning,
        };
        let log_p = [-0.5, -2.0, -1.25, -3.0, -0.1, -1.5, -2.5, -0.7, -1.1, -4.0];
        // A reward model's loss is of scores, not of log-probabilities; `reward_loss` has its own proof.
        let of_log_p = LossType::ALL.into_iter().filter(|&loss_type| loss_type != LossType::Reward);
        for loss_type in of_log_p {
            let is_labelled = loss_type == LossType::Kto;
            let smoothing = loss_type.takes_label_smoothing().then_some(0.1);
            let asked = PreferenceRequest { loss_type, ..PreferenceRequest::default() };
            let asked = PreferenceRequest {
                label_smoothing: smoothing,
                desirable_weight: Some(1.5),
                undesirable_weight: Some(0.75),
                ..asked
            };
            let micro_batch = micro_batch(if is_labelled { &[7, 10] } else { &[3, 7, 9, 10] });
            let comparison = Comparison {
                options: asked.resolve(),
                references: vec![[-6.0, -5.5], [-2.0, -4.5]],
                labels: is_labelled.then_some(&[true, false][..]),
                micro_batch: &micro_batch,
            };
            let enter = |row: usize, logs: &[f64]| {
                let log = |&log_p: &f64| TargetLog { log_p, correct: false };
                let mut sums = Sums::default();
                sums.add_to_baseline(0.3);
                let logs: Vec<TargetLog> = logs.iter().map(log).collect();
                let coefficients = comparison.enter(row, &logs, &mut sums);
                (sums.loss, coefficients)
            };
            for (row, logs) in [&log_p[..7], &log_p[7..]].into_iter().enumerate() {
                let (_, coefficients) = enter(row, logs);
                assert_eq!(coefficients.len(), logs.len());
                for (token, coefficient) in coefficients.into_iter().enumerate() {
                    let at = |step: f64| {
                        let mut moved = logs.to_vec();
                        moved[token] += step;
                        enter(row, &moved).0
                    };
                    let slope = (at(step) - at(-step)) / (2.0 * step);
                    let what = format!("{loss_type:?}, row {row}, token {token}");
                    assert!((slope + coefficient).abs() < bound, "{what}: {slope} {coefficient}");
                    assert!(coefficient != 0.0, "{what} proves nothing");
                }
            }
        }
    }
}
