//! Checks a job's files and resolves its hyperparameters: for the validator, and for a request that only asks.
//!
//! Files stream from storage through the checker; at most a few chunks and one batch of rows are in
//! memory.

use std::sync::Arc;

use bytes::Bytes;
use dataset::{Checked, Checker, Expected, FileRole, Format, Limits};
use domain::plan::ResolvedHyperparameters;
use domain::{Hyperparameters, LossType, MethodType, TrainingOptions};
use futures::TryStreamExt;
use serde_json::{Value, json};
use store::files::FileRow;
use store::queue::Note;
use tokio::sync::mpsc;

use super::models::Model;
use super::notes::{field, figures, notes};
use crate::hyperparameters::{Measured, max_seq_len, resolve};
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
        let loss_type = self.hyperparameters.preference.map(|wish| wish.loss_type);
        let expected = match (self.method, loss_type) {
            (MethodType::Dpo, Some(LossType::Kto)) => Format::Labelled.into(),
            (MethodType::Dpo, _) => Format::Preference.into(),
            (MethodType::Supervised, _) => Expected::Supervised,
            (MethodType::Reinforcement, _) => Format::Reinforcement.into(),
        };
        self.check(FileRole::Training, file, expected).await
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
        let hyperparameters =
            resolve(self.hyperparameters, self.options, operator, u64::from(seed), &measured);
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
            dataset,
        }
    }

    /// Tokens after which an example is cut.
    fn cut_at(&self) -> u32 {
        max_seq_len(self.options, &self.state.config.training, self.model.context_length)
    }

    async fn check(
        &self,
        role: FileRole,
        file: &FileRow,
        expected: Expected,
    ) -> store::Result<Option<Checked>> {
        let limits = Limits {
            max_line_bytes: self.state.config.max_line_bytes.as_u64() as usize,
            ..Limits::new(role, expected, self.cut_at() as usize)
        };
        match stream(self.state, self.model, file, limits).await {
            Ok(checked) => Ok(Some(checked)),
            Err(store::Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Streams a file through the checker, which runs on a thread of its own.
async fn stream(
    state: &AppState,
    model: &Arc<Model>,
    file: &FileRow,
    limits: Limits,
) -> store::Result<Checked> {
    let mut reader = store::files::read(&state.store, file, None).await?;
    let (sender, mut receiver) = mpsc::channel::<Option<Bytes>>(CHUNKS);
    let model = model.clone();
    let checking = tokio::task::spawn_blocking(move || {
        let mut checker = Checker::new(&model.tokenizer, limits);
        // `None` ends the file; a channel that closes without it means that reading failed.
        while let Some(chunk) = receiver.blocking_recv()? {
            checker.push(&chunk);
        }
        Some(checker.finish())
    });
    while let Some(chunk) = reader.stream.try_next().await? {
        if sender.send(Some(chunk)).await.is_err() {
            break;
        }
    }
    // The other end is gone only when the checker has failed, which the join tells.
    let _ = sender.send(None).await;
    match checking.await {
        Ok(Some(checked)) => Ok(checked),
        Ok(None) | Err(_) => {
            Err(store::Error::Inconsistent(format!("the checker failed on file {}", file.id)))
        }
    }
}
