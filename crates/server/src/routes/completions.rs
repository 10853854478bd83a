//! Chat completions: checked here, answered by a worker, whole or streamed.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::error::ApiResult;
use crate::extract::{Caller, Json as Body};
use crate::inference::ask::Asked;
use crate::inference::{ask, chunks, complete};
use crate::state::AppState;
use crate::wire::completion::{Completion, CompletionChunk, CreateCompletion};

/// Answer a chat, by a base model, a tuned model or a checkpoint.
#[utoipa::path(post, path = "/chat/completions", tag = "Chat",
    operation_id = "createChatCompletion",
    request_body = CreateCompletion,
    responses((status = 200, content((Completion = "application/json"),
        (CompletionChunk = "text/event-stream")))))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    Body(request): Body<CreateCompletion>,
) -> ApiResult<Response> {
    if !request.stream.unwrap_or(false) {
        return Ok(Json(complete(&state, &project, request).await?).into_response());
    }
    let include_usage =
        request.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
    let Asked { answer, heading, patience, keeper } = ask::ask(&state, &project, request).await?;
    chunks::stream(answer, heading, patience, include_usage, keeper).await
}
