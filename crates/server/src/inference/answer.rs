//! An answer's events → a whole completion, or a stream of chunks.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use domain::engine::{FinishReason, GenerationEvent, GenerationFailure};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::broker::Answer;
use crate::error::{ApiError, ApiResult};
use crate::wire::completion::{
    AssistantMessage, Choice, ChunkChoice, Completion, CompletionChunk, Delta, Usage,
};

const RETRY_AFTER_SECONDS: u64 = 5;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const CHUNK_BUFFER: usize = 16;

/// What every chunk and the whole completion say about themselves.
#[derive(Debug, Clone)]
pub(crate) struct Heading {
    pub id: String,
    pub created: i64,
    pub model: String,
    pub system_fingerprint: String,
    /// Choices asked for.
    pub n: u32,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For a worker to begin.
    pub first: Duration,
    /// Between events.
    pub idle: Duration,
}

/// The answer's first event. Errors before it still have a status of their own.
pub(crate) async fn first(answer: &mut Answer, patience: Patience) -> ApiResult<GenerationEvent> {
    match tokio::time::timeout(patience.first, answer.opened()).await {
        Ok(true) => next(answer, patience.idle).await,
        Ok(false) => Err(lost()),
        Err(_) => Err(ApiError::Unavailable {
            message: "No worker was free to answer within the time limit. A worker may still be \
                      loading the model; please try again."
                .to_owned(),
            retry_after_seconds: RETRY_AFTER_SECONDS,
        }),
    }
}

async fn next(answer: &mut Answer, idle: Duration) -> ApiResult<GenerationEvent> {
    match tokio::time::timeout(idle, answer.next()).await {
        Ok(Some(GenerationEvent::Failed { failure })) => Err(refusal(failure)),
        Ok(Some(event)) => Ok(event),
        Ok(None) | Err(_) => Err(lost()),
    }
}

fn lost() -> ApiError {
    ApiError::Unavailable {
        message: "The worker that answered this request was lost; please try again.".to_owned(),
        retry_after_seconds: 1,
    }
}

fn refusal(failure: GenerationFailure) -> ApiError {
    let GenerationFailure { code, message } = failure;
    match code.as_str() {
        "context_length_exceeded" => ApiError::ContextLengthExceeded(message),
        "invalid_messages" => ApiError::invalid_value("messages", message),
        "wrong_model" => ApiError::invalid_value("model", message),
        "engine_lost" => lost(),
        _ => ApiError::internal(format!("generation failed: {code}: {message}")),
    }
}

fn reason_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// The whole completion, once every choice has ended.
pub(crate) async fn whole(
    mut answer: Answer,
    heading: Heading,
    patience: Patience,
) -> ApiResult<Completion> {
    let mut choices: Vec<Choice> = (0..heading.n).map(empty_choice).collect();
    let mut event = first(&mut answer, patience).await?;
    let usage = loop {
        match event {
            GenerationEvent::Delta { index, text } => {
                if let Some(choice) = choices.get_mut(index as usize) {
                    choice.message.content.get_or_insert_default().push_str(&text);
                }
            }
            GenerationEvent::Finished { index, reason } => {
                if let Some(choice) = choices.get_mut(index as usize) {
                    choice.finish_reason = reason_word(reason);
                }
            }
            GenerationEvent::Done { prompt_tokens, completion_tokens } => {
                break Usage::new(prompt_tokens, completion_tokens);
            }
            GenerationEvent::Started { .. }
            | GenerationEvent::Scored { .. }
            | GenerationEvent::Failed { .. } => {}
        }
        event = next(&mut answer, patience.idle).await?;
    };
    Ok(Completion {
        id: heading.id,
        object: "chat.completion",
        created: heading.created,
        model: heading.model,
        choices,
        usage,
        service_tier: "default",
        system_fingerprint: heading.system_fingerprint,
    })
}

/// A reward model's score, and the tokens that it has read.
pub(crate) async fn score(mut answer: Answer, patience: Patience) -> ApiResult<(f64, Usage)> {
    let mut event = first(&mut answer, patience).await?;
    let mut score = None;
    loop {
        match event {
            GenerationEvent::Scored { score: found } => score = Some(found),
            GenerationEvent::Done { prompt_tokens, completion_tokens } => {
                let score = score.ok_or_else(|| ApiError::internal("the worker gave no score"))?;
                return Ok((score, Usage::new(prompt_tokens, completion_tokens)));
            }
            _ => {}
        }
        event = next(&mut answer, patience.idle).await?;
    }
}

