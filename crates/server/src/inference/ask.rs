//! From a checked request to a worker's answer: the one way by which the API, judges and evaluations ask a
//! model. What an answer then looks like is `answer`'s business.

use std::sync::Arc;

use domain::engine::{Prompt, Question};
use domain::id::CompletionId;
use domain::internal::InferenceTask;
use store::Project;
use store::models::{self, Resolved};
use time::OffsetDateTime;

use super::answer::{Heading, Patience};
use super::broker::{Answer, Full};
use super::keeper::Keeper;
use super::tools::{self, Tooling};
use super::{form, prompt, whole};
use crate::convert::OrNotFound;
use crate::error::{ApiError, ApiResult};
use crate::limits::Charge;
use crate::request::check_metadata;
use crate::state::AppState;
use crate::wire::completion::{Completion, CreateCompletion};

/// Characters of the content hash that make up a fingerprint.
const FINGERPRINT_LENGTH: usize = 12;

/// An answer that is on its way.
pub(crate) struct Asked {
    pub answer: Answer,
    pub heading: Heading,
    pub patience: Patience,
    /// Where the completion is to be kept, if it is.
    pub keeper: Option<Keeper>,
}

/// Answers a chat as `POST /v1/chat/completions` does without `stream`: by a base model, a tuned model or a
/// checkpoint of this project.
pub(crate) async fn complete(
    state: &AppState,
    project: &Project,
    request: CreateCompletion,
    charge: Option<&Arc<Charge>>,
) -> ApiResult<Completion> {
    let asked = ask(state, project, request, charge).await?;
    let Asked { answer, heading, patience, keeper } = asked;
    let completion = whole::whole(answer, heading, patience).await?;
    if let Some(keeper) = keeper {
        keeper.keep(&completion).await;
    }
    Ok(completion)
}

/// Checks a chat and offers it to the workers. What it uses is counted where it is charged.
pub(crate) async fn ask(
    state: &AppState,
    project: &Project,
    request: CreateCompletion,
    charge: Option<&Arc<Charge>>,
) -> ApiResult<Asked> {
    let messages = prompt::messages(&request)?;
    let sampling = prompt::sampling(&request)?;
    let form = form::answer_form(request.response_format.as_ref())?;
    let Tooling { tools, rules, is_legacy } = tools::tooling(&request)?;
    check_metadata(request.metadata.as_ref())?;
    let model = model(state, project, &request.model).await?;
    let heading = Heading {
        logprobs: sampling.logprobs.is_some(),
        legacy_calls: is_legacy,
        ..heading(CompletionId::new().to_string(), &request.model, &model, sampling.n)
    };
    let prompt = Prompt::Chat { messages, tools };
    let question = Question { prompt, sampling, form, calls: rules };
    let keeper = Keeper::for_request(state, project, request, &heading);
    let (answer, patience) = submit(state, &heading.id, model, question)?;
    Ok(Asked { answer: answer.charged(charge), heading, patience, keeper })
}

/// What an answer by this model says about itself.
pub(crate) fn heading(id: String, name: &str, model: &Resolved, n: u32) -> Heading {
    let digest = model.adapter.as_ref().map_or(&model.base.digest, |adapter| &adapter.digest);
    let fingerprint: String = digest.chars().take(FINGERPRINT_LENGTH).collect();
    Heading {
        id,
        created: OffsetDateTime::now_utc().unix_timestamp(),
        model: name.to_owned(),
        system_fingerprint: format!("fp_{fingerprint}"),
        n,
        logprobs: false,
        legacy_calls: false,
    }
}

/// Asks a question whose answer is no completion, and so needs no id that anybody sees.
pub(crate) fn ask_once(
    state: &AppState,
    model: Resolved,
    question: Question,
) -> ApiResult<(Answer, Patience)> {
    submit(state, CompletionId::new().as_str(), model, question)
}

/// The model of that name, as this project sees it.
pub(crate) async fn model(state: &AppState, project: &Project, name: &str) -> ApiResult<Resolved> {
    models::resolve(&state.store.db, project, &name.into())
        .await
        .or_not_found(|| ApiError::ChatModelNotFound(name.to_owned()))
}

/// Offers a question to the workers.
pub(crate) fn submit(
    state: &AppState,
    id: &str,
    model: Resolved,
    question: Question,
) -> ApiResult<(Answer, Patience)> {
    let base_model = model.base_model();
    let task = InferenceTask { id: id.to_owned(), base_model, adapter: model.adapter, question };
    let answer = state.broker.submit(task).map_err(|Full| ApiError::Unavailable {
        message: "Too many requests are waiting for workers; please try again.".to_owned(),
        retry_after_seconds: 1,
    })?;
    let patience =
        Patience { first: state.config.inference_wait, idle: state.config.inference_idle };
    Ok((answer, patience))
}
