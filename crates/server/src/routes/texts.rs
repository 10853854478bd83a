//! Completions of plain texts: checked here, answered by a worker, whole or streamed.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::error::ApiResult;
use crate::extract::{Asker, Json as Body};
use crate::inference::text::{self, Texts};
use crate::state::AppState;
use crate::wire::text::{CreateText, TextCompletion};

/// Go on with a text, without any chat template. OpenAI's older call.
#[utoipa::path(post, path = "/completions", tag = "Completions", operation_id = "createCompletion",
    request_body = CreateText,
    responses((status = 200, content((TextCompletion = "application/json"),
        (TextCompletion = "text/event-stream")))))]
pub(crate) async fn create(
    State(state): State<AppState>,
    asker: Asker,
    Body(request): Body<CreateText>,
) -> ApiResult<Response> {
    let streams = request.stream.unwrap_or(false);
    let options = request.stream_options.as_ref();
    let include_usage = options.and_then(|options| options.include_usage).unwrap_or(false);
    let charge = asker.charge(text::prompt_tokens(&request), text::most_tokens(&request))?;
    let texts = Texts::new(&state, &asker.project, request, charge).await?;
    if streams {
        return texts.stream(include_usage).await;
    }
    Ok(Json(texts.whole().await?).into_response())
}
