//! Grading one sample: the crate `graders` computes, this module asks models and runs programs.
//!
//! A failure is data: it sets a flag of [`Errors`], and the reward is 0. So grading never fails as a call, and one
//! bad row does not end an evaluation.

mod cosine;
mod judge;
mod python;

pub(crate) use cosine::Centers;
pub(crate) use python::{Interpreters, prepare};

use std::collections::BTreeMap;
use std::time::Instant;

use futures::future::join_all;
use graders::formula::Formula;
use graders::{Errors, Failure, Fault, Grader, Kind, Measure, Metric, Multi, Variables};
use graders::{similarity, string_check, template};
use serde_json::{Map, Value};
use store::Project;

use crate::error::{ApiError, ApiResult};
use crate::inference::ask;
use crate::state::AppState;
use crate::wire::grader::TokenUsage;

/// What a grader says of a sample.
#[derive(Debug, Clone)]
pub(crate) struct Graded {
    pub name: String,
    /// The word of `type`.
    pub kind: &'static str,
    pub reward: f64,
    /// None when the grader's definition has nothing to pass by. A failure never passes.
    pub passed: Option<bool>,
    /// Of a multi grader, by the keys of its parts.
    pub sub_rewards: Map<String, Value>,
    pub errors: Errors,
    /// Seconds.
    pub execution_time: f64,
    /// Of the models that were asked, by their names.
    pub usage: BTreeMap<String, TokenUsage>,
    /// The model that was asked, when it is one.
    pub sampled_model: Option<String>,
    /// What a judge was asked and answered: `{"input": [messages], "output": [message], "label"?, …}`.
    pub sample: Option<Value>,
}

/// What one grader without parts yields.
#[derive(Debug, Default)]
struct Outcome {
    reward: f64,
    errors: Errors,
    usage: BTreeMap<String, TokenUsage>,
    sampled_model: Option<String>,
    sample: Option<Value>,
}

impl From<Result<f64, Errors>> for Outcome {
    fn from(result: Result<f64, Errors>) -> Self {
        match result {
            Ok(reward) => Self { reward, ..Self::default() },
            Err(errors) => Self { errors, ..Self::default() },
        }
    }
}

/// Grades `sample` (`output_text`, `output_json`, `output_tools`, `choices`) of `item`.
pub(crate) async fn grade(
    state: &AppState,
    project: &Project,
    grader: &Grader,
    item: &Value,
    sample: &Value,
) -> Graded {
    let started = Instant::now();
    let variables = Variables { item, sample };
    let mut sub_rewards = Map::new();
    let mut outcome = match &grader.kind {
        Kind::Multi(multi) => combined(state, project, multi, variables, &mut sub_rewards).await,
        kind => single(state, project, kind, variables).await,
    };
    if !outcome.reward.is_finite() {
        let details =
            format!("the reward is {}, which is no number to reward with", outcome.reward);
        outcome.errors = outcome.errors.and(Failure::Other, details);
    }
    let failed = outcome.errors.any();
    let reward = if failed { 0.0 } else { outcome.reward };
    Graded {
        name: grader.name.clone(),
        kind: grader.type_word(),
        reward,
        passed: grader.passes(reward).map(|passes| passes && !failed),
        sub_rewards,
        errors: outcome.errors,
        execution_time: started.elapsed().as_secs_f64(),
        usage: outcome.usage,
        sampled_model: outcome.sampled_model,
        sample: outcome.sample,
    }
}

async fn single(
    state: &AppState,
    project: &Project,
    kind: &Kind,
    variables: Variables<'_>,
) -> Outcome {
    match kind {
        Kind::StringCheck(check) => {
            let texts = rendered(&check.input, &check.reference, variables);
            let holds = |(input, reference): (String, String)| {
                f64::from(string_check::holds(check.operation, &input, &reference))
            };
            texts.map(holds).into()
        }
        Kind::TextSimilarity(similarity) => {
            match rendered(&similarity.input, &similarity.reference, variables) {
                Err(errors) => Err(errors).into(),
                Ok((input, reference)) => match similarity.metric {
                    Measure::Cosine => cosine::cosine(state, project, input, reference).await,
                    Measure::Text(metric) => similar(metric, input, reference).await.into(),
                },
            }
        }
        Kind::ScoreModel(definition) => judge::score(state, project, definition, variables).await,
        Kind::LabelModel(definition) => judge::label(state, project, definition, variables).await,
        Kind::Python(python) => state.interpreters.grade(python, variables).await.into(),
        // The definition does not allow one in another.
        Kind::Multi(_) => Err(Errors::of(Failure::Other, "a multi grader in another")).into(),
    }
}

