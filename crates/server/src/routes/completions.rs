//! Chat completions: checked here, answered by a worker, whole or streamed.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::error::ApiResult;
use crate::extract::{Asker, Json as Body};
use crate::inference::ask::Asked;
use crate::inference::{ask, chunks, complete};
use crate::limits::cost;
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
    asker: Asker,
    Body(request): Body<CreateCompletion>,
) -> ApiResult<Response> {
    let charge = Some(asker.charge(prompt_tokens(&request), most_tokens(&request))?);
    let (project, charge) = (&asker.project, charge.as_ref());
    if !request.stream.unwrap_or(false) {
        return Ok(Json(complete(&state, project, request, charge).await?).into_response());
    }
    let include_usage =
        request.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
    let asked = ask::ask(&state, project, request, charge).await?;
    let Asked { answer, heading, patience, keeper } = asked;
    chunks::stream(answer, heading, patience, include_usage, keeper).await
}

/// About how many tokens the worker has to read.
fn prompt_tokens(request: &CreateCompletion) -> u64 {
    let parts = [Some(&request.messages), request.tools.as_ref(), request.functions.as_ref()];
    parts.into_iter().flatten().flatten().map(cost).sum()
}

/// How many it may write, as far as the request says so.
fn most_tokens(request: &CreateCompletion) -> u64 {
    let each = request.max_completion_tokens.or(request.max_tokens).unwrap_or(0).max(0);
    each.unsigned_abs().saturating_mul(request.n.unwrap_or(1).max(1).unsigned_abs())
}
