//! One slot: claim → stage → run → tell the server how it ended. One run at a time.
//!
//! This is the worker's part of the story of a job. Whatever happens in between comes back as one
//! [`Outcome`], and the one match over it is the only place that ends a run at the server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use domain::internal::{ClaimRequest, ClaimedRun, FinishRun};
use domain::report::RunFailure;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::client::{CallError, Client};
use crate::engine::EngineHost;
use crate::heartbeat;
use crate::lease::Lease;
use crate::models::ModelCache;
use crate::reports::Reporter;
use crate::retry::Backoff;
use crate::run::{Ending, Run, failure};
use crate::signals::{Abort, Signals};
use crate::stage::{Scratch, Staged, stage};
use crate::upload::{StoredFinal, Uploader};

pub struct Slot {
    /// Unique per process and device.
    pub worker_id: String,
    pub config: Arc<Config>,
    pub client: Client,
    pub cache: Arc<ModelCache>,
    pub host: EngineHost,
    pub draining: CancellationToken,
}

/// What the server is to be told.
enum Outcome {
    Finished(StoredFinal),
    Failed(RunFailure),
    /// Back to the queue (or into the pause that was asked for); counts as no crash.
    Released,
    /// Nothing: the run is not ours any more.
    LeaseLost,
}

impl Slot {
    /// Claims and does one run after the other until the worker drains.
    pub async fn serve_claims(&self) {
        let mut backoff = self.backoff();
        loop {
            let claimed = tokio::select! {
                biased;
                () = self.draining.cancelled() => return,
                claimed = self.claim(&mut backoff) => claimed,
            };
            if let Some(claimed) = claimed {
                self.execute(claimed).await;
            }
        }
    }

    async fn claim(&self, backoff: &mut Backoff) -> Option<ClaimedRun> {
        self.client.rotate();
        let request = ClaimRequest {
            worker_id: self.worker_id.clone(),
            warm_model: self.host.warm().map(|model| model.variant().to_string()),
            precision: self.host.precision(),
            wait_seconds: self.config.claim_wait.as_secs().clamp(1, 30),
        };
        let asked = Instant::now();
        match self.client.claim(&request).await {
            Ok(Some(claimed)) => {
                backoff.reset();
                Some(claimed)
            }
            Ok(None) => {
                backoff.reset();
                self.rest_after(asked).await;
                None
            }
            Err(error) => {
                if backoff.attempts() == 0 {
                    tracing::warn!("cannot claim runs yet, will repeat: {error}");
                }
                backoff.pause().await;
                None
            }
        }
    }

    async fn execute(&self, claimed: ClaimedRun) {
        let lease = match Lease::new(&self.client, &claimed, self.backoff()) {
            Ok(lease) => lease,
            Err(error) => return tracing::error!(job = %claimed.job_id, "unusable claim: {error}"),
        };
        tracing::info!(job = %claimed.job_id, fence = claimed.fence, "claimed");
        let (signals, step) = (Signals::default(), Arc::new(AtomicU64::new(0)));
        let interval = Duration::try_from_secs_f64(claimed.heartbeat_seconds)
            .unwrap_or(Duration::from_secs(10))
            .max(Duration::from_millis(1));
        let beats = heartbeat::start(lease.clone(), interval, step.clone(), signals.clone());
        // Removed when this returns, whatever the outcome.
        let scratch = Scratch::create(&self.config.work_dir, &claimed);
        let outcome = match &scratch {
            Ok(scratch) => self.work(&claimed, scratch, &lease, &signals, step).await,
            Err(error) => Outcome::Failed(error.as_failure()),
        };
        self.tell(outcome, &claimed, &lease).await;
        drop(beats);
    }

