//! What the tasks beside a run (heartbeat, reports) have to tell it: give up, or pause.

use std::sync::{Arc, OnceLock};

use domain::report::RunFailure;
use tokio_util::sync::CancellationToken;

/// Why a run is given up without a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Abort {
    LeaseLost,
    /// Something that no repetition mends.
    Failed(RunFailure),
}

/// Shared by everything that works for one run. The first reason to give up stays the reason.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    aborted: CancellationToken,
    reason: Arc<OnceLock<Abort>>,
    pause: CancellationToken,
}

impl Signals {
    pub fn abort(&self, reason: Abort) {
        let _ = self.reason.set(reason);
        self.aborted.cancel();
    }

    pub fn pause(&self) {
        self.pause.cancel();
    }

    pub async fn pause_wanted(&self) {
        self.pause.cancelled().await;
    }

    /// Waits until the run is to be given up.
    pub async fn aborted(&self) -> Abort {
        self.aborted.cancelled().await;
        self.reason.get().cloned().unwrap_or(Abort::LeaseLost)
    }

    /// Does the work, unless the run is given up meanwhile.
    pub async fn unless_aborted<T>(&self, work: impl Future<Output = T>) -> Result<T, Abort> {
        tokio::select! {
            biased;
            reason = self.aborted() => Err(reason),
            done = work => Ok(done),
        }
    }
}
