//! The events of one answer between the engine and a reader that may be slower.
//!
//! The engine's replies come through one pipe: to wait for one reader would hold up every run and every other
//! answer. So nothing waits here and nothing is lost: when many events lie unread, pieces of the same text are put
//! together. What is kept is then the answer's own text, which the engine's limits bound.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::engine::GenerationEvent;
use tokio::sync::Notify;

/// Events that lie unread before pieces are put together.
const APART: usize = 1024;

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<GenerationEvent>,
    is_complete: bool,
    is_abandoned: bool,
}

pub(crate) struct Sender(Arc<Shared>);

pub(crate) struct Receiver(Arc<Shared>);

pub(crate) fn channel() -> (Sender, Receiver) {
    let shared = Arc::<Shared>::default();
    (Sender(shared.clone()), Receiver(shared))
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// False when nobody reads any more.
    pub(crate) fn send(&self, event: GenerationEvent) -> bool {
        let mut queue = self.0.queue();
        if queue.is_abandoned {
            return false;
        }
        let left = if queue.events.len() < APART { Some(event) } else { queue.join(event) };
        queue.events.extend(left);
        drop(queue);
        self.0.changed.notify_one();
        true
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.queue().is_complete = true;
        self.0.changed.notify_one();
    }
}

impl Receiver {
    /// The next event; none after the last one, when the sender is gone.
    pub(crate) async fn recv(&mut self) -> Option<GenerationEvent> {
        loop {
            {
                let mut queue = self.0.queue();
                let event = queue.events.pop_front();
                if event.is_some() || queue.is_complete {
                    return event;
                }
            }
            // A change since then has left a permit.
            self.0.changed.notified().await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.is_abandoned = true;
        queue.events = VecDeque::new();
    }
}

impl Queue {
    /// Adds a piece to the unread one before it of the same text; gives back what cannot be added.
    fn join(&mut self, event: GenerationEvent) -> Option<GenerationEvent> {
        let Some(choice) = choice(&event) else { return Some(event) };
        let last = self.events.iter_mut().rev().find(|other| self::choice(other) == Some(choice));
        match (last, event) {
            (
                Some(GenerationEvent::Delta { text, logprobs, .. }),
                GenerationEvent::Delta { text: more, logprobs: others, .. },
            ) => {
                text.push_str(&more);
                logprobs.extend(others);
                None
            }
            (
                Some(GenerationEvent::Arguments { call, text, .. }),
                GenerationEvent::Arguments { call: same, text: more, .. },
            ) if *call == same => {
                text.push_str(&more);
                None
            }
            (_, event) => Some(event),
        }
    }
}

/// The choice that an event is about. Only the order within one matters.
fn choice(event: &GenerationEvent) -> Option<u32> {
    match event {
        GenerationEvent::Delta { index, .. }
        | GenerationEvent::Call { index, .. }
        | GenerationEvent::Arguments { index, .. }
        | GenerationEvent::Finished { index, .. } => Some(*index),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use domain::engine::FinishReason;

    use super::*;

    fn delta(index: u32, text: &str) -> GenerationEvent {
        GenerationEvent::Delta { index, text: text.to_owned(), logprobs: Vec::new() }
    }

    #[tokio::test]
    async fn a_late_reader_gets_everything_in_order_and_little_is_kept() {
        let (sender, mut receiver) = channel();
        let mut expected = [String::new(), String::new()];
        for number in 0..50_000_u32 {
            let text = format!("{number} ");
            expected[(number % 2) as usize].push_str(&text);
            assert!(sender.send(delta(number % 2, &text)));
        }
        for index in 0..2 {
            sender.send(GenerationEvent::Call { index, call: 0, name: "f".to_owned() });
            for _ in 0..10_000 {
                let text = "x".to_owned();
                sender.send(GenerationEvent::Arguments { index, call: 0, text });
            }
            sender.send(GenerationEvent::Finished { index, reason: FinishReason::Calls });
        }
        sender.send(GenerationEvent::Done { prompt_tokens: 1, completion_tokens: 70_000 });
        assert!(
            receiver.0.queue().events.len() <= APART + 7,
            "{}",
            receiver.0.queue().events.len()
        );
        drop(sender);
        let mut found = [String::new(), String::new()];
        let mut states = ["text", "text"];
        let mut arguments = [0, 0];
        let mut last = None;
        while let Some(event) = receiver.recv().await {
            match &event {
                GenerationEvent::Delta { index, text, .. } => {
                    assert_eq!(states[*index as usize], "text");
                    found[*index as usize].push_str(text);
                }
                GenerationEvent::Call { index, .. } => states[*index as usize] = "call",
                GenerationEvent::Arguments { index, text, .. } => {
                    assert_eq!(states[*index as usize], "call");
                    arguments[*index as usize] += text.len();
                }
                GenerationEvent::Finished { index, .. } => states[*index as usize] = "end",
                _ => {}
            }
            last = Some(event);
        }
        assert_eq!((found, arguments, states), (expected, [10_000; 2], ["end"; 2]));
        assert!(matches!(last, Some(GenerationEvent::Done { .. })));
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_and_one_that_left_is_noticed() {
        let (sender, mut receiver) = channel();
        let reading = tokio::spawn(async move { (receiver.recv().await, receiver) });
        tokio::task::yield_now().await;
        assert!(sender.send(delta(0, "a")));
        let (event, receiver) = reading.await.unwrap();
        assert_eq!(event, Some(delta(0, "a")));
        drop(receiver);
        assert!(!sender.send(delta(0, "b")));
    }
}
