//! The heartbeat of a run, from a task of its own: it goes on while files are staged, checkpoints
//! are uploaded and an engine computes, and it brings the server's wishes back.
//!
//! An unanswered beat is not a lost lease: only the server's word is. A late beat renews a lease
//! that nobody has revoked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::internal::{Directive, Heartbeat};
use tokio_util::task::AbortOnDropHandle;

use crate::client::CallError;
use crate::lease::Lease;
use crate::retry::random_share;
use crate::signals::{Abort, Signals};

/// Starts to beat; ends when the handle is dropped or the lease is lost. `step` is the engine's
/// counter.
pub fn start(
    lease: Lease,
    interval: Duration,
    step: Arc<AtomicU64>,
    signals: Signals,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(beat(lease, interval, step, signals)))
}

async fn beat(lease: Lease, interval: Duration, step: Arc<AtomicU64>, signals: Signals) {
    // A beat that hangs must not cost the lease: the next one may go through.
    let limit = interval.clamp(Duration::from_secs(1), Duration::from_secs(15));
    loop {
        // ± 20 %, so that a fleet that started together does not beat together.
        tokio::time::sleep(interval.mul_f64(0.8 + 0.4 * random_share())).await;
        let beat = Heartbeat { step: step.load(Ordering::Relaxed) };
        match lease.heartbeat(&beat, limit).await {
            Ok(reply) => match reply.directive {
                Directive::Continue => {}
                Directive::Pause => signals.pause(),
            },
            Err(CallError::LeaseLost) => return signals.abort(Abort::LeaseLost),
            Err(error) => tracing::warn!("heartbeat not answered: {error}"),
        }
    }
}
