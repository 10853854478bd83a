//! A worker that answers questions as a script.

use domain::engine::GenerationEvent;
use domain::internal::InferenceTask;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::worker::Worker;
use super::{MODEL, TestServer};

pub const DONE: GenerationEvent = GenerationEvent::Done { prompt_tokens: 7, completion_tokens: 5 };

pub fn chat(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Takes the next chat request.
pub async fn take(server: &TestServer) -> InferenceTask {
    let models = [MODEL.to_owned(), format!("{MODEL}@auto")];
    let next = json!({"worker_id": "w", "base_models": models, "wait_seconds": 20});
    let response =
        Worker::of(server).request(Method::POST, "/inference/next").json(&next).send().await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// A worker's open stream of events.
pub struct Answering {
    pub events: mpsc::Sender<GenerationEvent>,
    pub call: tokio::task::JoinHandle<reqwest::Result<Response>>,
}

impl Answering {
    pub fn open(server: &TestServer, task: &InferenceTask) -> Self {
        let (events, receiver) = mpsc::channel::<GenerationEvent>(16);
        let lines = futures::stream::unfold(receiver, async |mut receiver| {
            let event = receiver.recv().await?;
            let line = format!("{}\n", serde_json::to_string(&event).unwrap());
            Some((Ok::<_, std::io::Error>(line), receiver))
        });
        let request = Worker::of(server)
            .request(Method::POST, &format!("/inference/{}/events", task.id))
            .body(reqwest::Body::wrap_stream(lines));
        Self { events, call: tokio::spawn(request.send()) }
    }

    pub async fn send(&self, event: GenerationEvent) {
        self.events.send(event).await.unwrap();
    }

    pub async fn end(self) -> StatusCode {
        drop(self.events);
        self.call.await.unwrap().unwrap().status()
    }
}
