//! A run: set up from a plan or a checkpoint, then turn by turn to its end.
//!
//! One turn is one micro-batch, of a step ([`step`]) or of an evaluation ([`evaluate`]). What
//! happens once in a while (evaluations, reports, checkpoints, the end) happens here, around the
//! step. The run writes checkpoint folders and returns everything else that it has to say; who
//! hears it is the scheduler's part.

mod adapter;
mod admission;
mod base;
mod best;
pub mod checkpoint;
mod evaluate;
mod metrics;
mod moments;
pub mod objective;
mod optimizer;
pub mod preference;
mod prepare;
mod relief;
mod schedule;
mod signs;
mod step;
pub mod sums;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use domain::id::JobId;
use domain::plan::TrainingPlan;
use domain::report::{
    CheckpointKind, CheckpointReport, Level, RunFailure, RunReport, RunStarted, StepMetrics,
};
use model::{Decoder, Gradients};
use tch::Tensor;

pub use self::admission::admit;
use self::base::{check_base, slow_numbers};
use self::best::Best;
use self::checkpoint::{Restored, State};
use self::evaluate::Evaluation;
use self::metrics::{Speed, epochs_done, tokens_per_second};
use self::objective::Rows;
use self::optimizer::Optimizer;
pub use self::prepare::{Prepared, prepare};
use self::relief::Relief;
use self::step::{StepInHand, StepNumbers, Training};
use crate::failure::{permanent, retryable};

/// Steps in a row that may be skipped because their loss or gradient is not finite.
const SKIPS_ALLOWED: u32 = 3;
/// Checkpoints in a row that may fail to be written before the run gives up.
const MISSES_ALLOWED: u32 = 2;

/// Something that a turn led to, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    Report(RunReport),
    Checkpoint(CheckpointReport),
    /// All steps are done.
    Finished,
    /// The stop that was asked for.
    Stopped,
    /// The run is over, and this is why.
    Failed(RunFailure),
}

impl Happened {
    /// True for a run's last words.
    pub fn ends_run(&self) -> bool {
        matches!(self, Self::Finished | Self::Stopped | Self::Failed(_))
    }
}

/// One training run.
#[derive(Debug)]
pub struct Run {
    plan: TrainingPlan,
    training: Training,
    validation: Option<Rows>,
    /// Step, cursor and updates are kept in `training` and entered when the state is written.
    state: State,
    phase: Phase,
    speed: Speed,
    /// When the last step was concluded.
    concluded: Instant,
    announced: bool,
    stopping: bool,
    relief: Relief,
    /// Of the best evaluation; kept when early stopping is asked for.
    best_values: Option<Tensor>,
    missed_checkpoints: u32,
    /// The step of the newest checkpoint, the one that this attempt began with included.
    saved_step: u64,
}

#[derive(Debug)]
enum Phase {
    /// No step in hand: what a checkpoint holds is consistent.
    Between,
    Stepping {
        step: Box<StepInHand>,
        began: Instant,
    },
    /// The step is done; its metrics wait for the evaluations that are due. None: it was skipped.
    Evaluating {
        metrics: Option<Box<StepMetrics>>,
        due: VecDeque<Evaluation>,
    },
    /// Inside an update; seen from outside only when that panicked.
    Updating,
}

/// A finished step's metrics, none when it was skipped, and the evaluations that they wait for.
type Counted = (Option<Box<StepMetrics>>, VecDeque<Evaluation>);

