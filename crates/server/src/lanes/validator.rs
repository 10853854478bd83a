//! The validator: takes jobs in `validating_files`, checks their files row by row, resolves every
//! `auto`, and moves them to `queued` or `failed`.
//!
//! The claim is renewed while the work goes on; a validator that dies leaves a claim that
//! runs out.

use std::time::Duration;

use dataset::FileRole;
use domain::JobStatus;
use domain::report::Level;
use serde_json::json;
use store::base_models;
use store::queue::{self, Note, Validation, ValidationClaim};

use super::examine::Examination;
use super::failure;
use super::models::ModelError;
use super::notes::field;
use crate::error::ErrorChain;
use crate::integrations::WANDB_NOTE;
use crate::state::AppState;

/// How long a claim lasts without being renewed.
const HOLD: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(1);
const RETRY_IN: Duration = Duration::from_secs(5);

pub(crate) async fn run(state: AppState) {
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
                work(&state, &claim).await;
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
async fn work(state: &AppState, claim: &ValidationClaim) {
    let db = &state.store.db;
    let outcome = tokio::select! {
        outcome = validate(state, claim) => outcome,
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
            state.follow.ring();
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
async fn validate(state: &AppState, claim: &ValidationClaim) -> store::Result<Validation> {
    let job = &claim.job;
    let row = match base_models::get_for_workers(&state.store.db, &job.base_model).await {
        Ok(row) => row,
        Err(store::Error::NotFound(_)) => {
            let message = format!("The base model {} was removed.", job.base_model);
            return Ok(failure::of_job("model_not_available", Some("model"), message));
        }
        Err(error) => return Err(error),
    };
    let model = match state.models.get(&state.store, &row).await {
        Ok(model) => model,
        Err(error @ ModelError::Unusable { .. }) => {
            let message = error.to_string();
            return Ok(failure::of_job("model_not_available", Some("model"), message));
        }
        Err(ModelError::Store(error)) => return Err(error),
    };
    let examination = Examination {
        state,
        model: &model,
        method: job.method,
        hyperparameters: &job.hyperparameters,
        options: &job.options,
    };
    if let Some(message) = examination.misfit() {
        return Ok(failure::of_job("invalid_hyperparameters", Some("virtual_tokens"), message));
    }
    let Some(training) = examination.training(&claim.training_file).await? else {
        return Ok(unreadable(FileRole::Training));
    };
    let validation = match &claim.validation_file {
        None => None,
        Some(file) => match examination.validation(file, training.format).await? {
            None => return Ok(unreadable(FileRole::Validation)),
            some => some,
        },
    };
    if let Some(failed) = failure::of_files(&training, validation.as_ref()) {
        return Ok(failed);
    }
    let findings = examination.findings(job.seed, &training, validation.as_ref());
    let mut notes = examination.notes(&training, validation.as_ref());
    if job.integrations.as_array().is_some_and(|integrations| !integrations.is_empty()) {
        notes.push(wandb_note());
    }
    Ok(Validation::Passed {
        hyperparameters: Box::new(findings.hyperparameters),
        planned_tokens: findings.planned_tokens,
        dataset: findings.dataset,
        notes,
    })
}

fn wandb_note() -> Note {
    let data = json!({ "finding": "integration_without_effect" });
    Note { level: Level::Warn, message: WANDB_NOTE.to_owned(), data }
}

fn unreadable(role: FileRole) -> Validation {
    let code = format!("invalid_{}", field(role));
    let message = "The content of the file is not in the storage any more. Upload it again.";
    failure::of_job(&code, Some(field(role)), message.to_owned())
}