    /// Stages and trains. Everything that the run has produced is at the server when this returns.
    async fn work(
        &self,
        claimed: &ClaimedRun,
        scratch: &Scratch,
        lease: &Lease,
        signals: &Signals,
        step: Arc<AtomicU64>,
    ) -> Outcome {
        let staged = match self.stage_unless_stopped(claimed, scratch, lease, signals).await {
            Ok(staged) => staged,
            Err(outcome) => return outcome,
        };
        let (interval, spool) = (self.config.report_interval, self.config.spool_bytes);
        let mut run = Run {
            config: &self.config,
            host: &self.host,
            claimed,
            staged,
            lease: lease.clone(),
            signals: signals.clone(),
            draining: self.draining.clone(),
            reporter: Reporter::start(lease.clone(), signals.clone(), interval, spool),
            uploader: Uploader::start(lease.clone(), signals.clone()),
            step,
            resume_step: claimed.resume_from.as_ref().map_or(0, |checkpoint| checkpoint.step),
            stopping: false,
        };
        let ending = run.train().await;
        let Run { reporter, uploader, .. } = run;
        if let Ending::Aborted(abort) = ending {
            return abort.into();
        }
        let delivered = signals.unless_aborted(async {
            let stored = uploader.drain().await;
            reporter.mark().acknowledged().await;
            stored
        });
        let stored = match delivered.await {
            Ok(stored) => stored,
            Err(abort) => return abort.into(),
        };
        match (ending, stored) {
            (Ending::Finished, Some(Ok(stored))) => {
                // Before the server is told: the first chat comes at once.
                self.keep_adapter(&stored).await;
                Outcome::Finished(stored)
            }
            (Ending::Finished, Some(Err(failure))) => Outcome::Failed(failure),
            (Ending::Finished, None) => {
                let message = "The engine finished without a final checkpoint.".to_owned();
                Outcome::Failed(failure("internal_error", message, true))
            }
            (Ending::Failed(failure), _) => Outcome::Failed(failure),
            (Ending::Stopped, _) => Outcome::Released,
            (Ending::Aborted(abort), _) => abort.into(),
        }
    }

    async fn stage_unless_stopped(
        &self,
        claimed: &ClaimedRun,
        scratch: &Scratch,
        lease: &Lease,
        signals: &Signals,
    ) -> Result<Staged, Outcome> {
        let backoff = self.backoff();
        let staged = stage(claimed, scratch, lease, &self.client, &self.cache, &backoff);
        tokio::select! {
            abort = signals.aborted() => Err(abort.into()),
            () = signals.pause_wanted() => Err(Outcome::Released),
            () = self.draining.cancelled() => Err(Outcome::Released),
            staged = staged => staged.map_err(|error| match error {
                crate::transfer::TransferError::Call(CallError::LeaseLost) => Outcome::LeaseLost,
                error => Outcome::Failed(error.as_failure()),
            }),
        }
    }

    /// The one place where a run is ended at the server.
    async fn tell(&self, outcome: Outcome, claimed: &ClaimedRun, lease: &Lease) {
        let job = &claimed.job_id;
        let told = match &outcome {
            Outcome::Finished(stored) => {
                let finish = FinishRun {
                    checkpoint_id: stored.checkpoint_id.clone(),
                    trained_tokens: stored.trained_tokens,
                };
                let finished = lease.persist("finish", || lease.finish(&finish)).await;
                finished.map(|done| tracing::info!(%job, model = %done.fine_tuned_model, "done"))
            }
            Outcome::Failed(failure) => {
                tracing::warn!(%job, code = %failure.code, "failed: {}", failure.message);
                lease.persist("fail", || lease.fail(failure)).await
            }
            Outcome::Released => {
                tracing::info!(%job, "releasing");
                lease.persist("release", || lease.release()).await
            }
            Outcome::LeaseLost => Err(CallError::LeaseLost),
        };
        match told {
            Ok(()) => {}
            Err(CallError::LeaseLost) => tracing::info!(%job, "the lease is gone; run dropped"),
            // The lease runs out, and the server does the rest.
            Err(error) => tracing::error!(%job, "the end of the run was not taken: {error}"),
        }
    }

    async fn keep_adapter(&self, stored: &StoredFinal) {
        let dir: &Path = &stored.dir;
        if let Err(error) = self.cache.keep_adapter(&stored.files, dir).await {
            tracing::warn!("the adapter is not cached, chat will download it: {error}");
        }
    }

    /// A server that says "nothing" at once, because it is leaving, is not asked in a tight loop.
    pub async fn rest_after(&self, asked: Instant) {
        if asked.elapsed() < self.config.retry_first {
            tokio::time::sleep(self.config.retry_first).await;
        }
    }

    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.config.retry_first, self.config.retry_longest)
    }
}

impl From<Abort> for Outcome {
    fn from(abort: Abort) -> Self {
        match abort {
            Abort::LeaseLost => Self::LeaseLost,
            Abort::Failed(failure) => Self::Failed(failure),
        }
    }
}
