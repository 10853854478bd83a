//! Who executes a run. Any server may: it claims a run for a while, renews the claim, and records items under
//! the claim's fence. Whatever dies leaves a claim that runs out, and the next one goes on behind the last
//! recorded item.
//!
//! Turns go round between projects: first the project with the fewest live claims, then the one whose latest
//! turn is the longest ago, and within it the oldest run. A claim that has had its share of time while another
//! project waits with nothing running is asked to give way.

use std::time::Duration;

use domain::{EvalId, EvalRunId, OutputItemId};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};

use super::items::Verdict;
use super::runs::{self, ModelUsage, RunError, RunRecord, RunRow, RunStatus, Tallies};
use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::projects::{Project, ProjectRecord};

/// So many claims in a row that ran out without one recorded item, and the run fails.
const CRASH_BUDGET: i32 = 5;
/// How long a run may go on while another project waits.
const SLICE: Duration = Duration::from_secs(10);
/// A run that was just created is given time to find a free server before others give way to it.
const SETTLING: Duration = Duration::from_secs(2);

/// A run that this server executes until the claim is over.
#[derive(Debug, Clone)]
pub struct Claim {
    pub run: RunRow,
    pub project: Project,
    pub testing_criteria: Value,
    pub data_source_config: Value,
    fence: i64,
}

/// What is wanted of the holder of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    GoOn,
    /// Others wait for their turn: finish what is in hand and give the claim back.
    GiveWay,
}

/// One judged row.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: Verdict,
    pub datasource_item: Value,
    pub results: Value,
    pub sample: Value,
    /// Per testing criterion; none where it could not judge.
    pub passed: Vec<Option<bool>>,
    pub usage: Vec<(String, ModelUsage)>,
}

const CLAIM: &str = "
    with live as (
        select project_id, count(*) as claims from eval_runs
        where status = 'in_progress' and claim_until > clock_timestamp() group by project_id),
    turns as (
        select project_id, max(claimed_at) as latest from eval_runs
        where status in ('queued', 'in_progress') group by project_id),
    next as materialized (
        select r.id from eval_runs r
        left join live on live.project_id = r.project_id
        left join turns on turns.project_id = r.project_id
        where r.status in ('queued', 'in_progress') and r.run_after <= clock_timestamp()
          and (r.claim_until is null or r.claim_until < clock_timestamp())
        order by coalesce(live.claims, 0), turns.latest nulls first, r.created_at, r.id
        limit 1 for no key update of r skip locked)
    update eval_runs r set status = 'in_progress', fence = r.fence + 1, claimed_at = clock_timestamp(),
        claim_until = clock_timestamp() + $1, crashes = r.crashes + (r.claim_until is not null)::int
    from next where r.id = next.id and r.status in ('queued', 'in_progress')
    returning r.id, r.fence, r.crashes";

/// Takes the run whose turn it is, for `hold`; after that somebody else may take it.
pub async fn claim(db: &Db, hold: Duration) -> Result<Option<Claim>> {
    db.transact(Lane::Api, hold, |tx, hold| Box::pin(claim_next(tx, *hold))).await
}

async fn claim_next(tx: &mut PgConnection, hold: Duration) -> Result<Option<Claim>> {
    let next: Option<(String, i64, i32)> =
        sqlx::query_as(CLAIM).bind(crate::interval(hold)).fetch_optional(&mut *tx).await?;
    let Some((id, fence, crashes)) = next else { return Ok(None) };
    if crashes >= CRASH_BUDGET {
        let error = RunError {
            code: "server_error".to_owned(),
            message: "The servers that executed this run died several times without getting on."
                .to_owned(),
        };
        runs::end(tx, &id, RunStatus::Failed, Some(&error)).await?;
        return Ok(None);
    }
    let run: RunRecord =
        sqlx::query_as(concat!("select ", runs::columns!(), " from eval_runs where id = $1"))
            .bind(&id)
            .fetch_one(&mut *tx)
            .await?;
    let row = sqlx::query(
        "select p.id as project_id, o.id as organization_id, o.slug,
                e.testing_criteria, e.data_source_config
         from eval_runs r join evals e on e.id = r.eval_id
         join projects p on p.id = r.project_id join organizations o on o.id = p.organization_id
         where r.id = $1",
    )
    .bind(&id)
    .fetch_one(&mut *tx)
    .await?;
    let Json(testing_criteria) = row.try_get("testing_criteria")?;
    let Json(data_source_config) = row.try_get("data_source_config")?;
    let project = ProjectRecord::from_row(&row)?.into();
    Ok(Some(Claim { run: run.into(), project, testing_criteria, data_source_config, fence }))
}

