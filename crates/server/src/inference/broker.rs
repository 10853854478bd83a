//! The broker: a chat request waits here until a worker's long poll takes it; the worker's events
//! are handed on to the waiting handler. In memory, per server process: a request that dies with
//! its server has lost its client too, so nothing needs to be stored.
//!
//! Ownership tells everything. Dropping the [`Answer`] (the client left, or waited too long)
//! removes the request; a worker that holds its [`Delivery`] sees that as [`Delivery::abandoned`].
//! Dropping the delivery (the worker's connection broke) ends the answer's events.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::limits::{Charge, Share};
use domain::ModelId;
use domain::engine::GenerationEvent;
use domain::internal::InferenceTask;
use tokio::sync::{Notify, mpsc, oneshot};

/// A task whose worker has not opened its event stream within this time is given to another one.
const HANDOVER_LIMIT: Duration = Duration::from_secs(10);
/// How long other tasks may be preferred for their warm model.
const PATIENCE: Duration = Duration::from_secs(2);
/// Events that may lie between worker and client; a client that reads slower holds its worker back.
const EVENT_BUFFER: usize = 1024;

#[derive(Clone)]
pub(crate) struct Broker {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Rung when a task arrives or comes back.
    arrived: Notify,
    capacity: usize,
}

#[derive(Default)]
struct State {
    /// Tasks that no worker has opened yet.
    unopened: HashMap<String, Pending>,
    /// Ids of those that wait for a worker, oldest first.
    waiting: VecDeque<String>,
    /// All tasks that have an answer alive, opened ones too.
    alive: usize,
}

struct Pending {
    task: InferenceTask,
    events: mpsc::Sender<GenerationEvent>,
    opened: oneshot::Sender<()>,
    since: Instant,
    handed_over: Option<Instant>,
}

/// More requests than the server is set to hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The client's end.
pub(crate) struct Answer {
    id: String,
    shared: Arc<Shared>,
    events: mpsc::Receiver<GenerationEvent>,
    opened: oneshot::Receiver<()>,
    /// What it has used, where somebody counts.
    share: Option<Share>,
}

/// The worker's end.
pub(crate) struct Delivery {
    events: mpsc::Sender<GenerationEvent>,
}

impl Broker {
    pub(crate) fn new(capacity: usize) -> Self {
        let shared = Shared { state: Mutex::default(), arrived: Notify::new(), capacity };
        Self { shared: Arc::new(shared) }
    }

    /// Offers a task to the workers.
    pub(crate) fn submit(&self, task: InferenceTask) -> Result<Answer, Full> {
        let (sender, receiver) = mpsc::channel(EVENT_BUFFER);
        let (opened_sender, opened) = oneshot::channel();
        let id = task.id.clone();
        let mut state = self.shared.lock();
        if state.alive >= self.shared.capacity {
            return Err(Full);
        }
        state.alive += 1;
        let pending = Pending {
            task,
            events: sender,
            opened: opened_sender,
            since: Instant::now(),
            handed_over: None,
        };
        state.unopened.insert(id.clone(), pending);
        state.waiting.push_back(id.clone());
        drop(state);
        self.shared.arrived.notify_waiters();
        Ok(Answer { id, shared: self.shared.clone(), events: receiver, opened, share: None })
    }

    /// The next task for a worker that has `base_models` (the warm one first), or none within
    /// `wait`.
    pub(crate) async fn next(
        &self,
        base_models: &[ModelId],
        wait: Duration,
    ) -> Option<InferenceTask> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            // Listening begins before looking, so that no arrival falls between the two.
            let arrived = self.shared.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let retry_at = {
                let mut state = self.shared.lock();
                if let Some(task) = state.take(base_models, Instant::now()) {
                    return Some(task);
                }
                state.next_return()
            };
            let wake = retry_at.map_or(deadline, |at| deadline.min(at.into()));
            if tokio::time::timeout_at(wake, arrived).await.is_err()
                && tokio::time::Instant::now() >= deadline
            {
                return None;
            }
        }
    }

    /// Begins the delivery of the answer to task `id`. None when nobody waits for it any more, or
    /// another worker answers already.
    pub(crate) fn open(&self, id: &str) -> Option<Delivery> {
        let mut state = self.shared.lock();
        let pending = state.unopened.remove(id)?;
        state.waiting.retain(|other| other != id);
        // A failure means that the client has just left, which the delivery will notice.
        let _ = pending.opened.send(());
        Some(Delivery { events: pending.events })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, base_models: &[ModelId], now: Instant) -> Option<InferenceTask> {
        self.take_back(now);
        let answerable = |id: &String| {
            let model = self.unopened.get(id)?.task.base_model.variant();
            base_models.iter().position(|candidate| *candidate == model)
        };
        let oldest = self.waiting.iter().position(|id| answerable(id).is_some())?;
        let is_patient = |id: &String| {
            self.unopened.get(id).is_some_and(|p| now.duration_since(p.since) < PATIENCE)
        };
        let chosen = if is_patient(&self.waiting[oldest]) {
            self.waiting.iter().position(|id| answerable(id) == Some(0)).unwrap_or(oldest)
        } else {
            oldest
        };
        let id = self.waiting.remove(chosen)?;
        let pending = self.unopened.get_mut(&id)?;
        pending.handed_over = Some(now);
        Some(pending.task.clone())
    }

    /// Tasks that were handed over and never opened wait again, first in line.
    fn take_back(&mut self, now: Instant) {
        for (id, pending) in &mut self.unopened {
            let is_late = |at: Instant| now.duration_since(at) >= HANDOVER_LIMIT;
            if pending.handed_over.is_some_and(is_late) {
                pending.handed_over = None;
                self.waiting.push_front(id.clone());
            }
        }
    }

    /// When the next task that was handed over may come back.
    fn next_return(&self) -> Option<Instant> {
        self.unopened.values().filter_map(|p| p.handed_over).min().map(|at| at + HANDOVER_LIMIT)
    }
}

