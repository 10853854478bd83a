//! One claimed run on the engine: start, pass replies on, stop on wish, start again after a crash.
//!
//! It turns replies into reports and uploads and ends in one [`Ending`]; what the server is told
//! about the ending is the slot's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use domain::engine::Reply;
use domain::internal::ClaimedRun;
use domain::report::{CheckpointReport, Level, RunFailure};
use domain::{JobId, RunReport};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::engine::EngineHost;
use crate::lease::Lease;
use crate::reports::Reporter;
use crate::retry::Backoff;
use crate::signals::{Abort, Signals};
use crate::stage::Staged;
use crate::supervise::{Engine, humantime};
use crate::upload::Uploader;
use crate::watchdog::Watchdog;

/// How the engine's part of a run ended.
#[derive(Debug, PartialEq)]
pub enum Ending {
    /// All steps are done, and a final checkpoint is on its way to the server.
    Finished,
    Failed(RunFailure),
    /// Stopped on our wish, after a checkpoint if one could be written.
    Stopped,
    Aborted(Abort),
}

/// What came of one engine process.
enum Attempt {
    Ended(Ending),
    EngineLost { reason: String, progressed: bool },
}

pub struct Run<'a> {
    pub config: &'a Config,
    pub host: &'a EngineHost,
    pub claimed: &'a ClaimedRun,
    pub staged: Staged,
    pub lease: Lease,
    pub signals: Signals,
    /// The worker is shutting down.
    pub draining: CancellationToken,
    pub reporter: Reporter,
    pub uploader: Uploader,
    /// The engine's step, for the heartbeat.
    pub step: Arc<AtomicU64>,
    /// The step of the checkpoint that a new engine process goes on from.
    pub resume_step: u64,
    /// A checkpoint was asked for, and nothing shall be started again.
    pub stopping: bool,
}

