//! Chat completions: checked here, answered by a worker, whole or streamed.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use domain::id::CompletionId;
use domain::internal::InferenceTask;
use store::models;
use time::OffsetDateTime;

use crate::convert::OrNotFound;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Json as Body};
use crate::inference::answer::{self, Heading, Patience};
use crate::inference::broker::Full;
use crate::inference::prompt;
use crate::state::AppState;
use crate::wire::completion::{Completion, CreateCompletion};
use crate::wire::error::ErrorEnvelope;

/// Characters of the content hash that make up a fingerprint.
const FINGERPRINT_LENGTH: usize = 12;

/// Answer a chat, by a base model, a tuned model or a checkpoint.
#[utoipa::path(post, path = "/chat/completions", tag = "Chat",
    operation_id = "createChatCompletion",
    request_body = CreateCompletion,
    responses((status = 200, body = Completion), (status = "4XX", body = ErrorEnvelope),
        (status = 503, body = ErrorEnvelope)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    Body(request): Body<CreateCompletion>,
) -> ApiResult<Response> {
    let messages = prompt::messages(&request)?;
    let sampling = prompt::sampling(&request)?;
    let model = models::resolve(&state.store.db, &project, &request.model.as_str().into())
        .await
        .or_not_found(|| ApiError::ChatModelNotFound(request.model.clone()))?;
    let digest = model.adapter.as_ref().map_or(&model.base.digest, |adapter| &adapter.digest);
    let fingerprint: String = digest.chars().take(FINGERPRINT_LENGTH).collect();
    let heading = Heading {
        id: CompletionId::new().to_string(),
        created: OffsetDateTime::now_utc().unix_timestamp(),
        model: request.model,
        system_fingerprint: format!("fp_{fingerprint}"),
        n: sampling.n,
    };
    let task = InferenceTask {
        id: heading.id.clone(),
        base_model: model.base_model(),
        adapter: model.adapter,
        messages,
        tools: request.tools.unwrap_or_default(),
        sampling,
        score: false,
    };
    let answer = state.broker.submit(task).map_err(|Full| ApiError::Unavailable {
        message: "Too many chat requests are waiting; please try again.".to_owned(),
        retry_after_seconds: 1,
    })?;
    let patience =
        Patience { first: state.config.inference_wait, idle: state.config.inference_idle };
    if request.stream.unwrap_or(false) {
        let include_usage =
            request.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        answer::stream(answer, heading, patience, include_usage).await
    } else {
        let completion = answer::whole(answer, heading, patience).await?;
        Ok(Json(completion).into_response())
    }
}