/// Holds the claim for `hold` from now on. `LeaseLost` when the run was cancelled, deleted or taken over.
pub async fn extend(db: &Db, claim: &Claim, hold: Duration) -> Result<Wish> {
    let crowded: Option<(bool,)> = sqlx::query_as(
        "update eval_runs r set claim_until = clock_timestamp() + $3
         where id = $1 and fence = $2 and status = 'in_progress' and claim_until is not null
         returning claimed_at < clock_timestamp() - $4 and exists (
             select 1 from eval_runs w
             where w.status in ('queued', 'in_progress') and w.project_id <> r.project_id
               and w.run_after < clock_timestamp() - $5
               and (w.claim_until is null or w.claim_until < clock_timestamp())
               and not exists (select 1 from eval_runs l
                               where l.project_id = w.project_id and l.status = 'in_progress'
                                 and l.claim_until > clock_timestamp()))",
    )
    .bind(claim.run.id.as_str())
    .bind(claim.fence)
    .bind(crate::interval(hold))
    .bind(crate::interval(SLICE))
    .bind(crate::interval(SETTLING))
    .fetch_optional(&db.pool)
    .await?;
    match crowded {
        None => Err(Error::LeaseLost),
        Some((true,)) => Ok(Wish::GiveWay),
        Some((false,)) => Ok(Wish::GoOn),
    }
}

