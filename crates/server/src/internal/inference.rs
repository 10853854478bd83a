//! Chat requests: a worker's long poll takes one, its stream of events answers it.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::{Buf, BytesMut};
use domain::engine::GenerationEvent;
use domain::internal::NextInference;
use futures::StreamExt;

use super::error::{InternalApiError, InternalResult};
use super::extract::{InternalJson, LONGEST_POLL};
use crate::extract::Worker;
use crate::inference::broker::Delivery;
use crate::state::AppState;

/// Longest line of an event stream.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

pub(crate) async fn next(
    _: Worker,
    State(state): State<AppState>,
    InternalJson(wanted): InternalJson<NextInference>,
) -> InternalResult<Response> {
    let wait = Duration::from_secs(wanted.wait_seconds).min(LONGEST_POLL);
    let task = tokio::select! {
        task = state.broker.next(&wanted.base_models, wait) => task,
        () = state.stopping.cancelled() => return Err(InternalApiError::ShuttingDown),
    };
    Ok(match task {
        Some(task) => Json(task).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Reads the worker's events as they come. Ends early when the client has gone: the worker sees the
/// answer (and the closed connection) before it has sent everything, and stops generating.
pub(crate) async fn events(
    _: Worker,
    State(state): State<AppState>,
    Path(id): Path<String>,
    body: Body,
) -> InternalResult<StatusCode> {
    let delivery = state.broker.open(&id).ok_or_else(|| {
        InternalApiError::NotFound(format!("nobody waits for the answer to {id}"))
    })?;
    tokio::select! {
        relayed = relay(&delivery, body) => relayed?,
        () = delivery.abandoned() => {}
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn relay(delivery: &Delivery, body: Body) -> InternalResult<()> {
    let mut chunks = body.into_data_stream();
    let mut buffer = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            InternalApiError::InvalidRequest(format!("the event stream broke: {error}"))
        })?;
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            if !relay_line(delivery, &line).await? {
                return Ok(());
            }
        }
        if buffer.len() > MAX_EVENT_BYTES {
            let message = format!("an event is longer than {MAX_EVENT_BYTES} bytes");
            return Err(InternalApiError::InvalidRequest(message));
        }
    }
    relay_line(delivery, &buffer).await.map(|_| ())
}

/// False when nobody reads any more.
async fn relay_line(delivery: &Delivery, line: &[u8]) -> InternalResult<bool> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(true);
    }
    let event: GenerationEvent = serde_json::from_slice(line).map_err(|error| {
        InternalApiError::InvalidRequest(format!("an event could not be read: {error}"))
    })?;
    Ok(delivery.send(event).await)
}
