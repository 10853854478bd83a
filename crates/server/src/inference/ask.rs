//! From a checked request to a worker's answer: the one way by which the API, judges and evaluations ask a
//! model. What an answer then looks like is `answer`'s business.

use domain::engine::Sampling;
use domain::id::CompletionId;
use domain::internal::InferenceTask;
use store::Project;
use store::models::{self, Resolved};
use time::OffsetDateTime;

use super::answer::{self, Heading, Patience};
use super::broker::{Answer, Full};
use super::prompt;
use crate::convert::OrNotFound;
use crate::error::{ApiError, ApiResult};
use crate::state::AppState;
use crate::wire::completion::{Completion, CreateCompletion};

/// Characters of the content hash that make up a fingerprint.
const FINGERPRINT_LENGTH: usize = 12;

/// An answer that is on its way.
pub(crate) struct Asked {
    pub answer: Answer,
    pub heading: Heading,
    pub patience: Patience,
}

/// Answers a chat as `POST /v1/chat/completions` does without `stream`: by a base model, a tuned model or a
/// checkpoint of this project.
pub(crate) async fn complete(
    state: &AppState,
    project: &Project,
    request: CreateCompletion,
) -> ApiResult<Completion> {
    let Asked { answer, heading, patience } = ask(state, project, request).await?;
    answer::whole(answer, heading, patience).await
}

/// Checks a chat and offers it to the workers.
pub(crate) async fn ask(
    state: &AppState,
    project: &Project,
    request: CreateCompletion,
) -> ApiResult<Asked> {
    let messages = prompt::messages(&request)?;
    let sampling = prompt::sampling(&request)?;
    let model = model(state, project, &request.model).await?;
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
    let (answer, patience) = submit(state, task)?;
    Ok(Asked { answer, heading, patience })
}

/// Asks a reward model for the score of `messages`, which are checked.
pub(crate) fn ask_score(
    state: &AppState,
    model: Resolved,
    messages: Vec<serde_json::Value>,
    tools: Vec<serde_json::Value>,
) -> ApiResult<(Answer, Patience)> {
    let task = InferenceTask {
        id: CompletionId::new().to_string(),
        base_model: model.base_model(),
        adapter: model.adapter,
        messages,
        tools,
        sampling: Sampling::default(),
        score: true,
    };
    submit(state, task)
}

/// The model of that name, as this project sees it.
pub(crate) async fn model(state: &AppState, project: &Project, name: &str) -> ApiResult<Resolved> {
    models::resolve(&state.store.db, project, &name.into())
        .await
        .or_not_found(|| ApiError::ChatModelNotFound(name.to_owned()))
}

fn submit(state: &AppState, task: InferenceTask) -> ApiResult<(Answer, Patience)> {
    let answer = state.broker.submit(task).map_err(|Full| ApiError::Unavailable {
        message: "Too many requests are waiting for workers; please try again.".to_owned(),
        retry_after_seconds: 1,
    })?;
    let patience =
        Patience { first: state.config.inference_wait, idle: state.config.inference_idle };
    Ok((answer, patience))
}