fn rendered(
    input: &str,
    reference: &str,
    variables: Variables<'_>,
) -> Result<(String, String), Errors> {
    let render = |text| template::render(text, variables).map(std::borrow::Cow::into_owned);
    Ok((render(input)?, render(reference)?))
}

async fn similar(metric: Metric, input: String, reference: String) -> Result<f64, Errors> {
    // Long texts take a good part of a second.
    let compute = move || similarity::similarity(metric, &input, &reference);
    let found = tokio::task::spawn_blocking(compute).await;
    let found = found.map_err(|error| Errors::of(Failure::Other, error.to_string()))?;
    found.ok_or_else(|| {
        let limit = similarity::MAX_CHARACTERS;
        let details = format!("a text to compare is longer than {limit} characters");
        Errors::of(Failure::TruncatedObservation, details)
    })
}

/// A multi grader: its parts at once, then the formula. A part that failed has no number, so the whole has none.
async fn combined(
    state: &AppState,
    project: &Project,
    multi: &Multi,
    variables: Variables<'_>,
    sub_rewards: &mut Map<String, Value>,
) -> Outcome {
    let names: Vec<&str> = multi.graders.iter().map(|(key, _)| key.as_str()).collect();
    let formula = match Formula::parse(&multi.calculate_output, &names) {
        Ok(formula) => formula,
        Err(why) => return Err(Errors::of(Failure::FormulaParse, why)).into(),
    };
    let parts = multi.graders.iter().map(|(_, part)| single(state, project, &part.kind, variables));
    let mut whole = Outcome::default();
    let mut rewards = Vec::with_capacity(names.len());
    for (key, part) in names.into_iter().zip(join_all(parts).await) {
        let reward = if part.errors.any() { 0.0 } else { part.reward };
        sub_rewards.insert(key.to_owned(), reward.into());
        rewards.push(reward);
        whole.errors.include(key, &part.errors);
        for (model, usage) in part.usage {
            *whole.usage.entry(model).or_default() += usage;
        }
    }
    whole.reward = formula.value(&rewards);
    whole
}

/// Refuses a grader that cannot be run here: its models unknown, its Python unreadable or without an interpreter.
pub(crate) async fn check_runnable(
    state: &AppState,
    project: &Project,
    grader: &Grader,
    path: &str,
) -> ApiResult<()> {
    check_models(state, project, grader, path).await?;
    let own = [(path.to_owned(), &grader.kind)];
    let parts = match &grader.kind {
        Kind::Multi(multi) => {
            let parts = multi.graders.iter();
            parts.map(|(key, part)| (format!("{path}.graders.{key}"), &part.kind)).collect()
        }
        _ => Vec::new(),
    };
    for (path, kind) in own.into_iter().chain(parts) {
        if let Kind::Python(python) = kind
            && let Err(errors) = state.interpreters.check(python).await
        {
            let path = format!("{path}.source");
            let message = format!("Invalid '{path}': {}", errors.summary());
            return Err(ApiError::invalid_value(path, message));
        }
    }
    Ok(())
}

/// Refuses a grader whose models cannot be asked.
pub(crate) async fn check_models(
    state: &AppState,
    project: &Project,
    grader: &Grader,
    path: &str,
) -> ApiResult<()> {
    if let Kind::Multi(multi) = &grader.kind {
        for (key, part) in &multi.graders {
            let path = format!("{path}.graders.{key}");
            Box::pin(check_models(state, project, part, &path)).await?;
        }
        return Ok(());
    }
    if let Kind::TextSimilarity(similarity) = &grader.kind
        && similarity.metric == Measure::Cosine
    {
        cosine::model(state, project).await.map_err(|error| match error {
            ApiError::BadRequest(why) => {
                let path = format!("{path}.evaluation_metric");
                let message = format!("Invalid '{path}': {why}");
                ApiError::invalid_value(path, message)
            }
            other => other,
        })?;
    }
    for model in grader.models() {
        ask::model(state, project, model).await.map_err(|error| match error {
            ApiError::ChatModelNotFound(_) => ApiError::Parameter {
                code: Some("model_not_found"),
                param: format!("{path}.model"),
                message: format!(
                    "The model '{model}' does not exist or you do not have access to it. A grader asks a \
                     base model or a tuned model of this server."
                ),
            },
            other => other,
        })?;
    }
    Ok(())
}

impl From<Fault> for ApiError {
    fn from(Fault { code, path, message }: Fault) -> Self {
        Self::Parameter { code: Some(code), param: path, message }
    }
}
