//! The metric `cosine`: how alike the embeddings of two texts are. Definitions name no model for it, so the operator
//! does, or the smallest base model makes them.
//!
//! The states of a model that writes all lie in a narrow cone: of two texts that have nothing in common the cosine is
//! 0.8. So what all texts share, the mean of some ordinary ones, is taken away first; then it is 0.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use domain::ModelId;
use domain::engine::Question;
use futures::future::try_join_all;
use graders::{Errors, Failure, similarity};
use store::models::Resolved;
use store::{Project, base_models};

use super::Outcome;
use crate::error::{ApiError, ApiResult};
use crate::inference::{answer, ask};
use crate::state::AppState;
use crate::wire::completion::Usage;
use crate::wire::grader::TokenUsage;

/// Texts of many kinds, whose mean is what all texts share.
const ORDINARY: [&str; 14] = [
    "The weather will be mild tomorrow, with some rain in the evening.",
    "She opened the door and looked into the empty room.",
    "To install the program, download the file and follow the steps.",
    "The company reported higher profits in the second quarter.",
    "How long does it take to get there by train?",
    "Water boils at one hundred degrees at sea level.",
    "Thank you for your message; we will answer soon.",
    "yes",
    "The answer is 42.",
    "blue",
    "New York",
    "I do not like it.",
    "{\"name\": \"x\", \"value\": 1}",
    "def add(a, b): return a + b",
];

/// The means of [`ORDINARY`], by what the model's weights are.
#[derive(Default)]
pub(crate) struct Centers {
    known: Mutex<HashMap<String, Arc<[f32]>>>,
}

impl Centers {
    async fn of(&self, state: &AppState, model: &Resolved) -> ApiResult<Arc<[f32]>> {
        let adapter = model.adapter.as_ref().map_or("", |adapter| adapter.digest.as_str());
        let weights = format!("{} {adapter}", model.base.digest);
        if let Some(center) =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&weights)
        {
            return Ok(center.clone());
        }
        let texts = ORDINARY.map(|text| embedding(state, model, text.to_owned()));
        let embeddings: Vec<Embedded> = try_join_all(texts).await?;
        let mut center = vec![0.0; embeddings.first().map_or(0, |(embedding, _)| embedding.len())];
        for (embedding, _) in &embeddings {
            let parts = center.iter_mut().zip(embedding);
            parts.for_each(|(center, part)| *center += part / ORDINARY.len() as f32);
        }
        let center: Arc<[f32]> = center.into();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(weights, center.clone());
        Ok(center)
    }
}

pub(super) async fn cosine(
    state: &AppState,
    project: &Project,
    input: String,
    reference: String,
) -> Outcome {
    let limit = state.config.graders.judge_timeout;
    let pair = tokio::time::timeout(limit, embeddings(state, project, input, reference)).await;
    let (model, center, [(a, for_a), (b, for_b)]) = match pair {
        Ok(Ok(pair)) => pair,
        Ok(Err(error)) => return Err(failure(&error)).into(),
        Err(_) => {
            let details = format!("there were no embeddings within {} s", limit.as_secs_f64());
            let errors = Errors::of(Failure::ModelServer, details.clone());
            return Err(errors.and(Failure::UnresponsiveReward, details)).into();
        }
    };
    let mut usage = TokenUsage::from(for_a);
    usage += TokenUsage::from(for_b);
    Outcome {
        reward: similarity::cosine(&centered(a, &center), &centered(b, &center)),
        usage: BTreeMap::from([(model.to_string(), usage)]),
        sampled_model: Some(model.to_string()),
        ..Outcome::default()
    }
}

/// The model whose states are the embeddings; what is wrong where there is none.
pub(super) async fn model(state: &AppState, project: &Project) -> ApiResult<(ModelId, Resolved)> {
    let named = state.config.graders.embedding_model.as_str();
    let name = if named.is_empty() {
        let models = base_models::list(&state.store.db, project).await?;
        let smallest = models.into_iter().min_by_key(|model| (model.parameters, model.id.clone()));
        smallest.map(|model| model.id).ok_or_else(|| unavailable("there is no base model yet"))?
    } else {
        named.into()
    };
    match ask::model(state, project, name.as_str()).await {
        Ok(model) => Ok((name, model)),
        Err(ApiError::ChatModelNotFound(_)) => Err(unavailable(&format!(
            "graders.embedding_model names '{named}', which does not exist"
        ))),
        Err(other) => Err(other),
    }
}

fn unavailable(why: &str) -> ApiError {
    ApiError::BadRequest(format!(
        "'cosine' compares the embeddings of a model of this server, and {why}."
    ))
}

fn centered(mut embedding: Vec<f32>, center: &[f32]) -> Vec<f32> {
    embedding.iter_mut().zip(center).for_each(|(value, center)| *value -= center);
    embedding
}

type Embedded = (Vec<f32>, Usage);

async fn embedding(state: &AppState, model: &Resolved, text: String) -> ApiResult<Embedded> {
    let (answer, patience) = ask::ask_once(state, model.clone(), Question::embedding(text))?;
    answer::embedding(answer, patience).await
}

async fn embeddings(
    state: &AppState,
    project: &Project,
    input: String,
    reference: String,
) -> ApiResult<(ModelId, Arc<[f32]>, [Embedded; 2])> {
    let (name, model) = model(state, project).await?;
    let embed = |text| embedding(state, &model, text);
    let center = state.centers.of(state, &model);
    let (center, a, b) = tokio::try_join!(center, embed(input), embed(reference))?;
    Ok((name, center, [a, b]))
}

fn failure(error: &ApiError) -> Errors {
    match error {
        ApiError::ContextLengthExceeded(message) => {
            let details =
                format!("a text to compare is too long for the embedding model: {message}");
            Errors::of(Failure::TruncatedObservation, details)
        }
        other => Errors::of(Failure::ModelServer, other.to_string()),
    }
}
