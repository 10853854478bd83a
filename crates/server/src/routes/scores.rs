//! Scores of conversations by reward models: checked here, computed by a worker.

use crate::error::{ApiError, ApiResult};
use crate::extract::{Asker, Json as Body};
use crate::inference::{answer, ask, prompt};
use crate::limits::cost;
use crate::state::AppState;
use crate::wire::score::{CreateScore, Score};
use axum::Json;
use axum::extract::State;
use domain::engine::Question;

/// Score the last message of a conversation with a reward model. An extension of this server's.
#[utoipa::path(post, path = "/fine_tuning/score", tag = "Fine-tuning",
    operation_id = "createScore",
    request_body = CreateScore,
    responses((status = 200, body = Score)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    asker: Asker,
    Body(request): Body<CreateScore>,
) -> ApiResult<Json<Score>> {
    let charge = asker.charge(request.messages.iter().map(cost).sum(), 0)?;
    let messages = prompt::checked(&request.messages)?;
    if messages.last().is_none_or(|message| message["role"] != "assistant") {
        let message = "Invalid 'messages': the last one must be the assistant's answer that is to \
                       be scored.";
        return Err(ApiError::invalid_value("messages", message));
    }
    let model = ask::model(&state, &asker.project, &request.model).await?;
    if model.adapter.is_none() {
        let message = format!(
            "Invalid 'model': '{}' is a base model, which does not score. Train a reward model: method \
             'dpo' with 'loss_type': 'reward'.",
            request.model
        );
        return Err(ApiError::invalid_value("model", message));
    }
    let tools = request.tools.unwrap_or_default();
    let (answer, patience) = ask::ask_once(&state, model, Question::score(messages, tools))?;
    let (score, usage) = answer::score(answer.charged(Some(&charge)), patience).await?;
    Ok(Json(Score { object: "fine_tuning.score", model: request.model, score, usage }))
}
