//! Runs of an evaluation as users see them: create, get, list, cancel, delete. What a claim does to a run is in
//! [`super::claims`].

use std::collections::BTreeMap;

use domain::{EvalId, EvalRunId, FileId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::{Metadata, clean_metadata};
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::idempotency::{self, Created, Once};
use crate::page::{Page, PageQuery};
use crate::projects::Project;
use crate::text;
use crate::webhooks::outbox::{self, Subject};

/// The API's own words. OpenAI spells `canceled` here with one l.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStatus {
    Queued,
    InProgress,
    Completed,
    Failed,
    Canceled,
}

impl RunStatus {
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::InProgress, Self::Completed, Self::Failed, Self::Canceled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }

    /// What the end is called in the type of an event.
    fn event_word(self) -> &'static str {
        match self {
            Self::Completed => "succeeded",
            other => other.as_str(),
        }
    }

    pub(super) fn from_column(text: &str) -> Self {
        // The column's CHECK admits these five.
        Self::ALL.into_iter().find(|status| status.as_str() == text).unwrap_or(Self::Queued)
    }
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    pub code: String,
    pub message: String,
}

/// What a grader has said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CriterionTally {
    pub passed: u32,
    pub failed: u32,
}

/// What a model has done for a run: as the one that is asked, or as a judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelUsage {
    pub invocations: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cached_tokens: u64,
}

impl std::ops::AddAssign for ModelUsage {
    fn add_assign(&mut self, other: Self) {
        self.invocations += other.invocations;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cached_tokens += other.cached_tokens;
    }
}

/// The sums that grow with every item.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tallies {
    /// In the order of the testing criteria.
    #[serde(default)]
    pub criteria: Vec<CriterionTally>,
    #[serde(default)]
    pub usage: BTreeMap<String, ModelUsage>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    pub id: EvalRunId,
    pub eval_id: EvalId,
    pub status: RunStatus,
    pub name: String,
    /// Empty where no model is asked.
    pub model: String,
    pub data_source: Value,
    pub metadata: Option<Metadata>,
    /// Rows in the data source, once they are counted.
    pub items: Option<u32>,
    pub total: u32,
    pub passed: u32,
    pub failed: u32,
    pub errored: u32,
    pub tallies: Tallies,
    pub error: Option<RunError>,
    pub created_at: OffsetDateTime,
    pub finished_at: Option<OffsetDateTime>,
}

#[derive(Debug, Clone)]
pub struct NewRun {
    pub name: String,
    pub model: String,
    pub data_source: Value,
    /// The file that holds the rows; it is locked against deletion until the run has ended.
    pub source_file: Option<FileId>,
    pub metadata: Option<Metadata>,
}

#[derive(FromRow)]
pub(super) struct RunRecord {
    id: String,
    eval_id: String,
    status: String,
    name: String,
    model: String,
    data_source: Json<Value>,
    metadata: Option<Json<Metadata>>,
    items: Option<i32>,
    total: i32,
    passed: i32,
    failed: i32,
    errored: i32,
    tallies: Json<Tallies>,
    error: Option<Json<RunError>>,
    created_at: OffsetDateTime,
    finished_at: Option<OffsetDateTime>,
    bytes: i32,
}

impl From<RunRecord> for RunRow {
    fn from(record: RunRecord) -> Self {
        Self {
            id: record.id.into(),
            eval_id: record.eval_id.into(),
            status: RunStatus::from_column(&record.status),
            name: record.name,
            model: record.model,
            data_source: record.data_source.0,
            metadata: record.metadata.map(|metadata| metadata.0),
            items: record.items.map(i32::unsigned_abs),
            total: record.total.unsigned_abs(),
            passed: record.passed.unsigned_abs(),
            failed: record.failed.unsigned_abs(),
            errored: record.errored.unsigned_abs(),
            tallies: record.tallies.0,
            error: record.error.map(|error| error.0),
            created_at: record.created_at,
            finished_at: record.finished_at,
        }
    }
}