impl Run {
    /// Sets up adapter and optimizer, new or from the plan's checkpoint.
    ///
    /// # Errors
    /// An adapter that the model cannot carry; a checkpoint that is damaged or belongs to another
    /// plan.
    pub fn new(prepared: Prepared, decoder: &Decoder) -> Result<Self, RunFailure> {
        let Prepared { plan, objective, training: data, validation, init_ids, fingerprint } =
            prepared;
        check_base(&plan, decoder)?;
        let h = plan.hyperparameters.clone();
        let Restored { mut state, adapter, optimizer, best_values } = match &plan.resume_from {
            Some(folder) => checkpoint::read(folder, &fingerprint, decoder, h.optimizer)?,
            None => {
                let adapter = match &plan.start_from {
                    Some(start) => adapter::started(&plan, start, decoder)?,
                    None => adapter::fresh(&plan, init_ids, decoder)?,
                };
                let optimizer = Optimizer::new(h.optimizer, &adapter, decoder.device());
                let state = State::new(&plan, fingerprint);
                Restored { state, adapter, optimizer, best_values: None }
            }
        };
        state.fence = plan.fence;
        let saved_step = state.step;
        let (max_tokens, extra) = (h.max_seq_len as usize, h.rows_per_document());
        let start = adapter::reference(&plan, decoder)?;
        let rows = |data| {
            Rows::new(data, max_tokens).with_rows_per_document(extra).with_start(start.clone())
        };
        let training = Training {
            total_steps: u64::from(h.n_epochs) * data.steps_per_epoch(h.batch_size as usize),
            micro_batch_tokens: h.micro_batch_tokens as usize,
            gradients: Gradients::zeros(&adapter),
            adapter,
            optimizer,
            step: state.step,
            cursor: state.cursor,
            hyperparameters: h,
            objective,
            rows: rows(data),
        };
        Ok(Self {
            plan,
            training,
            validation: validation.map(rows),
            state,
            phase: Phase::Between,
            speed: Speed::default(),
            concluded: Instant::now(),
            announced: false,
            stopping: false,
            relief: Relief::Nothing,
            best_values,
            missed_checkpoints: 0,
            saved_step,
        })
    }

    pub fn job_id(&self) -> &JobId {
        &self.plan.job_id
    }

    /// Ends the run after the step in hand, with a checkpoint if any step was done since the last
    /// one.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Does one micro-batch, and what is due after it. After what [ends the
    /// run](Happened::ends_run) there are no more turns.
    pub fn turn(&mut self, decoder: &Decoder) -> Vec<Happened> {
        let mut happened = Vec::new();
        if let Err(failure) = self.micro_batch(decoder, &mut happened) {
            happened.push(Happened::Failed(failure));
        }
        happened
    }

    fn micro_batch(
        &mut self,
        decoder: &Decoder,
        happened: &mut Vec<Happened>,
    ) -> Result<(), RunFailure> {
        if matches!(self.phase, Phase::Between) {
            if self.stopping || self.is_complete() {
                return self.end(happened);
            }
            if !self.announced {
                // A turn of its own, so that it is known when the first step begins, not when it
                // ends.
                happened.push(self.announcement());
                happened.extend((self.training.step == 0).then(|| slow_numbers(decoder)).flatten());
                self.announced = true;
                self.concluded = Instant::now();
                return Ok(());
            }
            let step = Box::new(self.training.begin_step());
            self.phase = Phase::Stepping { step, began: Instant::now() };
        }
        let more = match &mut self.phase {
            Phase::Stepping { step, .. } => self.training.micro_batch(decoder, step),
            Phase::Evaluating { due, .. } => match (due.front_mut(), &mut self.validation) {
                (Some(evaluation), Some(rows)) => evaluation.micro_batch(
                    decoder,
                    &self.training.adapter,
                    &self.training.objective,
                    rows,
                    self.training.micro_batch_tokens,
                ),
                _ => Ok(false),
            },
            Phase::Between | Phase::Updating => Ok(false),
        };
        let more = more.map_err(|error| permanent("internal_error", None, error.to_string()))?;
        if more { Ok(()) } else { self.advance(happened) }
    }

