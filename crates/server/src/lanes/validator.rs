//! The validator: takes jobs in `validating_files`, checks their files row by row, resolves every
//! `auto`, and moves them to `queued` or `failed`.
//!
//! Files stream from storage through the checker; at most a few chunks and one batch of rows are in
//! memory. The claim is renewed while the work goes on; a validator that dies leaves a claim that
//! runs out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dataset::{Checked, Checker, Expected, FileRole, Format, Limits};
use domain::{JobStatus, LossType, MethodType};
use futures::TryStreamExt;
use serde_json::json;
use store::base_models;
use store::files::FileRow;
use store::queue::{self, Validation, ValidationClaim};
use tokio::sync::mpsc;

use super::failure;
use super::models::{Model, ModelError, Models};
use super::notes::{field, figures, notes};
use crate::error::ErrorChain;
use crate::hyperparameters::{Measured, max_seq_len, resolve};
use crate::state::AppState;
use crate::tuning::too_many_virtual_tokens;

/// How long a claim lasts without being renewed.
const HOLD: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(1);
const RETRY_IN: Duration = Duration::from_secs(5);
/// Chunks between storage and checker.
const CHUNKS: usize = 4;

pub(crate) async fn run(state: AppState, models: Models) {
    loop {
        // Listening begins before looking, so that no job falls between the two.
        let woken = state.wake.validation.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if state.stopping.is_cancelled() {
            return;
        }
        match queue::claim_validation(&state.store.db, HOLD).await {
            Ok(Some(claim)) => {
                work(&state, &models, &claim).await;
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(error, "looking for jobs to validate failed");
            }
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(POLL) => {}
            () = state.stopping.cancelled() => return,
        }
    }
}

/// Validates one job and records the outcome. Whatever cannot be recorded now is claimed again
/// later.
async fn work(state: &AppState, models: &Models, claim: &ValidationClaim) {
    let db = &state.store.db;
    let outcome = tokio::select! {
        outcome = validate(state, models, claim) => outcome,
        error = lose(state, claim) => Err(error),
        () = state.stopping.cancelled() => {
            give_back(state, claim, Duration::ZERO).await;
            return;
        }
    };
    let recorded = match outcome {
        Ok(validation) => queue::finish_validation(db, claim, validation).await,
        Err(error) => Err(error),
    };
    let job = &claim.job.id;
    match recorded {
        Ok(status) => {
            tracing::info!(job.id = %job, %status, "files validated");
            if status == JobStatus::Queued {
                state.wake.claim.notify_waiters();
            }
        }
        Err(store::Error::LeaseLost) => {
            tracing::info!(job.id = %job, "the job was cancelled or taken over in validation");
        }
        Err(error) => {
            let error = ErrorChain(&error).to_string();
            tracing::warn!(job.id = %job, error, "validation has to be tried again");
            give_back(state, claim, RETRY_IN).await;
        }
    }
}

/// Renews the claim again and again; returns only when it is lost.
async fn lose(state: &AppState, claim: &ValidationClaim) -> store::Error {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        match queue::extend_validation(&state.store.db, claim, HOLD).await {
            Ok(()) => {}
            Err(error @ store::Error::LeaseLost) => return error,
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(job.id = %claim.job.id, error, "renewing a claim failed");
            }
        }
    }
}

async fn give_back(state: &AppState, claim: &ValidationClaim, retry_in: Duration) {
    if let Err(error) = queue::release_validation(&state.store.db, claim, retry_in).await {
        // The claim runs out by itself.
        let error = ErrorChain(&error).to_string();
        tracing::debug!(job.id = %claim.job.id, error, "a claim could not be given back");
    }
}

/// Errors are passing trouble; everything that would end the same again is an outcome.
async fn validate(
    state: &AppState,
    models: &Models,
    claim: &ValidationClaim,
) -> store::Result<Validation> {
    let job = &claim.job;
    let row = match base_models::get_for_workers(&state.store.db, &job.base_model).await {
        Ok(row) => row,
        Err(store::Error::NotFound(_)) => {
            let message = format!("The base model {} was removed.", job.base_model);
            return Ok(failure::of_job("model_not_available", Some("model"), message));
        }
        Err(error) => return Err(error),
    };
    let model = match models.get(&state.store, &row).await {
        Ok(model) => model,
        Err(error @ ModelError::Unusable { .. }) => {
            let message = error.to_string();
            return Ok(failure::of_job("model_not_available", Some("model"), message));
        }
        Err(ModelError::Store(error)) => return Err(error),
    };
    let operator = &state.config.training;
    if let Some(message) = too_many_virtual_tokens(&job.options, operator, model.context_length) {
        return Ok(failure::of_job("invalid_hyperparameters", Some("virtual_tokens"), message));
    }
    let cut_at = max_seq_len(&job.options, operator, model.context_length);
    let loss_type = job.hyperparameters.preference.map(|wish| wish.loss_type);
    let expected = match (job.method, loss_type) {
        (MethodType::Dpo, Some(LossType::Kto)) => Format::Labelled.into(),
        (MethodType::Dpo, _) => Format::Preference.into(),
        (MethodType::Supervised | MethodType::Reinforcement, _) => Expected::Supervised,
    };
    let limits = |role, expected| Limits {
        max_line_bytes: state.config.max_line_bytes.as_u64() as usize,
        ..Limits::new(role, expected, cut_at as usize)
    };
    let wanted = limits(FileRole::Training, expected);
    let training = check(state, &model, &claim.training_file, wanted).await;
    let Some(training) = found(training)? else { return Ok(unreadable(FileRole::Training)) };
    let validation = match &claim.validation_file {
        None => None,
        Some(file) => {
            let wanted = limits(FileRole::Validation, training.format.into());
            let checked = check(state, &model, file, wanted).await;
            match found(checked)? {
                None => return Ok(unreadable(FileRole::Validation)),
                some => some,
            }
        }
    };
    if let Some(failed) = failure::of_files(&training, validation.as_ref()) {
        return Ok(failed);
    }
    let measured = Measured {
        n_examples: training.stats.n_sequences,
        has_validation: validation.is_some(),
        hidden_size: model.hidden_size,
        context_length: model.context_length,
    };
    let seed = u64::from(job.seed);
    let hyperparameters = resolve(&job.hyperparameters, &job.options, operator, seed, &measured);
    let mut remarks = Vec::new();
    let mut dataset = json!({});
    let files =
        [(FileRole::Training, Some(&training)), (FileRole::Validation, validation.as_ref())];
    for (role, checked) in files {
        let Some(Checked { format, stats, .. }) = checked else { continue };
        remarks.extend(notes(role, *format, stats, cut_at));
        dataset[field(role)] = figures(*format, stats);
    }
    Ok(Validation::Passed { hyperparameters, dataset, notes: remarks })
}

/// A stored file that is gone can never be validated; other errors may pass.
fn found(checked: store::Result<Checked>) -> store::Result<Option<Checked>> {
    match checked {
        Ok(checked) => Ok(Some(checked)),
        Err(store::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn unreadable(role: FileRole) -> Validation {
    let code = format!("invalid_{}", field(role));
    let message = "The content of the file is not in the storage any more. Upload it again.";
    failure::of_job(&code, Some(field(role)), message.to_owned())
}

/// Streams a file through the checker, which runs on a thread of its own.
async fn check(
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