macro_rules! columns {
    () => {
        "id, eval_id, status, name, model, data_source, metadata, items, total, passed, failed, errored, tallies,
         error, created_at, finished_at, octet_length(data_source::text) as bytes"
    };
}
pub(super) use columns;

/// A queued run. `NotFound("eval")` or `NotFound("file")` when one of them is not there (any more).
pub async fn create(
    db: &Db,
    project: &Project,
    eval: &EvalId,
    new: NewRun,
    once: Option<Once>,
) -> Result<RunRow> {
    let args = (project.clone(), eval.clone(), new, once);
    db.transact(Lane::Api, args, |tx, (project, eval, new, once)| {
        Box::pin(async move {
            let id = EvalRunId::new();
            let first = idempotency::begin(tx, project.id.as_str(), once.as_ref(), id.as_str());
            match first.await? {
                Some(first) => find(tx, project, eval, &first.into()).await,
                None => insert(tx, project, eval, &id, new).await,
            }
        })
    })
    .await
}

async fn insert(
    tx: &mut PgConnection,
    project: &Project,
    eval: &EvalId,
    id: &EvalRunId,
    new: &NewRun,
) -> Result<RunRow> {
    super::claims::require_eval(tx, project, eval).await?;
    if let Some(file) = &new.source_file {
        // The share of the lock holds off a deletion until this run's row can be seen.
        sqlx::query("select 1 from files where id = $1 and project_id = $2 for share")
            .bind(file.as_str())
            .bind(project.id.as_str())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(Error::NotFound("file"))?;
    }
    let record: RunRecord = sqlx::query_as(concat!(
        "insert into eval_runs (id, project_id, eval_id, name, model, data_source, source_file, metadata)
         values ($1, $2, $3, $4, $5, $6::json, $7, $8) returning ",
        columns!()
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(eval.as_str())
    .bind(text::clean(&new.name))
    .bind(text::clean(&new.model))
    .bind(new.data_source.to_string())
    .bind(new.source_file.as_ref().map(FileId::as_str))
    .bind(clean_metadata(new.metadata.as_ref()))
    .fetch_one(tx)
    .await?;
    Ok(record.into())
}

pub async fn get(db: &Db, project: &Project, eval: &EvalId, id: &EvalRunId) -> Result<RunRow> {
    find(&db.pool, project, eval, id).await
}

async fn find(
    db: impl PgExecutor<'_>,
    project: &Project,
    eval: &EvalId,
    id: &EvalRunId,
) -> Result<RunRow> {
    let record: Option<RunRecord> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from eval_runs where id = $1 and eval_id = $2 and project_id = $3"
    ))
    .bind(id.as_str())
    .bind(eval.as_str())
    .bind(project.id.as_str())
    .fetch_optional(db)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("eval run"))
}

/// `NotFound` unless the evaluation has that run.
pub(super) async fn require(
    db: &Db,
    project: &Project,
    eval: &EvalId,
    id: &EvalRunId,
) -> Result<()> {
    sqlx::query("select 1 from eval_runs where id = $1 and eval_id = $2 and project_id = $3")
        .bind(id.as_str())
        .bind(eval.as_str())
        .bind(project.id.as_str())
        .fetch_optional(&db.pool)
        .await?
        .map(|_| ())
        .ok_or(Error::NotFound("eval run"))
}

/// The runs of an evaluation, by creation; of one status alone, if it is named.
pub async fn list(
    db: &Db,
    project: &Project,
    eval: &EvalId,
    status: Option<RunStatus>,
    page: &PageQuery,
) -> Result<Page<RunRow>> {
    super::get(db, project, eval).await?;
    let statement = page.sql(concat!(
        "select ",
        columns!(),
        " from eval_runs where eval_id = $1 and project_id = $2 and ($3::text is null or status = $3)
            and ($4::text is null or (created_at, id) {after}
                 (select created_at, id from eval_runs where id = $4 and eval_id = $1))
          order by created_at {way}, id {way} limit $5"
    ));
    let rows = sqlx::query_as::<_, RunRecord>(statement)
        .bind(eval.as_str())
        .bind(project.id.as_str())
        .bind(status.map(RunStatus::as_str))
        .bind(page.after.as_deref())
        .bind(page.fetch_limit())
        .fetch(&db.pool);
    Page::gather(rows, page, |record| record.bytes.unsigned_abs() as usize).await
}