/// Gives the claim back unfinished; the run may be claimed after `retry_in`.
pub async fn release(db: &Db, claim: &Claim, retry_in: Duration) -> Result<()> {
    let changed = sqlx::query(
        "update eval_runs set claim_until = null, run_after = clock_timestamp() + $3
         where id = $1 and fence = $2 and status = 'in_progress'",
    )
    .bind(claim.run.id.as_str())
    .bind(claim.fence)
    .bind(crate::interval(retry_in))
    .execute(&db.pool)
    .await?
    .rows_affected();
    if changed == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// How many rows the data source has.
pub async fn set_items(db: &Db, claim: &Claim, items: u32) -> Result<()> {
    let changed = sqlx::query(
        "update eval_runs set items = $3
         where id = $1 and fence = $2 and status = 'in_progress' and claim_until is not null",
    )
    .bind(claim.run.id.as_str())
    .bind(claim.fence)
    .bind(i32::try_from(items).unwrap_or(i32::MAX))
    .execute(&db.pool)
    .await?
    .rows_affected();
    if changed == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Records the outcomes of rows `first`, `first` + 1, …: items and sums in one transaction. `LeaseLost` when the
/// claim is over, so no row is ever recorded twice.
pub async fn record(db: &Db, claim: &Claim, first: u32, outcomes: Vec<Outcome>) -> Result<()> {
    let args = (claim.run.id.clone(), claim.fence, first, outcomes);
    db.transact(Lane::Api, args, |tx, (id, fence, first, outcomes)| {
        Box::pin(record_all(tx, id, *fence, *first, outcomes))
    })
    .await
}

async fn record_all(
    tx: &mut PgConnection,
    id: &EvalRunId,
    fence: i64,
    first: u32,
    outcomes: &[Outcome],
) -> Result<()> {
    let (project, total, Json(mut tallies)) = hold(tx, id.as_str(), fence).await?;
    if total.unsigned_abs() != first {
        let problem = format!("{total} items are recorded, and the next came as number {first}");
        return Err(Error::inconsistent("eval_runs", id.as_str(), problem));
    }
    let counted =
        |status| outcomes.iter().filter(|outcome| outcome.status == status).count() as i32;
    for outcome in outcomes {
        let criteria = outcome.passed.len().max(tallies.criteria.len());
        tallies.criteria.resize(criteria, Default::default());
        for (tally, passed) in tallies.criteria.iter_mut().zip(&outcome.passed) {
            match passed {
                Some(true) => tally.passed += 1,
                Some(false) => tally.failed += 1,
                None => {}
            }
        }
        for (model, usage) in &outcome.usage {
            *tallies.usage.entry(crate::text::clean(model).into_owned()).or_default() += *usage;
        }
    }
    sqlx::query(
        "update eval_runs set total = total + $2 + $3 + $4, passed = passed + $2, failed = failed + $3,
             errored = errored + $4, tallies = $5, crashes = 0 where id = $1",
    )
    .bind(id.as_str())
    .bind(counted(Verdict::Pass))
    .bind(counted(Verdict::Fail))
    .bind(counted(Verdict::Error))
    .bind(Json(&tallies))
    .execute(&mut *tx)
    .await?;
    let text_of = |value: fn(&Outcome) -> String| outcomes.iter().map(value).collect::<Vec<_>>();
    sqlx::query(
        "insert into eval_output_items
             (run_id, item, project_id, id, fence, status, datasource_item, results, sample)
         select $1, $2 + n - 1, $3, id, $4, status, item::json, results::json, sample::json
         from unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
              with ordinality as new (id, status, item, results, sample, n)",
    )
    .bind(id.as_str())
    .bind(total)
    .bind(project)
    .bind(fence)
    .bind(text_of(|_| OutputItemId::new().to_string()))
    .bind(text_of(|outcome| outcome.status.as_str().to_owned()))
    .bind(text_of(|outcome| outcome.datasource_item.to_string()))
    .bind(text_of(|outcome| outcome.results.to_string()))
    .bind(text_of(|outcome| outcome.sample.to_string()))
    .execute(tx)
    .await?;
    Ok(())
}

/// Locks the run's row where the claim still holds.
async fn hold(tx: &mut PgConnection, id: &str, fence: i64) -> Result<(String, i32, Json<Tallies>)> {
    sqlx::query_as(
        "select project_id, total, tallies from eval_runs
         where id = $1 and fence = $2 and status = 'in_progress' and claim_until is not null
         for no key update",
    )
    .bind(id)
    .bind(fence)
    .fetch_optional(tx)
    .await?
    .ok_or(Error::LeaseLost)
}

/// `in_progress` → `completed`, or with an error → `failed`.
pub async fn finish(db: &Db, claim: &Claim, error: Option<RunError>) -> Result<RunRow> {
    let args = (claim.run.id.clone(), claim.fence, error);
    db.transact(Lane::Api, args, |tx, (id, fence, error)| {
        Box::pin(async move {
            hold(tx, id.as_str(), *fence).await?;
            let status = if error.is_some() { RunStatus::Failed } else { RunStatus::Completed };
            runs::end(tx, id.as_str(), status, error.as_ref()).await
        })
    })
    .await
}

/// Holds an evaluation against deletion until the caller's transaction has ended.
pub(super) async fn require_eval(
    tx: &mut PgConnection,
    project: &Project,
    eval: &EvalId,
) -> Result<()> {
    sqlx::query("select 1 from evals where id = $1 and project_id = $2 for key share")
        .bind(eval.as_str())
        .bind(project.id.as_str())
        .fetch_optional(tx)
        .await?
        .map(|_| ())
        .ok_or(Error::NotFound("eval"))
}
