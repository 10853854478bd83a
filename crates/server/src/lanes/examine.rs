//! Checks a job's files and resolves its hyperparameters: for the validator, and for a request that only asks.
//!
//! Files stream from storage through the checker; at most a few chunks and one batch of rows are in
//! memory.

use std::sync::Arc;

use bytes::Bytes;
use dataset::{
    Checked, Checker, Expected, FileRole, Format, Limits, NoSuchRow, Preview, Previewed,
};
use domain::plan::ResolvedHyperparameters;
use domain::{Hyperparameters, LossType, MethodType, TrainingOptions};
use futures::TryStreamExt;
use serde_json::{Value, json};
use store::files::FileRow;
use store::queue::Note;
use tokio::sync::mpsc;

use super::models::Model;
use super::notes::{field, figures, notes};
use crate::reasons::Reasons;
use crate::resolve::{Measured, max_seq_len, resolve_with_reasons};
use crate::state::AppState;
use crate::tuning::too_many_virtual_tokens;

/// Chunks between storage and checker.
const CHUNKS: usize = 4;

/// A job's wishes and the model that they are for.
pub(crate) struct Examination<'a> {
    pub state: &'a AppState,
    pub model: &'a Arc<Model>,
    pub method: MethodType,
    pub hyperparameters: &'a Hyperparameters,
    pub options: &'a TrainingOptions,
}

/// What good files amount to.
pub(crate) struct Findings {
    pub hyperparameters: ResolvedHyperparameters,
    /// Why each has its value.
    pub reasons: Reasons,
    /// Tokens of all epochs.
    pub planned_tokens: u64,
    /// Optimizer steps of all epochs.
    pub steps: u64,
    /// Shown with the job.
    pub dataset: Value,
}

impl Examination<'_> {
    /// Why the wishes do not fit the model, whatever the files hold.
    pub(crate) fn misfit(&self) -> Option<String> {
        let operator = &self.state.config.training;
        too_many_virtual_tokens(self.options, operator, self.model.context_length)
    }

    /// None when the stored content is gone: that can never be checked; other errors may pass.
    pub(crate) async fn training(&self, file: &FileRow) -> store::Result<Option<Checked>> {
        self.check(FileRole::Training, file, self.expected()).await
    }

    /// A row of a training file, by its number, or the first. None when the stored content is gone.
    pub(crate) async fn preview(
        &self,
        file: &FileRow,
        row: Option<u64>,
    ) -> store::Result<Option<Result<Previewed, NoSuchRow>>> {
        let limits = self.limits(FileRole::Training, self.expected());
        let model = self.model.clone();
        let found = stream(self.state, file, move |mut chunks| {
            let mut preview = Preview::new(&model.tokenizer, limits, row);
            while let Some(chunk) = chunks.blocking_recv()? {
                if !preview.push(&chunk) {
                    break;
                }
            }
            Some(preview.finish())
        });
        unless_gone(found.await)
    }

    /// What the rows of the training file must be.
    fn expected(&self) -> Expected {
        let loss_type = self.hyperparameters.preference.map(|wish| wish.loss_type);
        match (self.method, loss_type) {
            (MethodType::Dpo, Some(LossType::Kto)) => Format::Labelled.into(),
            (MethodType::Dpo, _) => Format::Preference.into(),
            (MethodType::Supervised, _) => Expected::Supervised,
            (MethodType::Reinforcement, _) => Format::Reinforcement.into(),
        }
    }

    /// A validation file, whose rows must be like those of the training file.
    pub(crate) async fn validation(
        &self,
        file: &FileRow,
        like: Format,
    ) -> store::Result<Option<Checked>> {
        self.check(FileRole::Validation, file, like.into()).await
    }

    /// What should be known about the files, with leaks from one to the other.
    pub(crate) fn notes(&self, training: &Checked, validation: Option<&Checked>) -> Vec<Note> {
        let mut all = notes(FileRole::Training, training, None, self.cut_at());
        let other = validation
            .map(|checked| notes(FileRole::Validation, checked, Some(training), self.cut_at()));
        all.extend(other.into_iter().flatten());
        all
    }

    pub(crate) fn findings(
        &self,
        seed: u32,
        training: &Checked,
        validation: Option<&Checked>,
    ) -> Findings {
        let measured = Measured {
            n_examples: training.stats.n_sequences,
            has_validation: validation.is_some(),
            hidden_size: self.model.hidden_size,
            context_length: self.model.context_length,
        };
        let operator = &self.state.config.training;
        let (hyperparameters, reasons) = resolve_with_reasons(
            self.hyperparameters,
            self.options,
            operator,
            u64::from(seed),
            &measured,
        );
        let epochs = u64::from(hyperparameters.n_epochs);
        let mut dataset = json!({});
        let files = [(FileRole::Training, Some(training)), (FileRole::Validation, validation)];
        for (role, checked) in files {
            let Some(checked) = checked else { continue };
            dataset[field(role)] = figures(checked);
        }
        let batch_size = u64::from(hyperparameters.batch_size.max(1));
        Findings {
            planned_tokens: training.stats.tokens_after_truncation.saturating_mul(epochs),
            steps: training.stats.n_sequences.div_ceil(batch_size) * epochs,
            hyperparameters,
            reasons,
            dataset,
        }
    }

    /// Tokens after which an example is cut.
    pub(crate) fn cut_at(&self) -> u32 {
        max_seq_len(self.options, &self.state.config.training, self.model.context_length)
    }

    fn limits(&self, role: FileRole, expected: Expected) -> Limits {
        Limits {
            max_line_bytes: self.state.config.max_line_bytes.as_u64() as usize,
            ..Limits::new(role, expected, self.cut_at() as usize)
        }
    }

    async fn check(
        &self,
        role: FileRole,
        file: &FileRow,
        expected: Expected,
    ) -> store::Result<Option<Checked>> {
        let (model, limits) = (self.model.clone(), self.limits(role, expected));
        let checked = stream(self.state, file, move |mut chunks| {
            let mut checker = Checker::new(&model.tokenizer, limits);
            while let Some(chunk) = chunks.blocking_recv()? {
                checker.push(&chunk);
            }
            Some(checker.finish())
        });
        unless_gone(checked.await)
    }
}

fn unless_gone<T>(found: store::Result<T>) -> store::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(store::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file as it comes from storage. `None` ends it; a channel that closes without it means that reading failed.
pub(crate) type Chunks = mpsc::Receiver<Option<Bytes>>;

/// Streams a file through `work`, which runs on a thread of its own and may end before the file does.
pub(crate) async fn stream<T: Send + 'static>(
    state: &AppState,
    file: &FileRow,
    work: impl FnOnce(Chunks) -> Option<T> + Send + 'static,
) -> store::Result<T> {
    let mut reader = store::files::read(&state.store, file, None).await?;
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let working = tokio::task::spawn_blocking(move || work(receiver));
    while let Some(chunk) = reader.stream.try_next().await? {
        if sender.send(Some(chunk)).await.is_err() {
            break;
        }
    }
    // The other end is gone only when the work is done or has failed, which the join tells.
    let _ = sender.send(None).await;
    match working.await {
        Ok(Some(done)) => Ok(done),
        Ok(None) | Err(_) => {
            Err(store::Error::Inconsistent(format!("the checker failed on file {}", file.id)))
        }
    }
}
