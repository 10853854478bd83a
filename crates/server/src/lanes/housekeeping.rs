//! The reaper's rounds, and the removal of blobs that nothing refers to.

use std::time::Duration;

use domain::JobStatus;
use store::reaper::Reaper;
use store::webhooks::outbox;
use store::{completions, garbage, idempotency};
use tokio::time::MissedTickBehavior;

use crate::error::ErrorChain;
use crate::state::AppState;

const GARBAGE_EVERY: Duration = Duration::from_secs(5);
const GARBAGE_BATCH: u32 = 100;

/// Takes runs back from workers that have fallen silent.
pub(crate) async fn reap(state: AppState) {
    let mut reaper = Reaper::new(state.config.lease.clone());
    let mut rounds = rounds(state.config.lease.reap_every);
    while next(&mut rounds, &state).await {
        match reaper.tick(&state.store.db).await {
            Ok(reaped) => {
                for run in &reaped {
                    tracing::warn!(job.id = %run.job_id, status = %run.status,
                        "the worker has fallen silent; its run was taken back");
                }
                if reaped.iter().any(|run| run.status == JobStatus::Queued) {
                    state.wake.claim.notify_waiters();
                }
            }
            Err(error) => warn("taking back runs failed", &error),
        }
    }
}

pub(crate) async fn collect_garbage(state: AppState) {
    let mut rounds = rounds(GARBAGE_EVERY);
    while next(&mut rounds, &state).await {
        if let Err(error) = garbage::collect(&state.store, GARBAGE_BATCH).await {
            warn("removing unused blobs failed", &error);
        }
        if let Err(error) = idempotency::expire(&state.store.db).await {
            warn("forgetting old requests failed", &error);
        }
        let age = state.config.completion_retention;
        if let Err(error) = completions::expire(&state.store.db, age).await {
            warn("removing old completions failed", &error);
        }
        let age = state.config.webhooks.log_retention;
        if let Err(error) = outbox::expire(&state.store.db, age).await {
            warn("removing old webhooks failed", &error);
        }
    }
}

fn rounds(every: Duration) -> tokio::time::Interval {
    let mut rounds = tokio::time::interval(every.max(Duration::from_millis(10)));
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}

/// False when the server shuts down.
async fn next(rounds: &mut tokio::time::Interval, state: &AppState) -> bool {
    tokio::select! {
        _ = rounds.tick() => true,
        () = state.stopping.cancelled() => false,
    }
}

fn warn(what: &str, error: &store::Error) {
    tracing::warn!(error = ErrorChain(error).to_string(), "{what}");
}
