//! The jobs that somebody reads, and the poller that looks after them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use domain::JobId;
use store::follow::{self, Moved, Progress};
use tokio::sync::{Notify, Semaphore, watch};

use super::stream::frame;
use crate::error::ErrorChain;
use crate::state::AppState;

/// How soon an event that another server wrote arrives.
const POLL: Duration = Duration::from_millis(250);
/// Between two rounds, however often the bell rings; at least five times what a round takes.
const REST: Duration = Duration::from_millis(25);
const REST_FACTOR: u32 = 5;
/// After the database could not be asked.
const RETRY_IN: Duration = Duration::from_secs(1);
/// Events of a job that are kept for its readers. Who is farther behind reads from the database.
const KEPT_EVENTS: usize = 16;
const KEPT_BYTES: usize = 32 << 10;
/// Readers that read from the database at once, so that a crowd of them leaves connections to other calls.
const READING: usize = 4;

/// The latest of a job, shared by its readers.
#[derive(Clone)]
pub(super) struct Latest {
    pub progress: Progress,
    /// The job was deleted.
    pub is_gone: bool,
    /// The last events with their numbers, without gaps up to `progress.event_seq`, unless it is empty.
    recent: Arc<Vec<(i64, Bytes)>>,
}

impl Latest {
    /// What a reader who has seen all up to `seq` has not seen; none when that is not kept.
    pub(super) fn after(&self, seq: i64) -> Option<Bytes> {
        let (first, _) = self.recent.first()?;
        if *first > seq + 1 {
            return None;
        }
        let mut unseen = self.recent.iter().filter(|(number, _)| *number > seq);
        let (one, rest) = (unseen.next()?, unseen);
        let mut frames = rest.map(|(_, frame)| frame).peekable();
        if frames.peek().is_none() {
            return Some(one.1.clone());
        }
        let mut all = BytesMut::from(one.1.as_ref());
        frames.for_each(|frame| all.extend_from_slice(frame));
        Some(all.freeze())
    }

    fn add(&mut self, moved: Moved) {
        let Some(progress) = moved.progress else {
            self.is_gone = true;
            return;
        };
        let new: Vec<(i64, Bytes)> =
            moved.events.into_iter().map(|event| (event.seq, frame(event))).collect();
        let is_next = new.first().is_some_and(|(seq, _)| *seq == self.progress.event_seq + 1);
        let mut recent = if is_next || new.is_empty() { self.recent.to_vec() } else { Vec::new() };
        recent.extend(new);
        let mut bytes = 0;
        let keep = recent.iter().rev().take(KEPT_EVENTS).take_while(|(_, frame)| {
            bytes += frame.len();
            bytes <= KEPT_BYTES
        });
        let keep = keep.count();
        recent.drain(..recent.len() - keep);
        // A commit between the two statements of a round: the rest comes with the next one.
        let event_seq = recent.last().map_or(progress.event_seq, |(seq, _)| *seq);
        let has_ended = progress.has_ended && event_seq >= progress.event_seq;
        self.progress = Progress { event_seq, has_ended };
        self.recent = Arc::new(recent);
    }
}

/// Who reads what. Cheap to share.
pub(crate) struct Hub {
    jobs: Mutex<HashMap<JobId, watch::Sender<Latest>>>,
    bell: Notify,
    pub(super) reading: Semaphore,
}

impl Default for Hub {
    fn default() -> Self {
        Self { jobs: Mutex::default(), bell: Notify::new(), reading: Semaphore::new(READING) }
    }
}

impl Hub {
    /// Something may have happened to a job.
    pub(crate) fn ring(&self) {
        self.bell.notify_one();
    }