    /// Goes on from a phase whose last micro-batch is done.
    fn advance(&mut self, happened: &mut Vec<Happened>) -> Result<(), RunFailure> {
        let (metrics, due) = match std::mem::replace(&mut self.phase, Phase::Updating) {
            Phase::Stepping { step, began } => {
                let numbers = self.training.finish_step(*step);
                self.count(numbers, began.elapsed(), happened)?
            }
            Phase::Evaluating { mut metrics, mut due } => {
                if let (Some(metrics), Some(done)) = (&mut metrics, due.pop_front()) {
                    done.record(metrics);
                }
                (metrics, due)
            }
            Phase::Between | Phase::Updating => (None, VecDeque::new()),
        };
        if due.is_empty() {
            self.conclude(metrics, happened)
        } else {
            self.phase = Phase::Evaluating { metrics, due };
            Ok(())
        }
    }

    /// Enters a finished step into the books; a step that updated nothing has no metrics.
    fn count(
        &mut self,
        numbers: StepNumbers,
        elapsed: Duration,
        happened: &mut Vec<Happened>,
    ) -> Result<Counted, RunFailure> {
        self.state.trained_tokens += numbers.tokens;
        let step = self.training.step;
        if !numbers.is_finite() {
            self.state.skipped_in_a_row += 1;
            let skipped = self.state.skipped_in_a_row;
            let what = if numbers.loss.is_finite() { "gradient" } else { "loss" };
            if skipped > SKIPS_ALLOWED {
                return Err(diverged(step, what, skipped));
            }
            happened.push(warning(format!(
                "Step {step}: the {what} is not a finite number, so its batch was skipped \
                 ({skipped} of at most {SKIPS_ALLOWED} in a row)."
            )));
            return Ok((None, VecDeque::new()));
        }
        self.state.skipped_in_a_row = 0;
        let metrics = StepMetrics {
            step,
            total_steps: self.training.total_steps,
            epoch: epochs_done(step, self.steps_per_epoch()),
            train_loss: numbers.loss,
            train_mean_token_accuracy: numbers.accuracy,
            learning_rate: numbers.learning_rate,
            grad_norm: numbers.grad_norm,
            tokens: numbers.tokens,
            target_tokens: numbers.target_tokens,
            trained_tokens: self.state.trained_tokens,
            tokens_per_second: tokens_per_second(numbers.tokens, elapsed),
            rewards: Box::new(numbers.rewards.of_training()),
            ..StepMetrics::default()
        };
        let examples = self.validation.as_ref().map_or(0, |rows| rows.data.rows());
        let batch_size = self.training.hyperparameters.batch_size as usize;
        let extents = evaluate::due(step, self.evaluates_fully(), examples, batch_size);
        Ok((Some(Box::new(metrics)), extents.into_iter().map(Evaluation::new).collect()))
    }

    /// The step and its evaluations are done: report, write the checkpoint that is due, end if it
    /// is time.
    fn conclude(
        &mut self,
        metrics: Option<Box<StepMetrics>>,
        happened: &mut Vec<Happened>,
    ) -> Result<(), RunFailure> {
        self.phase = Phase::Between;
        self.speed.record(self.concluded.elapsed());
        self.concluded = Instant::now();
        if let Some(mut metrics) = metrics {
            let steps_left = self.training.total_steps - self.training.step;
            metrics.seconds_left = self.speed.seconds_for(steps_left);
            self.note_best(&metrics);
            let method = self.plan.method;
            let findings = self.state.signs.enter(&metrics, method, self.steps_per_epoch());
            self.state.metrics = (*metrics).clone();
            happened.push(Happened::Report(RunReport::Step(*metrics)));
            let findings = findings.into_iter().map(RunReport::Finding);
            happened.extend(findings.map(Happened::Report));
        }
        let every = self.training.hyperparameters.checkpoint_steps;
        if self.is_complete() {
            return self.end(happened);
        } else if self.ends_epoch() {
            self.checkpoint(CheckpointKind::Epoch, happened)?;
        } else if every > 0 && self.training.step.is_multiple_of(every) {
            self.checkpoint(CheckpointKind::Resume, happened)?;
        }
        if self.stopping { self.end(happened) } else { Ok(()) }
    }

