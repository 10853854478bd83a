//! Graders on the wire: a definition checked, a sample graded.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::completion::Usage;
use super::shape::FreeObject;
use super::shape::grader::Grader;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ValidateGrader {
    /// A `string_check`, `text_similarity`, `score_model`, `label_model`, `python` or `multi` grader.
    #[schema(value_type = Grader)]
    pub grader: Value,
}

/// The definition in one form, its name filled in.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ValidatedGrader {
    #[schema(value_type = Grader)]
    pub grader: Value,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunGrader {
    #[schema(value_type = Grader)]
    pub grader: Value,
    /// What a model has answered; `sample.output_json` too where it is JSON.
    pub model_sample: String,
    /// What templates read as `item`.
    #[schema(value_type = Option<FreeObject>)]
    pub item: Option<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GraderRun {
    /// 0 after any failure.
    pub reward: f64,
    pub metadata: GraderMetadata,
    /// Of a multi grader, by the keys of its parts.
    #[schema(value_type = BTreeMap<String, f64>)]
    pub sub_rewards: Map<String, Value>,
    pub model_grader_token_usage_per_model: BTreeMap<String, TokenUsage>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GraderMetadata {
    pub name: String,
    pub r#type: &'static str,
    pub errors: GraderErrors,
    /// Seconds.
    pub execution_time: f64,
    #[schema(value_type = FreeObject)]
    pub scores: Map<String, Value>,
    /// All tokens of all models; null where none was asked.
    pub token_usage: Option<u64>,
    pub sampled_model_name: Option<String>,
    /// Whether the reward passes, where the definition says what passes. An extension of this server's.
    pub passed: Option<bool>,
    /// What a judge was asked and what it answered. An extension of this server's.
    #[schema(value_type = Option<FreeObject>)]
    pub sample: Option<Value>,
}

/// Flags of what went wrong, and the words to them.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct GraderErrors {
    pub formula_parse_error: bool,
    pub formula_parse_error_details: Option<String>,
    pub sample_parse_error: bool,
    pub sample_parse_error_details: Option<String>,
    pub truncated_observation_error: bool,
    pub unresponsive_reward_error: bool,
    pub invalid_variable_error: bool,
    pub invalid_variable_error_details: Option<String>,
    pub other_error: bool,
    pub other_error_details: Option<String>,
    pub python_grader_server_error: bool,
    pub python_grader_server_error_type: Option<String>,
    pub python_grader_server_error_details: Option<String>,
    pub python_grader_runtime_error: bool,
    pub python_grader_runtime_error_details: Option<String>,
    pub model_grader_server_error: bool,
    pub model_grader_server_error_details: Option<String>,
    pub model_grader_refusal_error: bool,
    pub model_grader_refusal_error_details: Option<String>,
    pub model_grader_parse_error: bool,
    pub model_grader_parse_error_details: Option<String>,
    pub model_grader_exceeded_max_tokens_error: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct TokenUsage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub cached_tokens: u64,
}

impl From<Usage> for TokenUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens.into(),
            completion_tokens: usage.completion_tokens.into(),
            total_tokens: usage.total_tokens.into(),
            cached_tokens: usage.prompt_tokens_details.cached_tokens.into(),
        }
    }
}

impl AddAssign for TokenUsage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.cached_tokens += other.cached_tokens;
    }
}