fn empty_choice(index: u32) -> Choice {
    let message = AssistantMessage {
        role: "assistant",
        content: Some(String::new()),
        refusal: None,
        tool_calls: None,
        annotations: Vec::new(),
    };
    Choice { index, message, logprobs: None, finish_reason: "stop" }
}

/// A stream of chunks. Waits for the first event, so that early errors have a status of their own.
pub(crate) async fn stream(
    mut answer: Answer,
    heading: Heading,
    patience: Patience,
    include_usage: bool,
) -> ApiResult<Response> {
    let event = first(&mut answer, patience).await?;
    let (sender, receiver) = mpsc::channel(CHUNK_BUFFER);
    let writer = Writer { heading, include_usage, sender };
    tokio::spawn(async move {
        // The client's leaving must end the wait for the next token, not only the next write.
        let gone = writer.sender.clone();
        tokio::select! {
            () = gone.closed() => {}
            () = writer.run(answer, event, patience.idle) => {}
        }
    });
    Ok(respond(ReceiverStream::new(receiver)))
}

fn respond(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    Sse::new(events).keep_alive(keep_alive).into_response()
}

/// Writes an answer's events as chunks.
struct Writer {
    heading: Heading,
    include_usage: bool,
    sender: mpsc::Sender<Result<Event, Infallible>>,
}

/// The reader is gone.
struct Gone;

impl Writer {
    async fn run(self, answer: Answer, first: GenerationEvent, idle: Duration) {
        if let Err(Gone) = self.relay(answer, first, idle).await {
            tracing::debug!("the client left in the middle of a stream");
        }
    }

    async fn relay(
        &self,
        mut answer: Answer,
        first: GenerationEvent,
        idle: Duration,
    ) -> Result<(), Gone> {
        for index in 0..self.heading.n {
            let delta = Delta {
                role: Some("assistant"),
                content: Some(String::new()),
                refusal: Some(serde_json::Value::Null),
            };
            self.choice(index, delta, None).await?;
        }
        let mut event = first;
        loop {
            match event {
                GenerationEvent::Delta { index, text } => {
                    let delta = Delta { content: Some(text), ..Delta::default() };
                    self.choice(index, delta, None).await?;
                }
                GenerationEvent::Finished { index, reason } => {
                    self.choice(index, Delta::default(), Some(reason_word(reason))).await?;
                }
                GenerationEvent::Done { prompt_tokens, completion_tokens } => {
                    return self.end(Usage::new(prompt_tokens, completion_tokens)).await;
                }
                GenerationEvent::Started { .. }
                | GenerationEvent::Scored { .. }
                | GenerationEvent::Failed { .. } => {}
            }
            match next(&mut answer, idle).await {
                Ok(following) => event = following,
                Err(error) => return self.fail(&error).await,
            }
        }
    }

    async fn choice(
        &self,
        index: u32,
        delta: Delta,
        finish_reason: Option<&'static str>,
    ) -> Result<(), Gone> {
        let choice = ChunkChoice { index, delta, logprobs: None, finish_reason };
        self.chunk(vec![choice], self.include_usage.then_some(None)).await
    }

    async fn end(&self, usage: Usage) -> Result<(), Gone> {
        if self.include_usage {
            self.chunk(Vec::new(), Some(Some(usage))).await?;
        }
        self.write("[DONE]".to_owned()).await
    }

    async fn fail(&self, error: &ApiError) -> Result<(), Gone> {
        if let ApiError::Internal(source) = error {
            tracing::error!(error = %source, "a streamed answer failed");
        }
        match serde_json::to_string(&error.envelope()) {
            Ok(text) => self.write(text).await,
            Err(_) => Err(Gone),
        }
    }

    async fn chunk(
        &self,
        choices: Vec<ChunkChoice>,
        usage: Option<Option<Usage>>,
    ) -> Result<(), Gone> {
        let heading = self.heading.clone();
        let chunk = CompletionChunk {
            id: heading.id,
            object: "chat.completion.chunk",
            created: heading.created,
            model: heading.model,
            choices,
            service_tier: "default",
            system_fingerprint: heading.system_fingerprint,
            usage,
        };
        self.write(serde_json::to_string(&chunk).map_err(|_| Gone)?).await
    }

    async fn write(&self, data: String) -> Result<(), Gone> {
        self.sender.send(Ok(Event::default().data(data))).await.map_err(|_| Gone)
    }
}
