//! Takes runs back from workers that have fallen silent.

use std::time::{Duration, Instant};

use domain::{JobId, JobStatus};
use serde_json::Value;
use sqlx::PgConnection;

use crate::config::LeaseConfig;
use crate::db::{Db, Lane};
use crate::error::Result;
use crate::events;
use crate::jobs::JobError;
use crate::messages;
use crate::queue::{Change, Held, change, fail_held, hold};

/// Runs taken back in one round.
const BATCH: i64 = 50;

/// A run that was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaped {
    pub job_id: JobId,
    pub status: JobStatus,
}

/// Acts only after it has itself seen the same database healthy for one whole lease: after an outage
/// every lease looks over, and the workers deserve the time to renew theirs.
#[derive(Debug)]
pub struct Reaper {
    lease: LeaseConfig,
    healthy: Option<Healthy>,
}

/// An unbroken row of ticks that reached the same server process.
#[derive(Debug)]
struct Healthy {
    since: Instant,
    last: Instant,
    server_start: String,
}

impl Reaper {
    pub fn new(lease: LeaseConfig) -> Self {
        Self { lease, healthy: None }
    }

    /// One round; the server calls it every `reap_every`. Errors reset the waiting time.
    pub async fn tick(&mut self, db: &Db) -> Result<Vec<Reaped>> {
        self.tick_at(db, Instant::now()).await
    }

    /// [`Reaper::tick`] with a clock of the caller's.
    pub async fn tick_at(&mut self, db: &Db, now: Instant) -> Result<Vec<Reaped>> {
        let server_start = match server_start(db).await {
            Ok(start) => start,
            Err(error) => {
                self.healthy = None;
                return Err(error);
            }
        };
        // A longer silence means that this process itself stood still (a suspended machine).
        let longest = self.lease.ttl.max(3 * self.lease.reap_every);
        let since = match &self.healthy {
            Some(healthy)
                if healthy.server_start == server_start && now - healthy.last <= longest =>
            {
                healthy.since
            }
            _ => now,
        };
        self.healthy = Some(Healthy { since, last: now, server_start });
        if now - since < self.lease.ttl {
            return Ok(Vec::new());
        }
        let outcome = reap(db, self.lease.grace).await;
        if outcome.is_err() {
            self.healthy = None;
        }
        outcome
    }
}

/// When the database's server process began: a new one has been down.
async fn server_start(db: &Db) -> Result<String> {
    let (start,): (String,) =
        sqlx::query_as("select pg_postmaster_start_time()::text").fetch_one(&db.lease_pool).await?;
    Ok(start)
}

/// Takes back runs whose lease has been over for `grace`, at once. Use [`Reaper`], which knows when not to.
pub async fn reap(db: &Db, grace: Duration) -> Result<Vec<Reaped>> {
    db.transact(Lane::Lease, grace, |tx, grace| Box::pin(reap_batch(tx, *grace))).await
}

async fn reap_batch(tx: &mut PgConnection, grace: Duration) -> Result<Vec<Reaped>> {
    let silent: Vec<Held> = sqlx::query_as(concat!(
        hold!("status = 'running' and lease_until < clock_timestamp() - $1"),
        " skip locked limit $2"
    ))
    .bind(crate::interval(grace))
    .bind(BATCH)
    .fetch_all(&mut *tx)
    .await?;
    let mut reaped = Vec::new();
    for held in &silent {
        let status = take_back(tx, held).await?;
        tracing::warn!(job.id = held.id, job.status = %status, "run taken back from silent worker");
        reaped.push(Reaped { job_id: held.id(), status });
    }
    Ok(reaped)
}

async fn take_back(tx: &mut PgConnection, held: &Held) -> Result<JobStatus> {
    let next = held.after_crash();
    if next == JobStatus::Failed {
        let error = JobError {
            code: "worker_lost".to_owned(),
            param: None,
            message: "The worker was lost several times in a row without new progress.".to_owned(),
        };
        fail_held(tx, held, &error, Value::Null, None).await?;
        return Ok(next);
    }
    let (crashes, delay) = (held.crashes + 1, held.back_off());
    change(tx, held, next, Change { crashes, delay, ..Change::default() }).await?;
    events::append(tx, &held.id(), &[messages::worker_lost(next.as_str())]).await?;
    Ok(next)
}