/// Ends a run at once: whoever executes it loses the claim. Cancelling a canceled run again gives it back as it
/// is; one that has ended otherwise is a conflict.
pub async fn cancel(db: &Db, project: &Project, eval: &EvalId, id: &EvalRunId) -> Result<RunRow> {
    let args = (project.clone(), eval.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, eval, id)| {
        Box::pin(cancel_row(tx, project, eval, id))
    })
    .await
}

async fn cancel_row(
    tx: &mut PgConnection,
    project: &Project,
    eval: &EvalId,
    id: &EvalRunId,
) -> Result<RunRow> {
    let found: Option<(String,)> = sqlx::query_as(
        "select status from eval_runs where id = $1 and eval_id = $2 and project_id = $3
         for no key update",
    )
    .bind(id.as_str())
    .bind(eval.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let status = RunStatus::from_column(&found.ok_or(Error::NotFound("eval run"))?.0);
    match status {
        RunStatus::Completed | RunStatus::Failed => {
            Err(Conflict::EvalRunEnded { run: id.clone(), status: status.as_str() }.into())
        }
        RunStatus::Canceled => load(tx, id.as_str()).await,
        RunStatus::Queued | RunStatus::InProgress => {
            end(tx, id.as_str(), RunStatus::Canceled, None).await
        }
    }
}

async fn load(tx: &mut PgConnection, id: &str) -> Result<RunRow> {
    let record: RunRecord =
        sqlx::query_as(concat!("select ", columns!(), " from eval_runs where id = $1"))
            .bind(id)
            .fetch_one(tx)
            .await?;
    Ok(record.into())
}

/// Any end of a run that the caller's transaction has locked, with its event.
pub(super) async fn end(
    tx: &mut PgConnection,
    id: &str,
    status: RunStatus,
    error: Option<&RunError>,
) -> Result<RunRow> {
    let error = error.map(|error| RunError {
        code: text::clean(&error.code).into_owned(),
        message: text::clean_message(&error.message),
    });
    let (record, project): (RunRecord, String) = {
        let row = sqlx::query(concat!(
            "update eval_runs set status = $2, error = $3, claim_until = null, finished_at = clock_timestamp()
             where id = $1 and status in ('queued', 'in_progress') returning project_id, ",
            columns!()
        ))
        .bind(id)
        .bind(status.as_str())
        .bind(error.map(Json))
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(Error::LeaseLost)?;
        (RunRecord::from_row(&row)?, sqlx::Row::try_get(&row, "project_id")?)
    };
    let kind = format!("eval.run.{}", status.event_word());
    outbox::announce(tx, &project, &kind, Subject::EvalRun(id)).await?;
    Ok(record.into())
}

/// Removes a run and all that it recorded. One that goes on loses its claim.
pub async fn delete(db: &Db, project: &Project, eval: &EvalId, id: &EvalRunId) -> Result<()> {
    let args = (project.clone(), eval.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, eval, id)| {
        Box::pin(async move {
            let statement =
                "delete from eval_runs where id = $1 and eval_id = $2 and project_id = $3";
            let gone = sqlx::query(statement)
                .bind(id.as_str())
                .bind(eval.as_str())
                .bind(project.id.as_str())
                .execute(&mut *tx)
                .await?;
            if gone.rows_affected() == 0 {
                return Err(Error::NotFound("eval run"));
            }
            idempotency::forget(tx, project.id.as_str(), Created::EvalRun, id.as_str()).await
        })
    })
    .await
}
