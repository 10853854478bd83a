//! Graders on their own: a definition checked, and one sample graded.

use axum::Json;
use axum::extract::State;
use graders::{Grader, sample_of_text};
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::extract::{Caller, Json as Body};
use crate::grading::{self, Graded};
use crate::state::AppState;
use crate::wire::grader::{
    GraderErrors, GraderMetadata, GraderRun, RunGrader, ValidateGrader, ValidatedGrader,
};

/// Check a grader's definition, and get it back in one form.
#[utoipa::path(post, path = "/fine_tuning/alpha/graders/validate", tag = "Graders",
    operation_id = "validateGrader",
    request_body = ValidateGrader,
    responses((status = 200, body = ValidatedGrader)))]
pub(crate) async fn validate(
    State(state): State<AppState>,
    Caller(project): Caller,
    Body(request): Body<ValidateGrader>,
) -> ApiResult<Json<ValidatedGrader>> {
    let grader = Grader::parse(&request.grader, "grader")?;
    grader.check("grader")?;
    grading::check_runnable(&state, &project, &grader, "grader").await?;
    Ok(Json(ValidatedGrader { grader: grader.to_value() }))
}

/// Grade one sample. What goes wrong with the grading is a flag of the answer, not an error of the call.
#[utoipa::path(post, path = "/fine_tuning/alpha/graders/run", tag = "Graders",
    operation_id = "runGrader",
    request_body = RunGrader,
    responses((status = 200, body = GraderRun)))]
pub(crate) async fn run(
    State(state): State<AppState>,
    Caller(project): Caller,
    Body(request): Body<RunGrader>,
) -> ApiResult<Json<GraderRun>> {
    let grader = Grader::parse(&request.grader, "grader")?;
    let item = match request.item {
        None => Value::Object(Map::new()),
        Some(item @ Value::Object(_)) => item,
        Some(other) => {
            return Err(ApiError::invalid_type("item", "an object", type_words(&other)));
        }
    };
    grading::check_models(&state, &project, &grader, "grader").await?;
    let sample = sample_of_text(&request.model_sample);
    let graded = grading::grade(&state, &project, &grader, &item, &sample).await;
    answer(graded).map(Json)
}

fn answer(graded: Graded) -> ApiResult<GraderRun> {
    let errors = Value::Object(graded.errors.to_value());
    let errors: GraderErrors = serde_json::from_value(errors).map_err(ApiError::internal)?;
    let tokens = graded.usage.values().map(|usage| usage.total_tokens).sum();
    Ok(GraderRun {
        reward: graded.reward,
        metadata: GraderMetadata {
            name: graded.name,
            r#type: graded.kind,
            errors,
            execution_time: graded.execution_time,
            scores: Map::new(),
            token_usage: (!graded.usage.is_empty()).then_some(tokens),
            sampled_model_name: graded.sampled_model,
            passed: graded.passed,
            sample: graded.sample,
        },
        sub_rewards: graded.sub_rewards,
        model_grader_token_usage_per_model: graded.usage,
    })
}
