//! Executes runs of evaluations: claims one, reads its rows, has several judged at once, and records them in
//! their order. A server that dies leaves a claim that runs out; the next one goes on behind the last recorded
//! row, so a row may be asked twice and is recorded once.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use store::evals::claims::{self, Claim, Wish};
use store::evals::runs::RunError;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::error::ErrorChain;
use crate::evals::definition::{self, item_schema};
use crate::evals::judging::Judging;
use crate::evals::plan::{Plan, Source};
use crate::evals::rows;
use crate::evals::schema::Schema;
use crate::state::AppState;

/// How long a claim lasts without being renewed.
const HOLD: Duration = Duration::from_secs(20);
/// Also how long a cancelled run may go on in another server.
const RENEW_EVERY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_secs(1);
const RETRY_IN: Duration = Duration::from_secs(5);
/// Rows that may be read ahead of the first one that is not recorded, as a multiple of those judged at once: one
/// slow row then does not hold up the others.
const AHEAD: usize = 2;
/// Rows that are recorded in one transaction at most.
const BATCH: usize = 32;
const MAX_ITEMS: u32 = 100_000;

pub(crate) async fn run(state: AppState) {
    loop {
        // Listening begins before looking, so that no run falls between the two.
        let woken = state.wake.evals.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if state.stopping.is_cancelled() {
            return;
        }
        match claims::claim(&state.store.db, HOLD).await {
            Ok(Some(claim)) => {
                work(&state, &claim).await;
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(error, "looking for eval runs failed");
            }
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(POLL) => {}
            () = state.stopping.cancelled() => return,
        }
    }
}

/// How the work on a claim came to its end.
enum End {
    Completed,
    Failed(RunError),
    /// Others wait for their turn.
    GaveWay,
}

impl End {
    fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::Failed(RunError { code: code.to_owned(), message: message.into() })
    }
}

async fn work(state: &AppState, claim: &Claim) {
    let db = &state.store.db;
    let give_way = CancellationToken::new();
    let end = tokio::select! {
        end = execute(state, claim, &give_way) => end,
        error = lose(state, claim, &give_way) => Err(error),
        () = state.stopping.cancelled() => {
            give_back(state, claim, Duration::ZERO).await;
            return;
        }
    };
    let run = &claim.run.id;
    let ended = match end {
        Ok(End::GaveWay) => {
            give_back(state, claim, Duration::ZERO).await;
            return;
        }
        Ok(End::Completed) => claims::finish(db, claim, None).await,
        Ok(End::Failed(error)) => claims::finish(db, claim, Some(error)).await,
        Err(error) => Err(error),
    };
    match ended {
        Ok(row) => {
            tracing::info!(eval.run = %run, status = row.status.as_str(), "an eval run has ended");
        }
        Err(store::Error::LeaseLost) => {
            tracing::info!(eval.run = %run, "the eval run was canceled, deleted or taken over");
        }
        Err(error) => {
            let error = ErrorChain(&error).to_string();
            tracing::warn!(eval.run = %run, error, "an eval run has to be gone on with later");
            give_back(state, claim, RETRY_IN).await;
        }
    }
}

/// Renews the claim again and again; returns only when it is lost.
async fn lose(state: &AppState, claim: &Claim, give_way: &CancellationToken) -> store::Error {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        match claims::extend(&state.store.db, claim, HOLD).await {
            Ok(Wish::GoOn) => {}
            Ok(Wish::GiveWay) => give_way.cancel(),
            Err(error @ store::Error::LeaseLost) => return error,
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(eval.run = %claim.run.id, error, "renewing a claim failed");
            }
        }
    }
}

async fn give_back(state: &AppState, claim: &Claim, retry_in: Duration) {
    if let Err(error) = claims::release(&state.store.db, claim, retry_in).await {
        // The claim runs out by itself.
        let error = ErrorChain(&error).to_string();
        tracing::debug!(eval.run = %claim.run.id, error, "a claim could not be given back");
        return;
    }
    state.wake.evals.notify_waiters();
}

/// Errors are passing trouble; everything that would end the same again is an end.
async fn execute(
    state: &AppState,
    claim: &Claim,
    give_way: &CancellationToken,
) -> store::Result<End> {
    let prepared = Plan::parse(&claim.run.data_source).and_then(|plan| {
        let criteria = definition::criteria(&claim.testing_criteria)?;
        let schema = item_schema(&claim.data_source_config);
        let schema = schema.map(|schema| Schema::new(schema, "item_schema")).transpose()?;
        Ok((plan, criteria, schema))
    });
    let (plan, criteria, schema) = match prepared {
        Ok(prepared) => prepared,
        // Another version of the server took what this one does not.
        Err(error) => return Ok(End::failed("invalid_request_error", error.to_string())),
    };
    let Plan { source, asking } = plan;
    if claim.run.items.is_none()
        && let Some(end) = count(state, claim, &source).await?
    {
        return Ok(end);
    }
    let created = claim.run.created_at;
    let rows = match rows::open(state, &claim.project, source, created).await {
        Err(store::Error::NotFound(_)) => return Ok(gone()),
        rows => rows?,
    };
    let judging = Judging { state, project: &claim.project, schema, asking, criteria };
    let at_once = state.config.eval_items_at_once.max(1);
    let slots = Arc::new(Semaphore::new(at_once));
    let mut recorded = claim.run.total;
    let judged = rows
        .skip(recorded as usize)
        .take_until(give_way.cancelled())
        .map(|read| {
            let (judging, slots) = (&judging, slots.clone());
            async move {
                let read = read?;
                let _slot = slots.acquire_owned().await;
                store::Result::Ok(judging.judge(read).await)
            }
        })
        .buffered(at_once * AHEAD)
        .ready_chunks(BATCH);
    tokio::pin!(judged);
    while let Some(batch) = judged.next().await {
        let outcomes = batch.into_iter().collect::<store::Result<Vec<_>>>()?;
        let count = outcomes.len() as u32;
        claims::record(&state.store.db, claim, recorded, outcomes).await?;
        recorded += count;
    }
    Ok(if give_way.is_cancelled() { End::GaveWay } else { End::Completed })
}

/// Counts the rows before any is judged, so that what is no data or too much of it costs nothing.
async fn count(state: &AppState, claim: &Claim, source: &Source) -> store::Result<Option<End>> {
    let mut rows =
        match rows::open(state, &claim.project, source.clone(), claim.run.created_at).await {
            Err(store::Error::NotFound(_)) => return Ok(Some(gone())),
            rows => rows?,
        };
    let (mut items, mut good) = (0u32, 0u32);
    let mut first_fault = None;
    while let Some(read) = rows.try_next().await? {
        items += 1;
        match read {
            Ok(_) => good += 1,
            Err(bad) if first_fault.is_none() => first_fault = Some(bad.message),
            Err(_) => {}
        }
        if items > MAX_ITEMS {
            let message = format!("The data source has more than {MAX_ITEMS} rows. Split it.");
            return Ok(Some(End::failed("too_many_items", message)));
        }
    }
    if good == 0 {
        let why = first_fault.unwrap_or_else(|| "it is empty".to_owned());
        let message = format!("The data source has no row that can be read: {why}");
        return Ok(Some(End::failed("invalid_data_source", message)));
    }
    claims::set_items(&state.store.db, claim, items).await?;
    Ok(None)
}

fn gone() -> End {
    End::failed("file_not_found", "The file of the data source is not there any more.")
}