impl Answer {
    /// Completes when a worker has begun: true, or false when that can never be. Call it once.
    pub(crate) async fn opened(&mut self) -> bool {
        (&mut self.opened).await.is_ok()
    }

    /// The next event; none when the worker's connection is gone.
    pub(crate) async fn next(&mut self) -> Option<GenerationEvent> {
        let event = self.events.recv().await;
        if let (Some(share), Some(event)) = (&mut self.share, &event) {
            share.see(event);
        }
        event
    }

    /// Counts what it uses as a part of the request's charge.
    pub(crate) fn charged(mut self, charge: Option<&Arc<Charge>>) -> Self {
        self.share = charge.cloned().map(Share::of);
        self
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.alive = state.alive.saturating_sub(1);
        if state.unopened.remove(&self.id).is_some() {
            state.waiting.retain(|other| *other != self.id);
        }
    }
}

impl Delivery {
    /// Hands one event on. False when nobody reads any more.
    pub(crate) async fn send(&self, event: GenerationEvent) -> bool {
        self.events.send(event).await.is_ok()
    }

    /// Completes when nobody reads any more.
    pub(crate) async fn abandoned(&self) {
        self.events.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::engine::{Question, Sampling};
    use domain::hyperparameters::Quantization;
    use domain::internal::BaseModel;

    fn task(id: &str, model: &str) -> InferenceTask {
        InferenceTask {
            id: id.to_owned(),
            base_model: BaseModel {
                id: model.into(),
                digest: String::new(),
                files: Vec::new(),
                quantization: Quantization::None,
                precision: Default::default(),
            },
            adapter: None,
            question: Question::chat(Vec::new(), Sampling::default()),
        }
    }

    const NO_WAIT: Duration = Duration::ZERO;

    #[tokio::test]
    async fn a_waiting_worker_gets_a_new_task_at_once() {
        let broker = Broker::new(8);
        let polling = tokio::spawn({
            let broker = broker.clone();
            async move { broker.next(&["m".into()], Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        let _answer = broker.submit(task("1", "m")).unwrap();
        assert_eq!(polling.await.unwrap().unwrap().id, "1");
    }

    #[tokio::test]
    async fn a_worker_gets_only_models_it_has_and_the_warm_one_first() {
        let broker = Broker::new(8);
        let _answers = [
            broker.submit(task("1", "other")).unwrap(),
            broker.submit(task("2", "cold")).unwrap(),
            broker.submit(task("3", "warm")).unwrap(),
        ];
        let models = ["warm".into(), "cold".into()];
        assert_eq!(broker.next(&models, NO_WAIT).await.unwrap().id, "3");
        assert_eq!(broker.next(&models, NO_WAIT).await.unwrap().id, "2");
        assert!(broker.next(&models, NO_WAIT).await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_leaves_takes_its_task_along() {
        let broker = Broker::new(8);
        drop(broker.submit(task("1", "m")).unwrap());
        assert!(broker.next(&["m".into()], NO_WAIT).await.is_none());

        let answer = broker.submit(task("2", "m")).unwrap();
        broker.next(&["m".into()], NO_WAIT).await.unwrap();
        let delivery = broker.open("2").unwrap();
        drop(answer);
        delivery.abandoned().await;
        assert!(broker.open("2").is_none());
    }

    #[tokio::test]
    async fn a_broken_delivery_ends_the_answer() {
        let broker = Broker::new(8);
        let mut answer = broker.submit(task("1", "m")).unwrap();
        let delivery = broker.open("1").unwrap();
        assert!(broker.open("1").is_none(), "one worker answers, not two");
        assert!(delivery.send(GenerationEvent::Started { prompt_tokens: 3 }).await);
        drop(delivery);
        assert_eq!(answer.next().await, Some(GenerationEvent::Started { prompt_tokens: 3 }));
        assert_eq!(answer.next().await, None);
    }

    #[test]
    fn a_task_that_a_worker_took_and_lost_comes_back() {
        let broker = Broker::new(8);
        let _answer = broker.submit(task("1", "m")).unwrap();
        let now = Instant::now();
        let mut state = broker.shared.lock();
        assert!(state.take(&["m".into()], now).is_some());
        assert!(state.take(&["m".into()], now).is_none());
        assert!(state.take(&["m".into()], now + HANDOVER_LIMIT).is_some());
    }

    #[tokio::test]
    async fn the_number_of_requests_is_bounded() {
        let broker = Broker::new(1);
        let first = broker.submit(task("1", "m")).unwrap();
        assert!(broker.submit(task("2", "m")).is_err());
        drop(first);
        assert!(broker.submit(task("3", "m")).is_ok());
    }
}
