//! Graders that ask a model of ours: one chat, within a time.

use std::collections::BTreeMap;

use graders::judge::{self, Question};
use graders::{Errors, Failure, LabelModel, ScoreModel, Variables};
use serde_json::{Value, json};
use store::Project;

use super::Outcome;
use crate::inference;
use crate::state::AppState;
use crate::wire::completion::{Completion, CreateCompletion};
use crate::wire::grader::TokenUsage;

/// Tokens of a judge's answer where its definition sets no limit: steps and a result, not an essay.
const ANSWER_TOKENS: i64 = 1024;

pub(super) async fn score(
    state: &AppState,
    project: &Project,
    definition: &ScoreModel,
    variables: Variables<'_>,
) -> Outcome {
    match judge::score_question(definition, variables) {
        Ok(question) => {
            ask(state, project, question, |answer| judge::read_score(definition, answer)).await
        }
        Err(errors) => Err(errors).into(),
    }
}

pub(super) async fn label(
    state: &AppState,
    project: &Project,
    definition: &LabelModel,
    variables: Variables<'_>,
) -> Outcome {
    let question = match judge::label_question(definition, variables) {
        Ok(question) => question,
        Err(errors) => return Err(errors).into(),
    };
    let mut label = None;
    let mut outcome = ask(state, project, question, |answer| {
        let found = judge::read_label(definition, answer)?;
        label = Some(found.to_owned());
        Ok(f64::from(definition.passing_labels.iter().any(|passing| passing == found)))
    })
    .await;
    if let (Some(label), Some(Value::Object(sample))) = (label, &mut outcome.sample) {
        sample.insert("label".to_owned(), label.into());
    }
    outcome
}

async fn ask(
    state: &AppState,
    project: &Project,
    question: Question<'_>,
    read: impl FnOnce(&str) -> Result<f64, Errors>,
) -> Outcome {
    let model = question.model.to_owned();
    let messages = question.messages.clone();
    let limit = state.config.graders.judge_timeout;
    let asked = inference::complete(state, project, request(question), None);
    let completion = match tokio::time::timeout(limit, asked).await {
        Ok(Ok(completion)) => completion,
        Ok(Err(error)) => {
            return Err(Errors::of(Failure::ModelServer, error.to_string())).into();
        }
        Err(_) => {
            let details = format!("the judge did not answer within {} s", limit.as_secs_f64());
            let errors = Errors::of(Failure::ModelServer, details.clone());
            return Err(errors.and(Failure::UnresponsiveReward, details)).into();
        }
    };
    let usage = TokenUsage::from(completion.usage);
    let mut outcome = Outcome::from(answer(&completion).and_then(|(text, was_cut)| {
        read(text).map_err(|errors| match was_cut {
            true => errors
                .and(Failure::ModelExceededMaxTokens, "the judge's answer was cut at its limit"),
            false => errors,
        })
    }));
    outcome.sample = Some(sample(messages, &completion));
    outcome.usage = BTreeMap::from([(model.clone(), usage)]);
    outcome.sampled_model = Some(model);
    outcome
}

fn request(question: Question<'_>) -> CreateCompletion {
    let sampling = question.sampling.cloned().unwrap_or_default();
    let limit = sampling.max_completion_tokens.map_or(ANSWER_TOKENS, i64::from);
    CreateCompletion {
        model: question.model.to_owned(),
        messages: question.messages,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        seed: sampling.seed,
        max_completion_tokens: Some(limit),
        response_format: Some(question.response_format),
        ..CreateCompletion::default()
    }
}

/// The answer's text, and whether it was cut.
fn answer(completion: &Completion) -> Result<(&str, bool), Errors> {
    let choice = completion
        .choices
        .first()
        .ok_or_else(|| Errors::of(Failure::ModelServer, "the judge gave no answer"))?;
    if let Some(refusal) = &choice.message.refusal {
        return Err(Errors::of(Failure::ModelRefusal, refusal.clone()));
    }
    let text = choice.message.content.as_deref().unwrap_or_default();
    Ok((text, choice.finish_reason == "length"))
}

fn sample(input: Vec<Value>, completion: &Completion) -> Value {
    let choice = completion.choices.first();
    let output: Vec<Value> = choice
        .map(|choice| json!({"role": "assistant", "content": choice.message.content}))
        .into_iter()
        .collect();
    json!({
        "input": input,
        "output": output,
        "finish_reason": choice.map(|choice| choice.finish_reason),
        "model": completion.model,
        "usage": TokenUsage::from(completion.usage),
    })
}
