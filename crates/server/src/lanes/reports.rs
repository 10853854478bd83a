//! Makes reports of jobs: claims one and makes it whole. A server that dies leaves a claim that runs out, and the
//! next one begins the report anew: its rows and resamples are drawn by a seed, so it comes to the same.

use std::sync::atomic::Ordering;
use std::time::Duration;

use store::evals::runs::RunError;
use store::jobs;
use store::reports::{self, Claim};

use crate::error::ErrorChain;
use crate::report::Wish;
use crate::report::asking::Progress;
use crate::report::content::{Made, make};
use crate::state::AppState;

/// How long a claim lasts without being renewed.
const HOLD: Duration = Duration::from_secs(20);
const RENEW_EVERY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_secs(1);
const RETRY_IN: Duration = Duration::from_secs(5);

pub(crate) async fn run(state: AppState) {
    loop {
        // Listening begins before looking, so that no report falls between the two.
        let woken = state.wake.reports.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if state.stopping.is_cancelled() {
            return;
        }
        match reports::claim(&state.store.db, HOLD).await {
            Ok(Some(claim)) => {
                work(&state, &claim).await;
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(error, "looking for reports failed");
            }
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(POLL) => {}
            () = state.stopping.cancelled() => return,
        }
    }
}

async fn work(state: &AppState, claim: &Claim) {
    let progress = Progress::default();
    let made = tokio::select! {
        made = whole(state, claim, &progress) => made,
        error = lose(state, claim, &progress) => Err(error),
        () = state.stopping.cancelled() => {
            give_back(state, claim, Duration::ZERO).await;
            return;
        }
    };
    let job = &claim.job;
    let finished = match made {
        Ok(made) => reports::finish(&state.store.db, claim, made).await,
        Err(error) => Err(error),
    };
    match finished {
        Ok(()) => tracing::info!(job.id = %job, "a report was made"),
        Err(store::Error::LeaseLost) => {
            tracing::info!(job.id = %job, "the report was asked for anew, deleted or taken over");
        }
        Err(error) => {
            let error = ErrorChain(&error).to_string();
            tracing::warn!(job.id = %job, error, "a report has to be begun again later");
            give_back(state, claim, RETRY_IN).await;
        }
    }
}

async fn whole(state: &AppState, claim: &Claim, progress: &Progress) -> store::Result<Made> {
    let wish: Wish = match serde_json::from_value(claim.wish.clone()) {
        Ok(wish) => wish,
        // Another version of the server took what this one does not.
        Err(error) => {
            let code = "invalid_request_error".to_owned();
            return Ok(Err(RunError { code, message: error.to_string() }));
        }
    };
    let job = jobs::get(&state.store.db, &claim.project, &claim.job).await?;
    make(state, &claim.project, &job, &wish, progress).await
}

/// Renews the claim again and again; returns only when it is lost.
async fn lose(state: &AppState, claim: &Claim, progress: &Progress) -> store::Error {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let answers = progress.answers.load(Ordering::Relaxed);
        let wanted = Some(progress.wanted.load(Ordering::Relaxed)).filter(|wanted| *wanted > 0);
        match reports::extend(&state.store.db, claim, HOLD, answers, wanted).await {
            Ok(()) => {}
            Err(error @ store::Error::LeaseLost) => return error,
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(job.id = %claim.job, error, "renewing a claim failed");
            }
        }
    }
}

async fn give_back(state: &AppState, claim: &Claim, retry_in: Duration) {
    if let Err(error) = reports::release(&state.store.db, claim, retry_in).await {
        // The claim runs out by itself.
        let error = ErrorChain(&error).to_string();
        tracing::debug!(job.id = %claim.job, error, "a claim could not be given back");
        return;
    }
    state.wake.reports.notify_waiters();
}
