//! What a waiting job waits for, and for how long: the line before it, who works, and how fast.
//!
//! Every statement reads a bounded number of rows, however many jobs there are.

use std::collections::HashMap;

use domain::JobId;
use sqlx::FromRow;
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::Result;
use crate::projects::Project;

/// Jobs of a line that are looked at one by one.
pub const LINE: usize = 1000;
/// Jobs that are counted before one that stands farther back.
const COUNTED: i64 = 100_000;
/// Succeeded jobs of a base model that its speed is taken from.
const MEASURED_JOBS: i64 = 20;
/// A worker without a run asks for one at least this often.
const WORKER_SEEN: &str = "90 seconds";

/// A job that is queued or running.
#[derive(Debug, Clone, FromRow)]
pub struct Standing {
    pub id: String,
    pub base_model: String,
    /// Still to be trained; none for a job whose tokens were not counted.
    pub tokens_left: Option<i64>,
    /// Not to be claimed before.
    pub run_after: OffsetDateTime,
    pub crashes: i32,
}

/// A project's line as it is now.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// The first [`LINE`] jobs, in the order in which they will be claimed.
    pub queued: Vec<Standing>,
    /// Runs of all projects, at most [`LINE`] of them.
    pub running: Vec<Standing>,
    /// Workers that hold a run or have asked for one lately.
    pub workers: u64,
    /// The database's time.
    pub now: Option<OffsetDateTime>,
}

/// The project's line.
pub async fn line(db: &Db, project: &Project) -> Result<Line> {
    let queued = sqlx::query_as(
        "select id, base_model, planned_tokens - committed_tokens as tokens_left, run_after, crashes
         from jobs where project_id = $1 and status = 'queued'
         order by priority desc, run_after, id limit $2",
    )
    .bind(project.id.as_str())
    .bind(LINE as i64)
    .fetch_all(&db.pool)
    .await?;
    let running = sqlx::query_as(
        "select id, base_model, planned_tokens - committed_tokens as tokens_left, run_after, crashes
         from jobs where status = 'running' limit $1",
    )
    .bind(LINE as i64)
    .fetch_all(&db.pool)
    .await?;
    let (workers, now): (i64, OffsetDateTime) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select (select count(*) from (
                     select worker_id from jobs where status = 'running'
                     union
                     select id from workers where seen_at > clock_timestamp() - interval '{WORKER_SEEN}') w),
                clock_timestamp()"
    )))
    .fetch_one(&db.pool)
    .await?;
    Ok(Line { queued, running, workers: workers.unsigned_abs(), now: Some(now) })
}

/// The statement of [`position`]: $1 job, $2 project, $3 the most that is counted. Each half is a range of the
/// index that claims use.
pub(crate) const POSITION: &str = "
    select (select count(*) from (
                select 1 from jobs o where o.project_id = j.project_id and o.status = 'queued'
                  and o.priority > j.priority limit $3) higher)
         + (select count(*) from (
                select 1 from jobs o where o.project_id = j.project_id and o.status = 'queued'
                  and o.priority = j.priority and (o.run_after, o.id) < (j.run_after, j.id)
                limit $3) earlier)
    from jobs j where j.id = $1 and j.project_id = $2 and j.status = 'queued'";

/// How many of the project's queued jobs stand before this one, 100,000 at most; `None` when it is not queued.
pub async fn position(db: &Db, project: &Project, id: &JobId) -> Result<Option<u64>> {
    let before: Option<(i64,)> = sqlx::query_as(POSITION)
        .bind(id.as_str())
        .bind(project.id.as_str())
        .bind(COUNTED)
        .fetch_optional(&db.pool)
        .await?;
    Ok(before.map(|(count,)| count.min(COUNTED).unsigned_abs()))
}

/// A base model's size, and how fast its latest jobs were: in tokens of [work](WORK) per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Speed {
    pub parameters: u64,
    pub tokens_per_second: Option<f64>,
    /// The same by [kind](KIND) of training.
    pub by_kind: HashMap<String, f64>,
}

/// What is trained on which base: `lora none`, `lora nf4`, `full none`, …, with the loss of preferences behind
/// it. `d` is a row of `job_details`.
const KIND: &str = "concat_ws(' ', coalesce(d.resolved->>'tuning', 'lora'),
                     coalesce(d.resolved->>'quantization', 'none'),
                     d.resolved->'preference'->>'loss_type')";

/// What a trained token of a job costs with its share of the evaluations, in trained tokens. `d` as above.
///
/// A token that is only evaluated takes a forward pass, a third of what a trained one takes. The engine evaluates
/// the whole validation file at the end of each epoch, and a batch of it every ten steps.
const WORK: &str =
    "(1 + coalesce((d.dataset->'validation_file'->>'tokens_after_truncation')::float8
         * (1 + 0.1 * (d.dataset->'training_file'->>'n_sequences')::float8
                / nullif((d.dataset->'validation_file'->>'n_sequences')::float8, 0))
         / nullif((d.dataset->'training_file'->>'tokens_after_truncation')::float8, 0) / 3, 0))";

/// The speed of every base model on these machines, by its name: the middle one of its latest jobs.
pub async fn speeds(db: &Db) -> Result<HashMap<String, Speed>> {
    let rows: Vec<(String, i64, Option<String>, Option<f64>)> =
        sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "select b.id, b.parameters, s.kind,
                    percentile_cont(0.5) within group (order by s.speed)
             from (select id, parameters, created_at from base_models
                   order by created_at desc limit 1000) b
             left join lateral (
                 select j.trained_tokens * {WORK}
                        / extract(epoch from j.finished_at - j.started_at)::float8 as speed,
                        {KIND} as kind
                 from (select * from jobs
                       where base_model = b.id and status = 'succeeded' and trained_tokens > 0
                         and finished_at > started_at
                       order by finished_at desc limit $1) j
                 join job_details d on d.job_id = j.id) s on true
             group by grouping sets ((b.id, b.parameters, s.kind), (b.id, b.parameters))"
        )))
        .bind(MEASURED_JOBS)
        .fetch_all(&db.pool)
        .await?;
    let mut speeds: HashMap<String, Speed> = HashMap::new();
    for (id, parameters, kind, measured) in rows {
        let parameters = parameters.unsigned_abs();
        let unmeasured = || Speed { parameters, tokens_per_second: None, by_kind: HashMap::new() };
        let speed = speeds.entry(id).or_insert_with(unmeasured);
        match (kind, measured) {
            (Some(kind), Some(measured)) => _ = speed.by_kind.insert(kind, measured),
            (None, Some(measured)) => speed.tokens_per_second = Some(measured),
            (_, None) => {}
        }
    }
    Ok(speeds)
}
