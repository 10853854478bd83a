//! Chat: asks a server for the next request, stages its adapter, lets the engine answer, and
//! streams the events back while they come.
//!
//! Each poller answers one request at a time, so the number of pollers bounds the generations of an
//! engine. A request belongs to the server that gave it: the answer goes there, and when that
//! server hangs up the generation is cancelled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::ModelId;
use domain::engine::{GenerateRequest, GenerationEvent, GenerationFailure};
use domain::hyperparameters::{Precision, Quantization};
use domain::internal::{BaseModel, InferenceTask, NextInference, variant};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{CallError, Client};
use crate::slot::Slot;
use crate::supervise::EngineError;

/// How long a server's list of base models counts as known.
const LIST_AGE: Duration = Duration::from_secs(5);
/// The forms in which an engine can hold a base model.
const QUANTIZATIONS: [Quantization; 2] = [Quantization::None, Quantization::Nf4];
const PRECISIONS: [Precision; 3] = [Precision::Auto, Precision::Fp32, Precision::Bf16];
/// Events between engine and connection.
const EVENTS: usize = 64;

/// One server's base models, remembered for all pollers.
pub struct Catalog {
    client: Client,
    known: Mutex<Option<(Instant, Arc<[ModelId]>)>>,
}

impl Catalog {
    pub fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    async fn models(&self) -> Result<Arc<[ModelId]>, CallError> {
        let mut known = self.known.lock().await;
        match &*known {
            Some((when, models)) if when.elapsed() < LIST_AGE => Ok(models.clone()),
            _ => {
                let listed = self.client.models().await?;
                let models: Arc<[ModelId]> = listed.into_iter().map(|model| model.id).collect();
                // An empty list is asked for again: the first import is about to come.
                *known = (!models.is_empty()).then(|| (Instant::now(), models.clone()));
                Ok(models)
            }
        }
    }
}

impl Slot {
    /// Answers one request after the other from one server until the worker drains.
    pub async fn serve_chat(&self, catalog: &Catalog) {
        let mut backoff = self.backoff();
        loop {
            let next = tokio::select! {
                biased;
                () = self.draining.cancelled() => return,
                next = self.next_task(catalog) => next,
            };
            let error = match next {
                Ok(task) => {
                    backoff.reset();
                    if let Some(task) = task {
                        self.answer(&catalog.client, task).await;
                    }
                    continue;
                }
                Err(error) => error,
            };
            tracing::debug!("no chat requests yet, will ask again: {error}");
            tokio::select! {
                () = self.draining.cancelled() => return,
                () = backoff.pause() => {}
            }
        }
    }

    async fn next_task(&self, catalog: &Catalog) -> Result<Option<InferenceTask>, CallError> {
        let base_models = self.servable(&catalog.models().await?);
        if base_models.is_empty() {
            return Err(CallError::Unreachable("the server has no base model yet".to_owned()));
        }
        let worker_id = self.worker_id.clone();
        let wait_seconds = self.config.chat_wait.as_secs().clamp(1, 30);
        let request = NextInference { worker_id, base_models, wait_seconds };
        let asked = Instant::now();
        let task = catalog.client.next_inference(&request).await?;
        if task.is_none() {
            self.rest_after(asked).await;
        }
        Ok(task)
    }

    /// While a run is active its base model only; any otherwise, the loaded one first.
    fn servable(&self, models: &[ModelId]) -> Vec<ModelId> {
        if let Some(pinned) = self.host.pinned() {
            return self.names_of(&pinned);
        }
        let warm = self.host.warm().map(|model| self.names_of(&model)).unwrap_or_default();
        let forms = QUANTIZATIONS
            .into_iter()
            .flat_map(|quantization| PRECISIONS.map(|precision| (quantization, precision)));
        let mut models: Vec<_> = models
            .iter()
            .flat_map(|model| forms.clone().map(|(q, p)| variant(model, q, p)))
            .collect();
        models.sort_by_key(|model| !warm.contains(model));
        models
    }

    /// The names under which a server may ask for what an engine holds.
    fn names_of(&self, held: &BaseModel) -> Vec<ModelId> {
        let mut names = vec![held.variant()];
        if held.precision == self.host.precision() {
            names.push(variant(&held.id, held.quantization, Precision::Auto));
        }
        names
    }

    /// Streams the answer to one request. Returns when the server has it, or wants it no more.
    async fn answer(&self, client: &Client, task: InferenceTask) {
        let id = task.id.clone();
        let (events, body) = mpsc::channel::<GenerationEvent>(EVENTS);
        let lines = ReceiverStream::new(body).map(|event| {
            let mut line = serde_json::to_vec(&event)?;
            line.push(b'\n');
            Ok::<_, serde_json::Error>(Bytes::from(line))
        });
        let post = client.inference_events(&id, reqwest::Body::wrap_stream(lines));
        tokio::pin!(post);
        let produce = async {
            if let Err(failure) = self.generate(client, task, &events).await {
                let _ = events.send(GenerationEvent::Failed { failure }).await;
            }
        };
        let early = tokio::select! {
            biased;
            posted = &mut post => Some(posted),
            () = produce => None,
        };
        // Dropping `produce` above has cancelled the generation.
        drop(events);
        let (early, posted) = match early {
            Some(posted) => (true, posted),
            None => (false, post.await),
        };
        match posted {
            Ok(()) if early => tracing::debug!(id, "the client has gone; generation cancelled"),
            Ok(()) => {}
            Err(error) => tracing::debug!(id, "the answer was not taken: {error}"),
        }
    }

    async fn generate(
        &self,
        client: &Client,
        task: InferenceTask,
        events: &mpsc::Sender<GenerationEvent>,
    ) -> Result<(), GenerationFailure> {
        let staged = |error: crate::transfer::TransferError| {
            failed("internal_error", format!("The model cannot be fetched: {error}"))
        };
        let base: &BaseModel = &task.base_model;
        let dir = self.cache.base_model(client, base).await.map_err(staged)?;
        let adapter = match &task.adapter {
            Some(adapter) => Some(self.cache.adapter(client, adapter).await.map_err(staged)?),
            None => None,
        };
        let engine = self.host.for_generation(base, &dir).await.map_err(|error| match error {
            EngineError::Busy(_) => failed("engine_lost", error.to_string()),
            _ => failed("engine_lost", "The engine cannot be started.".to_owned()),
        })?;
        let mut generation =
            engine.generate(GenerateRequest { id: task.id, adapter, question: task.question });
        loop {
            let next = tokio::time::timeout(self.config.stall_limit, generation.next());
            let Ok(event) = next.await else {
                engine.kill().await;
                return Err(failed("engine_lost", "The engine was silent for too long.".into()));
            };
            let Some(event) = event else {
                let message = "The engine ended while it answered; try again.".to_owned();
                return Err(failed("engine_lost", message));
            };
            let last =
                matches!(event, GenerationEvent::Done { .. } | GenerationEvent::Failed { .. });
            // A closed channel is the connection's end, which the caller sees as well.
            if events.send(event).await.is_err() || last {
                return Ok(());
            }
        }
    }
}

fn failed(code: &str, message: String) -> GenerationFailure {
    GenerationFailure { code: code.to_owned(), message }
}
