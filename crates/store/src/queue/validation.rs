//! `validating_files` → `queued` or `failed`. The server checks the files; a claim with an end sees to it that
//! exactly one does, and that another takes over if it dies.

use std::time::Duration;

use domain::JobStatus;
use domain::plan::ResolvedHyperparameters;
use domain::report::Level;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{CRASH_BUDGET, Change, Held, change, fail_held, hold};
use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::events;
use crate::files::{self, FileRow};
use crate::jobs::{self, JobError, JobRow};
use crate::messages;
use crate::text;

/// A job whose files are to be validated, by the holder of this claim alone.
#[derive(Debug, Clone)]
pub struct ValidationClaim {
    pub job: JobRow,
    pub training_file: FileRow,
    pub validation_file: Option<FileRow>,
}

impl ValidationClaim {
    /// The claim's number: a later claim has a higher one.
    fn key(&self) -> (String, i64) {
        (self.job.id.to_string(), self.job.fence)
    }
}

/// What validation found.
#[derive(Debug, Clone)]
pub enum Validation {
    Passed {
        hyperparameters: Box<ResolvedHyperparameters>,
        /// Tokens of all epochs.
        planned_tokens: u64,
        /// Shown with the job.
        dataset: Value,
        /// Things that the user should read; each becomes an event.
        notes: Vec<Note>,
    },
    Failed {
        error: JobError,
        /// Goes into the last event.
        data: Value,
    },
}

/// A remark about files that are good.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    pub level: Level,
    pub message: String,
    /// The same for programs: an object.
    pub data: Value,
}

/// Takes the oldest job that waits for validation, for `hold`; after that somebody else may take it. Writes
/// the event `Validating training file: …` the first time.
pub async fn claim_validation(db: &Db, hold: Duration) -> Result<Option<ValidationClaim>> {
    db.transact(Lane::Api, hold, |tx, hold| Box::pin(claim_next(tx, *hold))).await
}

async fn claim_next(tx: &mut PgConnection, hold: Duration) -> Result<Option<ValidationClaim>> {
    // A claim that ran out was held by somebody who died: that counts against the job.
    let id: Option<(String,)> = sqlx::query_as(
        "with next as materialized (
             select id from jobs
             where status = 'validating_files' and run_after <= statement_timestamp()
               and (validating_until is null or validating_until < statement_timestamp())
             order by run_after, id limit 1 for no key update skip locked)
         update jobs j set fence = j.fence + 1, validating_until = clock_timestamp() + $1,
             crashes = j.crashes + (j.validating_until is not null)::int
         from next where j.id = next.id and j.status = 'validating_files'
         returning j.id",
    )
    .bind(crate::interval(hold))
    .fetch_optional(&mut *tx)
    .await?;
    let Some((id,)) = id else { return Ok(None) };
    let held: Held = sqlx::query_as(hold!("id = $1")).bind(&id).fetch_one(&mut *tx).await?;
    let outcome = match held.crashes {
        crashes if crashes >= CRASH_BUDGET => {
            Err(Error::Inconsistent("the server died several times while it read them".to_owned()))
        }
        _ => assemble(tx, &held).await,
    };
    match outcome {
        Ok(claim) => Ok(Some(claim)),
        Err(error @ (Error::NotFound(_) | Error::Inconsistent(_))) => {
            let error = JobError {
                code: "internal_error".to_owned(),
                param: Some("training_file".to_owned()),
                message: format!("The files cannot be validated: {error}."),
            };
            fail_held(tx, &held, &error, Value::Null, None).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn assemble(tx: &mut PgConnection, held: &Held) -> Result<ValidationClaim> {
    let job = jobs::load(tx, &held.id()).await?;
    let training_file = files::of_job(tx, &held.project_id, job.training_file.as_str()).await?;
    let validation_file = match &job.validation_file {
        Some(file) => Some(files::of_job(tx, &held.project_id, file.as_str()).await?),
        None => None,
    };
    if held.fence == 1 {
        let event = messages::validating(&job.training_file, job.validation_file.as_ref());
        events::append(tx, &job.id, &[event]).await?;
    }
    Ok(ValidationClaim { job, training_file, validation_file })
}

/// Holds the claim for `hold` from now on. `LeaseLost` when the job was cancelled or taken over.
pub async fn extend_validation(db: &Db, claim: &ValidationClaim, hold: Duration) -> Result<()> {
    let (id, fence) = claim.key();
    let changed = sqlx::query(
        "update jobs set validating_until = clock_timestamp() + $3
         where id = $1 and fence = $2 and status = 'validating_files'
           and validating_until is not null",
    )
    .bind(id)
    .bind(fence)
    .bind(crate::interval(hold))
    .execute(&db.pool)
    .await?
    .rows_affected();
    if changed == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Gives the claim back unfinished (storage out of reach, shutdown); it may be claimed after `retry_in`.
pub async fn release_validation(
    db: &Db,
    claim: &ValidationClaim,
    retry_in: Duration,
) -> Result<()> {
    let (id, fence) = claim.key();
    let changed = sqlx::query(
        "update jobs set validating_until = null, run_after = clock_timestamp() + $3
         where id = $1 and fence = $2 and status = 'validating_files'",
    )
    .bind(id)
    .bind(fence)
    .bind(crate::interval(retry_in))
    .execute(&db.pool)
    .await?
    .rows_affected();
    if changed == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// `validating_files` → `queued` or `failed`, with events. `LeaseLost` when the job was cancelled or taken over.
pub async fn finish_validation(
    db: &Db,
    claim: &ValidationClaim,
    validation: Validation,
) -> Result<JobStatus> {
    let args = (claim.key(), validation);
    db.transact(Lane::Api, args, |tx, ((id, fence), validation)| {
        Box::pin(finish(tx, id, *fence, validation))
    })
    .await
}

async fn finish(
    tx: &mut PgConnection,
    id: &str,
    fence: i64,
    validation: &Validation,
) -> Result<JobStatus> {
    let claimed = hold!(
        "id = $1 and fence = $2 and status = 'validating_files' and validating_until is not null"
    );
    let held: Option<Held> =
        sqlx::query_as(claimed).bind(id).bind(fence).fetch_optional(&mut *tx).await?;
    let held = held.ok_or(Error::LeaseLost)?;
    let (hyperparameters, dataset, notes) = match validation {
        Validation::Passed { hyperparameters, dataset, notes, planned_tokens } => {
            sqlx::query("update jobs set planned_tokens = $2 where id = $1")
                .bind(id)
                .bind(i64::try_from(*planned_tokens).unwrap_or(i64::MAX))
                .execute(&mut *tx)
                .await?;
            (hyperparameters, dataset, notes)
        }
        Validation::Failed { error, data } => {
            fail_held(tx, &held, error, data.clone(), None).await?;
            return Ok(JobStatus::Failed);
        }
    };
    sqlx::query("update job_details set resolved = $2, dataset = $3 where job_id = $1")
        .bind(id)
        .bind(Json(hyperparameters))
        .bind(text::clean_json(dataset))
        .execute(&mut *tx)
        .await?;
    change(tx, &held, JobStatus::Queued, Change::default()).await?;
    let mut new: Vec<_> = notes.iter().map(messages::note).collect();
    new.push(messages::validated());
    events::append(tx, &held.id(), &new).await?;
    Ok(JobStatus::Queued)
}
