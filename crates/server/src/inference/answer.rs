//! An answer's events, with an end to every wait, and failures as the API tells them.

use std::time::Duration;

use domain::engine::{GenerationEvent, GenerationFailure};

use super::broker::Answer;
use crate::error::{ApiError, ApiResult};
use crate::wire::completion::Usage;

const RETRY_AFTER_SECONDS: u64 = 5;

/// What every chunk and the whole completion say about themselves.
#[derive(Debug, Clone)]
pub(crate) struct Heading {
    pub id: String,
    pub created: i64,
    pub model: String,
    pub system_fingerprint: String,
    /// Choices asked for.
    pub n: u32,
    /// Log-probabilities are told, even where there is no token.
    pub logprobs: bool,
    /// Calls are told as OpenAI did before there were tools.
    pub legacy_calls: bool,
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

pub(crate) async fn next(answer: &mut Answer, idle: Duration) -> ApiResult<GenerationEvent> {
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
        "invalid_prompt" => ApiError::invalid_value("prompt", message),
        "invalid_form" => ApiError::invalid_value("response_format", message),
        "wrong_model" => ApiError::invalid_value("model", message),
        "engine_lost" => lost(),
        _ => ApiError::internal(format!("generation failed: {code}: {message}")),
    }
}

/// A reward model's score, and the tokens that it has read.
pub(crate) async fn score(answer: Answer, patience: Patience) -> ApiResult<(f64, Usage)> {
    only(answer, patience, |event| match event {
        GenerationEvent::Scored { score } => Some(score),
        _ => None,
    })
    .await
}

/// A text's embedding, and the tokens that were read for it.
pub(crate) async fn embedding(answer: Answer, patience: Patience) -> ApiResult<(Vec<f32>, Usage)> {
    only(answer, patience, |event| match event {
        GenerationEvent::Embedded { embedding } => Some(embedding),
        _ => None,
    })
    .await
}

/// What one of the events tells: the whole answer.
async fn only<T>(
    mut answer: Answer,
    patience: Patience,
    told: impl Fn(GenerationEvent) -> Option<T>,
) -> ApiResult<(T, Usage)> {
    let mut event = first(&mut answer, patience).await?;
    let mut found = None;
    loop {
        if let GenerationEvent::Done { prompt_tokens, completion_tokens } = event {
            let missing = || ApiError::internal("the worker ended without what it was asked for");
            let usage = Usage::new(prompt_tokens, completion_tokens);
            return found.map(|found| (found, usage)).ok_or_else(missing);
        }
        found = told(event).or(found);
        event = next(&mut answer, patience.idle).await?;
    }
}