impl Run<'_> {
    /// Trains until the run has ended, whatever it takes.
    pub async fn train(&mut self) -> Ending {
        let _pin = self.host.pin(&self.claimed.base_model);
        let mut backoff = Backoff::new(self.config.retry_first, self.config.retry_longest);
        let mut crashes = 0;
        loop {
            let (reason, progressed) = match self.attempt().await {
                Attempt::Ended(ending) => return ending,
                Attempt::EngineLost { reason, progressed } => (reason, progressed),
            };
            tracing::warn!(job = %self.job_id(), "engine lost: {reason}");
            if self.stopping {
                return Ending::Stopped; // What was stored last has to do.
            }
            crashes = if progressed { 1 } else { crashes + 1 };
            if crashes > self.config.crash_limit {
                let message = format!("The engine ended {crashes} times in a row: {reason}");
                return Ending::Failed(failure("engine_lost", message, true));
            }
            self.step.store(self.resume_step, Ordering::Relaxed);
            let resume = match self.resume_step {
                0 => "the run starts again".to_owned(),
                step => format!("the run resumes from step {step}"),
            };
            self.warn(format!("The training process ended unexpectedly; {resume}."));
            if let Err(abort) = self.signals.unless_aborted(backoff.pause()).await {
                return Ending::Aborted(abort);
            }
        }
    }

    /// One engine process, from its start to the end of the run or its own.
    async fn attempt(&mut self) -> Attempt {
        let start = self.host.for_run(&self.claimed.base_model, &self.staged.model_dir);
        let started = tokio::select! {
            abort = self.signals.aborted() => return Attempt::Ended(Ending::Aborted(abort)),
            _ = self.stop_wanted() => return Attempt::Ended(Ending::Stopped),
            started = start => started,
        };
        let engine = match started {
            Ok(engine) => engine,
            Err(error) => {
                return Attempt::EngineLost { reason: error.to_string(), progressed: false };
            }
        };
        let mut replies = engine.train(self.staged.plan.clone());
        let mut watchdog = Watchdog::new(self.config.stall_limit, Instant::now());
        let mut progressed = false;
        loop {
            tokio::select! {
                abort = self.signals.aborted() => {
                    self.end_without_checkpoint(&engine, &mut replies).await;
                    return Attempt::Ended(Ending::Aborted(abort));
                }
                why = self.stop_wanted(), if !self.stopping => {
                    tracing::info!(job = %self.job_id(), "stopping at a checkpoint: {why}");
                    self.stopping = true;
                    engine.stop_run(self.job_id(), true);
                }
                () = tokio::time::sleep_until(watchdog.deadline()) => {
                    let silence = humantime(watchdog.limit());
                    engine.kill().await;
                    let reason = format!("it was silent for {silence} and was killed");
                    return Attempt::EngineLost { reason, progressed };
                }
                reply = replies.recv() => {
                    let Some(reply) = reply else {
                        return Attempt::EngineLost { reason: engine.end(), progressed };
                    };
                    let now = Instant::now();
                    watchdog.sign(now);
                    if let Reply::Run { report: RunReport::Step(_), .. } = reply {
                        watchdog.step(now);
                    }
                    progressed |= matches!(reply, Reply::Checkpoint { .. });
                    let announced = is_last(&reply);
                    if let Some(ending) = self.take(reply) {
                        if !announced {
                            self.end_without_checkpoint(&engine, &mut replies).await;
                        }
                        return Attempt::Ended(ending);
                    }
                }
            }
        }
    }

    /// Passes one reply on. Some when it was the run's last.
    fn take(&mut self, reply: Reply) -> Option<Ending> {
        match reply {
            Reply::Run { report, .. } => {
                if let RunReport::Step(metrics) = &report {
                    self.step.store(metrics.step, Ordering::Relaxed);
                }
                self.reporter.push(report);
                // The stop was asked for at 1; an engine that goes on all the same does not obey.
                (self.reporter.fill() > 2.0).then(|| {
                    let message = "The engine sent more reports than can be kept.".to_owned();
                    Ending::Failed(failure("internal_error", message, true))
                })
            }
            Reply::Checkpoint { checkpoint, .. } => self.take_checkpoint(checkpoint).err(),
            Reply::RunFinished { .. } => Some(Ending::Finished),
            Reply::RunFailed { failure, .. } => Some(Ending::Failed(failure)),
            Reply::RunStopped { .. } if self.stopping => Some(Ending::Stopped),
            Reply::RunStopped { .. } => {
                let message = "The engine stopped the run without being asked to.".to_owned();
                Some(Ending::Failed(failure("internal_error", message, true)))
            }
            // Never routed to a run.
            Reply::Ready { .. } | Reply::Generation { .. } => None,
        }
    }

    fn take_checkpoint(&mut self, checkpoint: CheckpointReport) -> Result<(), Ending> {
        if !is_inside(&checkpoint.dir, &self.staged.plan.output_dir) {
            let dir = checkpoint.dir.display();
            let message = format!("The engine named a checkpoint that is not its own: {dir}");
            return Err(Ending::Failed(failure("internal_error", message, true)));
        }
        self.resume_step = checkpoint.step;
        self.staged.plan.resume_from = Some(checkpoint.dir.clone());
        self.uploader.push(checkpoint, self.reporter.mark());
        Ok(())
    }

    /// Waits for a reason to stop at a checkpoint.
    async fn stop_wanted(&self) -> &'static str {
        tokio::select! {
            () = self.draining.cancelled() => "this worker is shutting down",
            () = self.signals.pause_wanted() => "a pause is wanted",
            () = self.server_gone() => "the server has been away for too long",
        }
    }

    /// Waits until the server has been away, or reports have piled up, beyond the limit.
    async fn server_gone(&self) {
        loop {
            let deadline = self.lease.last_contact() + self.config.unreachable_limit;
            if self.reporter.fill() > 1.0 || Instant::now() >= deadline {
                return;
            }
            // Reports do not wake this: each one enters the loop that polls this anew.
            tokio::time::sleep_until(deadline).await;
        }
    }

    async fn end_without_checkpoint(
        &self,
        engine: &Engine,
        replies: &mut tokio::sync::mpsc::Receiver<Reply>,
    ) {
        engine.stop_run(self.job_id(), false);
        let ended = async {
            while let Some(reply) = replies.recv().await {
                if is_last(&reply) {
                    return;
                }
            }
        };
        if tokio::time::timeout(self.config.engine_grace, ended).await.is_err() {
            tracing::warn!(job = %self.job_id(), "the engine does not stop the run; killing it");
            engine.kill().await;
        }
    }

    fn warn(&self, message: String) {
        self.reporter.push(RunReport::Message { level: Level::Warn, message });
    }

    fn job_id(&self) -> &JobId {
        &self.claimed.job_id
    }
}

pub(crate) fn failure(code: &str, message: String, retryable: bool) -> RunFailure {
    RunFailure { code: code.to_owned(), param: None, message, retryable }
}

/// Whether the engine says nothing more about this run.
fn is_last(reply: &Reply) -> bool {
    matches!(reply, Reply::RunStopped { .. } | Reply::RunFinished { .. } | Reply::RunFailed { .. })
}

/// Whether `path` is a real folder directly or deeper below `root`, links resolved.
fn is_inside(path: &Path, root: &Path) -> bool {
    let real = |path: &Path| -> Option<PathBuf> { path.canonicalize().ok() };
    match (real(path), real(root)) {
        (Some(path), Some(root)) => path.is_dir() && path != root && path.starts_with(root),
        _ => false,
    }
}