    /// The latest of a job from now on; `progress` is how far it has come by the reader's own look.
    pub(super) fn subscribe(&self, job: &JobId, progress: Progress) -> watch::Receiver<Latest> {
        let mut jobs = self.jobs();
        let receiver = jobs.entry(job.clone()).or_insert_with(|| {
            watch::Sender::new(Latest { progress, is_gone: false, recent: Arc::default() })
        });
        let receiver = receiver.subscribe();
        drop(jobs);
        self.ring();
        receiver
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<Latest>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The jobs that are still read, with the number of the last event that is known.
    fn watched(&self) -> Vec<(JobId, i64)> {
        let mut jobs = self.jobs();
        jobs.retain(|_, sender| sender.receiver_count() > 0);
        jobs.iter().map(|(job, sender)| (job.clone(), sender.borrow().progress.event_seq)).collect()
    }

    fn publish(&self, moved: HashMap<JobId, Moved>) {
        let mut jobs = self.jobs();
        for (job, moved) in moved {
            let Some(sender) = jobs.get(&job) else { continue };
            let mut is_over = false;
            sender.send_modify(|latest| {
                latest.add(moved);
                is_over = latest.is_gone || latest.progress.has_ended;
            });
            if is_over {
                // Its readers keep what was sent last.
                jobs.remove(&job);
            }
        }
    }
}

/// The poller: looks while there is somebody to look for, until the server stops.
pub(crate) async fn run(state: AppState) {
    loop {
        let seen = state.follow.watched();
        let started = Instant::now();
        let mut wait = POLL;
        if !seen.is_empty() {
            match follow::moved(&state.store.db, &seen, KEPT_EVENTS as u32).await {
                Ok(moved) => state.follow.publish(moved),
                Err(error) => {
                    let error = ErrorChain(&error).to_string();
                    tracing::warn!(error, "looking for new events failed");
                    wait = RETRY_IN;
                }
            }
        }
        let rest = REST.max(started.elapsed() * REST_FACTOR);
        let next = async {
            tokio::time::sleep(rest).await;
            match seen.is_empty() {
                true => state.follow.bell.notified().await,
                false => {
                    tokio::time::timeout(wait, state.follow.bell.notified()).await.ok();
                }
            }
        };
        tokio::select! {
            () = next => {}
            () = state.stopping.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use store::events::{EventRow, EventType};
    use time::OffsetDateTime;

    use super::*;

    fn moved(seqs: std::ops::RangeInclusive<i64>, size: usize, has_ended: bool) -> Moved {
        let event = |seq| EventRow {
            id: format!("ftevent-{seq}").into(),
            seq,
            level: domain::report::Level::Info,
            kind: EventType::Message,
            message: "m".repeat(size),
            data: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
        };
        let progress = Some(Progress { event_seq: *seqs.end(), has_ended });
        Moved { progress, events: seqs.map(event).collect() }
    }

    fn latest(event_seq: i64) -> Latest {
        let progress = Progress { event_seq, has_ended: false };
        Latest { progress, is_gone: false, recent: Arc::default() }
    }

    /// Numbers of the events that a reader gets at once.
    fn numbers(latest: &Latest, seq: i64) -> Option<Vec<i64>> {
        let text = String::from_utf8(latest.after(seq)?.to_vec()).unwrap();
        let ids = text.lines().filter_map(|line| line.strip_prefix("id: ftevent-"));
        Some(ids.map(|id| id.parse().unwrap()).collect())
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen_or_is_sent_to_the_database() {
        let mut job = latest(3);
        assert_eq!(numbers(&job, 3), None);
        job.add(moved(4..=4, 1, false));
        job.add(moved(5..=7, 1, false));
        assert_eq!(numbers(&job, 3), Some(vec![4, 5, 6, 7]));
        assert_eq!(numbers(&job, 6), Some(vec![7]));
        assert_eq!((numbers(&job, 7), numbers(&job, 2)), (None, None));
        // More happened in one round than is kept.
        job.add(moved(30..=45, 1, false));
        assert_eq!(numbers(&job, 7), None);
        assert_eq!(numbers(&job, 43), Some(vec![44, 45]));
        job.add(moved(46..=46, 1, true));
        assert!(job.progress.has_ended);
        assert_eq!(job.recent.len(), KEPT_EVENTS);
    }

    #[test]
    fn what_is_kept_has_a_limit_in_bytes() {
        let mut job = latest(0);
        job.add(moved(1..=3, KEPT_BYTES / 2, false));
        assert_eq!((job.recent.len(), job.progress.event_seq), (1, 3));
        job.add(moved(4..=4, 2 * KEPT_BYTES, false));
        assert_eq!((job.recent.len(), job.progress.event_seq), (0, 4));
    }

    #[test]
    fn an_end_is_told_after_the_last_event() {
        let mut job = latest(1);
        let mut round = moved(2..=2, 1, true);
        // The job ended after its events were read.
        round.progress = Some(Progress { event_seq: 3, has_ended: true });
        job.add(round);
        assert_eq!((job.progress.event_seq, job.progress.has_ended), (2, false));
        job.add(moved(3..=3, 1, true));
        assert_eq!((job.progress.event_seq, job.progress.has_ended), (3, true));
    }
}
