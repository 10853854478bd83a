//! Reports on their way to the server: numbered, in order, sent in batches until acknowledged.
//!
//! A batch is sent again as it was, never longer, so that a repetition whose first attempt arrived
//! is recognised as one. What waits is kept in memory; when it grows beyond the bound the run is
//! told to stop, and nothing is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::RunReport;
use domain::internal::ReportBatch;
use domain::report::RunFailure;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::client::CallError;
use crate::lease::Lease;
use crate::signals::{Abort, Signals};

/// Reports of one batch.
const BATCH: usize = 100;

/// The way in. Sending stops when it is dropped.
pub struct Reporter {
    spool: Arc<Spool>,
    limit_bytes: usize,
    _sender: AbortOnDropHandle<()>,
}

struct Spool {
    waiting: Mutex<Waiting>,
    filled: Notify,
    /// Somebody waits for an acknowledgement: no pause between batches.
    urgent: Notify,
    /// Reports that the server has.
    acknowledged: watch::Sender<u64>,
}

#[derive(Default)]
struct Waiting {
    reports: VecDeque<(RunReport, usize)>,
    bytes: usize,
    /// The number of the first one that waits.
    first_seq: u64,
}

impl Reporter {
    pub fn start(lease: Lease, signals: Signals, interval: Duration, limit_bytes: usize) -> Self {
        let spool = Arc::new(Spool {
            waiting: Mutex::default(),
            filled: Notify::new(),
            urgent: Notify::new(),
            acknowledged: watch::Sender::new(0),
        });
        let sender = tokio::spawn(send_all(spool.clone(), lease, signals, interval));
        Self { spool, limit_bytes, _sender: AbortOnDropHandle::new(sender) }
    }

    pub fn push(&self, report: RunReport) {
        self.spool.push(report);
    }

    /// Bytes that wait, in units of the bound: above 1 the run should stop, above 2 it is flooding.
    pub fn fill(&self) -> f64 {
        self.spool.lock().bytes as f64 / self.limit_bytes.max(1) as f64
    }

    /// A mark after everything pushed so far.
    pub fn mark(&self) -> Mark {
        let waiting = self.spool.lock();
        let seq = waiting.first_seq + waiting.reports.len() as u64;
        drop(waiting);
        Mark { spool: self.spool.clone(), seq }
    }
}

/// A point in the sequence of reports.
pub struct Mark {
    spool: Arc<Spool>,
    seq: u64,
}

impl Mark {
    /// Waits until the server has every report before this mark.
    pub async fn acknowledged(&self) {
        self.spool.urgent.notify_one();
        let mut acknowledged = self.spool.acknowledged.subscribe();
        // The sender of this channel lives in the spool that we hold.
        let _ = acknowledged.wait_for(|count| *count >= self.seq).await;
    }

    /// Adds a report from beside the run.
    pub fn push(&self, report: RunReport) {
        self.spool.push(report);
    }
}

impl Spool {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, report: RunReport) {
        let bytes = serde_json::to_vec(&report).map_or(0, |text| text.len());
        let mut waiting = self.lock();
        waiting.bytes += bytes;
        waiting.reports.push_back((report, bytes));
        drop(waiting);
        self.filled.notify_one();
    }

    /// The next batch, left in the spool until it is acknowledged.
    async fn next_batch(&self) -> ReportBatch {
        loop {
            {
                let waiting = self.lock();
                if !waiting.reports.is_empty() {
                    let batch = waiting.reports.iter().take(BATCH);
                    let reports = batch.map(|(report, _)| report.clone()).collect();
                    return ReportBatch { first_seq: waiting.first_seq, reports };
                }
            }
            self.filled.notified().await;
        }
    }

    /// Drops the first `count` and returns how many are left.
    fn acknowledge(&self, count: usize) -> usize {
        let mut waiting = self.lock();
        let bytes: usize = waiting.reports.drain(..count).map(|(_, bytes)| bytes).sum();
        waiting.bytes -= bytes;
        waiting.first_seq += count as u64;
        self.acknowledged.send_replace(waiting.first_seq);
        waiting.reports.len()
    }
}

async fn send_all(spool: Arc<Spool>, lease: Lease, signals: Signals, interval: Duration) {
    loop {
        let batch = spool.next_batch().await;
        match lease.persist("send reports", || lease.report(&batch)).await {
            Ok(()) => {}
            Err(CallError::LeaseLost) => return signals.abort(Abort::LeaseLost),
            Err(error) => {
                return signals.abort(Abort::Failed(RunFailure {
                    code: "internal_error".to_owned(),
                    param: None,
                    message: format!("The run's reports cannot be recorded: {error}"),
                    retryable: true,
                }));
            }
        }
        if spool.acknowledge(batch.reports.len()) < BATCH {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = spool.urgent.notified() => {}
            }
        }
    }
}
