//! Reports of jobs: one per job, asked for, made by whichever server claims it, and kept. What stands in one is
//! the server's business.
//!
//! A claim is renewed while its server lives, and everything that its holder writes is refused once another one,
//! or a new wish, has taken its place.

use std::time::Duration;

use domain::JobId;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::evals::runs::RunError;
use crate::projects::{Project, ProjectRecord};
use crate::text;

/// So many claims in a row that ran out, and the report fails.
const CRASH_BUDGET: i32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportStatus {
    Pending,
    InProgress,
    Completed,
    Failed,
}

impl ReportStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone)]
pub struct ReportRow {
    pub status: ReportStatus,
    /// As it was asked for.
    pub wish: Value,
    /// Answers of models that there are so far.
    pub answers: u32,
    /// None before the rows are chosen.
    pub wanted: Option<u32>,
    pub content: Option<Value>,
    pub error: Option<RunError>,
    pub created_at: OffsetDateTime,
    pub finished_at: Option<OffsetDateTime>,
}

#[derive(FromRow)]
struct ReportRecord {
    status: String,
    wish: Value,
    answers: i32,
    wanted: Option<i32>,
    content: Option<Value>,
    error: Option<Json<RunError>>,
    created_at: OffsetDateTime,
    finished_at: Option<OffsetDateTime>,
}

impl From<ReportRecord> for ReportRow {
    fn from(record: ReportRecord) -> Self {
        // The column's CHECK admits no other words.
        let status = match record.status.as_str() {
            "in_progress" => ReportStatus::InProgress,
            "completed" => ReportStatus::Completed,
            "failed" => ReportStatus::Failed,
            _ => ReportStatus::Pending,
        };
        Self {
            status,
            wish: record.wish,
            answers: record.answers.unsigned_abs(),
            wanted: record.wanted.map(i32::unsigned_abs),
            content: record.content,
            error: record.error.map(|error| error.0),
            created_at: record.created_at,
            finished_at: record.finished_at,
        }
    }
}

/// A report that this server makes until the claim is over.
#[derive(Debug, Clone)]
pub struct Claim {
    pub job: JobId,
    pub project: Project,
    pub wish: Value,
    fence: i64,
}

/// The job's report, which is begun with this wish if there is none. `NotFound` for a job that is not the
/// project's.
pub async fn begin(db: &Db, project: &Project, job: &JobId, wish: &Value) -> Result<ReportRow> {
    let unless_there = "insert into reports (job_id, project_id, wish) values ($1, $2, $3)
        on conflict (job_id) do nothing";
    insert(db, project, job, wish, unless_there).await
}

/// A new report of the job, in the place of the one that there was. `NotFound` as above.
pub async fn renew(db: &Db, project: &Project, job: &JobId, wish: &Value) -> Result<ReportRow> {
    let anew = "insert into reports (job_id, project_id, wish) values ($1, $2, $3)
        on conflict (job_id) do update set status = 'pending', wish = excluded.wish, answers = 0,
        wanted = null, content = null, error = null, fence = reports.fence + 1, claim_until = null,
        run_after = clock_timestamp(), crashes = 0, created_at = clock_timestamp(), finished_at = null";
    insert(db, project, job, wish, anew).await
}

async fn insert(
    db: &Db,
    project: &Project,
    job: &JobId,
    wish: &Value,
    statement: &'static str,
) -> Result<ReportRow> {
    let args = (project.clone(), job.clone(), text::clean_json(wish), statement);
    db.transact(Lane::Api, args, |tx, (project, job, wish, statement)| {
        Box::pin(async move {
            // Holds the job against its deletion.
            sqlx::query(
                "select 1 from jobs where id = $1 and project_id = $2 and deleted_at is null for key share",
            )
            .bind(job.as_str())
            .bind(project.id.as_str())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(Error::NotFound("job"))?;
            sqlx::query(*statement)
                .bind(job.as_str())
                .bind(project.id.as_str())
                .bind(wish)
                .execute(&mut *tx)
                .await?;
            let found: ReportRecord =
                sqlx::query_as("select * from reports where job_id = $1")
                    .bind(job.as_str())
                    .fetch_one(tx)
                    .await?;
            Ok(found.into())
        })
    })
    .await
}