    /// The run's last words: the final checkpoint, or the one that a stop asks for.
    fn end(&mut self, happened: &mut Vec<Happened>) -> Result<(), RunFailure> {
        if self.is_complete() {
            self.restore_best(happened);
            self.checkpoint(CheckpointKind::Final, happened)?;
            happened.push(Happened::Finished);
        } else {
            if self.training.step > self.saved_step {
                self.checkpoint(CheckpointKind::Resume, happened)?;
            }
            happened.push(Happened::Stopped);
        }
        Ok(())
    }

    /// Writes a checkpoint. One that fails is told and passed over, unless it is the result itself
    /// or the third in a row.
    fn checkpoint(
        &mut self,
        kind: CheckpointKind,
        happened: &mut Vec<Happened>,
    ) -> Result<(), RunFailure> {
        let (training, step) = (&self.training, self.training.step);
        self.state.step = step;
        self.state.updates = training.optimizer.updates();
        self.state.cursor = training.cursor;
        self.state.is_final = kind == CheckpointKind::Final;
        let (adapter, optimizer) = (&training.adapter, &training.optimizer);
        let best = self.best_values.as_ref();
        match checkpoint::write(&self.plan, kind, &self.state, (adapter, optimizer), best) {
            Ok(dir) => {
                self.missed_checkpoints = 0;
                self.saved_step = step;
                happened.push(Happened::Checkpoint(CheckpointReport {
                    step,
                    kind,
                    dir,
                    trained_tokens: self.state.trained_tokens,
                    metrics: self.state.metrics.clone(),
                }));
                Ok(())
            }
            Err(error) => {
                let message =
                    format!("The checkpoint of step {step} could not be written: {error}");
                self.missed_checkpoints += 1;
                if kind == CheckpointKind::Final || self.missed_checkpoints > MISSES_ALLOWED {
                    return Err(retryable("checkpoint_failed", message));
                }
                happened.push(warning(message + ". Training goes on; earlier checkpoints stay."));
                Ok(())
            }
        }
    }

    fn announcement(&self) -> Happened {
        let data = &self.training.rows.data;
        Happened::Report(RunReport::Started(RunStarted {
            completed_steps: self.training.step,
            total_steps: self.training.total_steps,
            train_examples: data.rows() as u64,
            valid_examples: self.validation.as_ref().map_or(0, |rows| rows.data.rows() as u64),
            tokens_per_epoch: data.examples.iter().map(|e| e.input_ids.len() as u64).sum(),
            trainable_parameters: self.training.adapter.len() as u64,
        }))
    }

    fn steps_per_epoch(&self) -> u64 {
        let batch_size = self.training.hyperparameters.batch_size as usize;
        self.training.rows.data.steps_per_epoch(batch_size)
    }

    fn is_complete(&self) -> bool {
        let rule = self.training.hyperparameters.early_stopping;
        self.training.step >= self.training.total_steps || Best::is_stale(self.state.best, rule)
    }

    fn ends_epoch(&self) -> bool {
        self.training.step.is_multiple_of(self.steps_per_epoch())
    }

    fn evaluates_fully(&self) -> bool {
        let rule = self.training.hyperparameters.early_stopping;
        let every = rule.map_or(0, |rule| rule.evaluation_steps);
        self.ends_epoch() || (every > 0 && self.training.step.is_multiple_of(every))
    }
}

fn diverged(step: u64, what: &str, skipped: u32) -> RunFailure {
    let message = format!(
        "Training diverged: the {what} was not a finite number in {skipped} steps in a row, \
         the last of them step {step}. Lower the learning rate (learning_rate_multiplier)."
    );
    permanent("loss_diverged", Some("learning_rate_multiplier"), message)
}

fn warning(message: String) -> Happened {
    Happened::Report(RunReport::Message { level: Level::Warn, message })
}
