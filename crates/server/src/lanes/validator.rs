//! The validator: takes jobs in `validating_files`, checks their files row by row, resolves every
//! `auto`, and moves them to `queued` or `failed`.
//!
//! Files stream from storage through the checker; at most a few chunks and one batch of rows are in
//! memory. The claim is renewed while the work goes on; a validator that dies leaves a claim that
//! runs out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dataset::{Checked, Checker, FileRole, Format, Limits, Stats};
use domain::report::Level;
use domain::{JobStatus, LossType, MethodType};
use futures::TryStreamExt;
use serde_json::{Value, json};
use store::base_models;
use store::files::FileRow;
use store::queue::{self, Validation, ValidationClaim};
use tokio::sync::mpsc;

use super::failure;
use super::models::{Model, ModelError, Models};
use crate::error::ErrorChain;
use crate::hyperparameters::{Measured, max_seq_len, resolve};
use crate::state::AppState;

/// How long a claim lasts without being renewed.
const HOLD: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(1);
const RETRY_IN: Duration = Duration::from_secs(5);
/// Chunks between storage and checker.
const CHUNKS: usize = 4;
/// Row numbers that a note spells out.
const LINES_SHOWN: usize = 20;

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
    let cut_at = max_seq_len(&job.options, operator, model.context_length);
    let loss_type = job.hyperparameters.preference.map(|wish| wish.loss_type);
    let format = match (job.method, loss_type) {
        (MethodType::Dpo, Some(LossType::Kto)) => Format::Labelled,
        (MethodType::Dpo, _) => Format::Preference,
        (MethodType::Supervised | MethodType::Reinforcement, _) => Format::Chat,
    };
    let limits = |role| Limits {
        max_line_bytes: state.config.max_line_bytes.as_u64() as usize,
        ..Limits::new(role, format, cut_at as usize)
    };
    let training = check(state, &model, &claim.training_file, limits(FileRole::Training)).await;
    let Some(training) = found(training)? else { return Ok(unreadable(FileRole::Training)) };
    let validation = match &claim.validation_file {
        None => None,
        Some(file) => {
            let checked = check(state, &model, file, limits(FileRole::Validation)).await;
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
        n_examples: training.stats.n_examples,
        has_validation: validation.is_some(),
        hidden_size: model.hidden_size,
        context_length: model.context_length,
    };
    let seed = u64::from(job.seed);
    let hyperparameters = resolve(&job.hyperparameters, &job.options, operator, seed, &measured);
    let mut notes = notes("Training", format, &training.stats, cut_at);
    let mut dataset = json!({ "training_file": figures(&training.stats) });
    if let Some(Checked { stats, .. }) = &validation {
        notes.extend(self::notes("Validation", format, stats, cut_at));
        dataset["validation_file"] = figures(stats);
    }
    Ok(Validation::Passed { hyperparameters, dataset, notes })
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
    let (code, param) = match role {
        FileRole::Training => ("invalid_training_file", "training_file"),
        FileRole::Validation => ("invalid_validation_file", "validation_file"),
    };
    let message = "The content of the file is not in the storage any more. Upload it again.";
    failure::of_job(code, Some(param), message.to_owned())
}

/// Streams a file through the checker, which runs on a thread of its own.
async fn check(
    state: &AppState,
    model: &Arc<Model>,
    file: &FileRow,
    limits: Limits,
) -> store::Result<Checked> {
    let mut reader = state.store.blobs.get(&file.blob_key(), None).await?;
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

/// What the user should know though the file is good.
fn notes(name: &str, format: Format, stats: &Stats, cut_at: u32) -> Vec<(Level, String)> {
    let mut notes = Vec::new();
    if stats.n_truncated > 0 {
        let text = format!(
            "{name} file: {} of {} examples are longer than {cut_at} tokens and are cut at the \
             end: {}",
            stats.n_truncated,
            stats.n_examples,
            lines(&stats.truncated_lines, stats.n_truncated)
        );
        notes.push((Level::Warn, text));
    }
    if stats.n_without_targets > 0 {
        let text = format!(
            "{name} file: {} of {} examples have no token to train on: {}",
            stats.n_without_targets,
            stats.n_examples,
            lines(&stats.lines_without_targets, stats.n_without_targets)
        );
        notes.push((Level::Warn, text));
    }
    if stats.n_equal_pairs > 0 {
        let text = format!(
            "{name} file: {} of {} examples have two equal answers, which teach nothing: {}",
            stats.n_equal_pairs,
            stats.n_examples,
            lines(&stats.lines_of_equal_pairs, stats.n_equal_pairs)
        );
        notes.push((Level::Warn, text));
    }
    let labelled = format == Format::Labelled && stats.n_examples > 0;
    if labelled && (stats.n_undesirable == 0 || stats.n_undesirable == stats.n_examples) {
        let which = if stats.n_undesirable == 0 { "good" } else { "bad" };
        let text = format!(
            "{name} file: all {} examples are labelled as {which} ones; 'kto' learns from the \
             difference to the others.",
            stats.n_examples
        );
        notes.push((Level::Warn, text));
    }
    if stats.n_old_keys > 0 {
        let text = format!(
            "{name} file: {} of {} examples say 'preferred_completion' and \
             'non_preferred_completion', which were read as 'preferred_output' and \
             'non_preferred_output'. OpenAI's service does not take the older names.",
            stats.n_old_keys, stats.n_examples
        );
        notes.push((Level::Warn, text));
    }
    notes
}

/// `lines 1, 5, 9 and 4 more`.
fn lines(numbers: &[u64], total: u64) -> String {
    let shown: Vec<String> = numbers.iter().take(LINES_SHOWN).map(u64::to_string).collect();
    let more = total - shown.len() as u64;
    let word = if total == 1 { "line" } else { "lines" };
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{word} {}{rest}", shown.join(", "))
}

/// The figures shown with the job.
fn figures(stats: &Stats) -> Value {
    json!({
        "n_examples": stats.n_examples,
        "tokens": stats.tokens,
        "tokens_after_truncation": stats.tokens_after_truncation,
        "target_tokens": stats.target_tokens,
        "max_tokens": stats.max_tokens,
        "n_truncated": stats.n_truncated,
        "lengths": stats.lengths,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_rows_are_named_and_counted() {
        let stats = Stats {
            n_examples: 100,
            n_truncated: 25,
            truncated_lines: (1..=25).collect(),
            ..Stats::default()
        };
        let notes = notes("Training", Format::Chat, &stats, 512);
        let [(Level::Warn, text)] = notes.as_slice() else { panic!("{notes:?}") };
        assert!(text.starts_with("Training file: 25 of 100 examples are longer than 512 tokens"));
        assert!(text.ends_with("lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20 and 5 more"), "{text}");
    }
}