/// Takes the oldest report that nobody makes, for `hold`.
pub async fn claim(db: &Db, hold: Duration) -> Result<Option<Claim>> {
    db.transact(Lane::Api, hold, |tx, hold| Box::pin(claim_next(tx, *hold))).await
}

async fn claim_next(tx: &mut PgConnection, hold: Duration) -> Result<Option<Claim>> {
    let next: Option<(String, Value, i64, i32)> = sqlx::query_as(
        "with next as materialized (
             select job_id from reports
             where status in ('pending', 'in_progress') and run_after <= clock_timestamp()
               and (claim_until is null or claim_until < clock_timestamp())
             order by run_after, created_at limit 1 for no key update skip locked)
         update reports r set status = 'in_progress', fence = r.fence + 1, answers = 0, wanted = null,
             claim_until = clock_timestamp() + $1, crashes = r.crashes + (r.claim_until is not null)::int
         from next where r.job_id = next.job_id
         returning r.job_id, r.wish, r.fence, r.crashes",
    )
    .bind(crate::interval(hold))
    .fetch_optional(&mut *tx)
    .await?;
    let Some((job, wish, fence, crashes)) = next else { return Ok(None) };
    if crashes >= CRASH_BUDGET {
        let message = "The servers that made this report died several times. Ask for it again.";
        let error = RunError { code: "server_error".to_owned(), message: message.to_owned() };
        end(tx, &job, fence, Err(&error)).await?;
        return Ok(None);
    }
    let project: ProjectRecord = sqlx::query_as(
        "select p.id as project_id, o.id as organization_id, o.slug from reports r
         join projects p on p.id = r.project_id join organizations o on o.id = p.organization_id
         where r.job_id = $1",
    )
    .bind(&job)
    .fetch_one(tx)
    .await?;
    Ok(Some(Claim { job: job.into(), project: project.into(), wish, fence }))
}

/// Holds the claim for `hold` from now on, and tells how far the making is.
pub async fn extend(
    db: &Db,
    claim: &Claim,
    hold: Duration,
    answers: u32,
    wanted: Option<u32>,
) -> Result<()> {
    let update =
        "update reports set claim_until = clock_timestamp() + $3, answers = $4, wanted = $5
        where job_id = $1 and fence = $2 and status = 'in_progress' and claim_until is not null";
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    held(
        sqlx::query(update)
            .bind(claim.job.as_str())
            .bind(claim.fence)
            .bind(crate::interval(hold))
            .bind(number(answers))
            .bind(wanted.map(number))
            .execute(&db.pool)
            .await?,
    )
}

/// Gives the claim back; the report may be claimed after `retry_in`.
pub async fn release(db: &Db, claim: &Claim, retry_in: Duration) -> Result<()> {
    let update = "update reports set claim_until = null, run_after = clock_timestamp() + $3
        where job_id = $1 and fence = $2 and status = 'in_progress'";
    held(
        sqlx::query(update)
            .bind(claim.job.as_str())
            .bind(claim.fence)
            .bind(crate::interval(retry_in))
            .execute(&db.pool)
            .await?,
    )
}

/// `in_progress` → `completed` with the report, or → `failed`.
pub async fn finish(
    db: &Db,
    claim: &Claim,
    made: std::result::Result<Value, RunError>,
) -> Result<()> {
    let made = made.map(|content| text::clean_json(&content));
    let args = (claim.clone(), made);
    db.transact(Lane::Api, args, |tx, (claim, made)| {
        Box::pin(end(tx, claim.job.as_str(), claim.fence, made.as_ref()))
    })
    .await
}

async fn end(
    tx: &mut PgConnection,
    job: &str,
    fence: i64,
    made: std::result::Result<&Value, &RunError>,
) -> Result<()> {
    let status = if made.is_ok() { ReportStatus::Completed } else { ReportStatus::Failed };
    let update =
        "update reports set status = $3, content = $4::json, error = $5, claim_until = null,
            finished_at = clock_timestamp()
        where job_id = $1 and fence = $2 and status = 'in_progress' and claim_until is not null";
    held(
        sqlx::query(update)
            .bind(job)
            .bind(fence)
            .bind(status.as_str())
            .bind(made.ok().map(Value::to_string))
            .bind(made.err().map(Json))
            .execute(tx)
            .await?,
    )
}

fn held(done: sqlx::postgres::PgQueryResult) -> Result<()> {
    if done.rows_affected() == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}
