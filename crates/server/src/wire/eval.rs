//! Evaluations, their runs and output items on the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::list::Identified;
use super::shape::FreeObject;
use super::shape::eval::{
    DataSourceConfig, ItemResult, ItemSample, RunDataSource, ShownDataSourceConfig,
};
use super::shape::grader::TestingCriterion;

/// `POST /evals`. What a retrieved evaluation shows is accepted too, so that one can be moved from elsewhere as
/// it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateEval {
    #[schema(value_type = DataSourceConfig)]
    pub data_source_config: Value,
    /// Graders: `string_check`, `text_similarity` (with `pass_threshold`), `label_model`, `score_model`, `python`.
    #[schema(value_type = Vec<TestingCriterion>, min_items = 1, max_items = 100)]
    pub testing_criteria: Vec<Value>,
    #[schema(max_length = 512)]
    pub name: Option<String>,
    pub metadata: Option<BTreeMap<String, String>>,
    /// Accepted and ignored.
    #[schema(value_type = Option<String>)]
    #[expect(dead_code, reason = "accepted, so that it is no unknown field")]
    id: Option<Value>,
    /// Accepted and ignored.
    #[schema(value_type = Option<String>)]
    #[expect(dead_code, reason = "accepted, so that it is no unknown field")]
    object: Option<Value>,
    /// Accepted and ignored.
    #[schema(value_type = Option<i64>)]
    #[expect(dead_code, reason = "accepted, so that it is no unknown field")]
    created_at: Option<Value>,
}

/// `POST /evals/{eval_id}`. What is absent stays; `metadata: null` removes all pairs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateEval {
    #[schema(max_length = 512)]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub metadata: Option<Option<BTreeMap<String, String>>>,
}

/// Tells null from absent.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Eval {
    #[schema(example = "eval_0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `eval`.
    pub object: &'static str,
    pub name: String,
    pub created_at: i64,
    #[schema(value_type = ShownDataSourceConfig)]
    pub data_source_config: Value,
    #[schema(value_type = Vec<TestingCriterion>)]
    pub testing_criteria: Value,
    pub metadata: BTreeMap<String, String>,
}

impl Identified for Eval {
    fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedEval {
    /// Always `eval.deleted`.
    pub object: &'static str,
    pub deleted: bool,
    pub eval_id: String,
}

/// `POST /evals/{eval_id}/runs`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateRun {
    #[schema(value_type = RunDataSource)]
    pub data_source: Value,
    #[schema(max_length = 512)]
    pub name: Option<String>,
    pub metadata: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Run {
    #[schema(example = "evalrun_0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `eval.run`.
    pub object: &'static str,
    pub eval_id: String,
    /// `queued`, `in_progress`, `completed`, `failed` or `canceled`.
    pub status: &'static str,
    /// Empty where no model is asked.
    pub model: String,
    pub name: String,
    pub created_at: i64,
    pub report_url: String,
    pub result_counts: ResultCounts,
    pub per_model_usage: Vec<PerModelUsage>,
    pub per_testing_criteria_results: Vec<CriterionResult>,
    #[schema(value_type = RunDataSource)]
    pub data_source: Value,
    pub metadata: BTreeMap<String, String>,
    /// Two empty strings unless the run has failed.
    pub error: EvalError,
    /// This server's own.
    pub finetuned: RunProgress,
}

impl Identified for Run {
    fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResultCounts {
    /// Items judged so far.
    pub total: u32,
    pub errored: u32,
    pub failed: u32,
    pub passed: u32,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PerModelUsage {
    pub model_name: String,
    pub invocation_count: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub cached_tokens: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CriterionResult {
    /// The criterion's `id`.
    pub testing_criteria: String,
    pub passed: u32,
    pub failed: u32,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EvalError {
    pub code: String,
    pub message: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunProgress {
    /// Rows of the data source; null until they are counted.
    pub items: Option<u32>,
    pub finished_at: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedRun {
    /// Always `eval.run.deleted`.
    pub object: &'static str,
    pub deleted: bool,
    pub run_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutputItem {
    #[schema(example = "outputitem_0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `eval.run.output_item`.
    pub object: &'static str,
    pub run_id: String,
    pub eval_id: String,
    pub created_at: i64,
    /// `pass`, `fail` or `error`.
    pub status: &'static str,
    /// Place of the row in the data source, from 0.
    pub datasource_item_id: u32,
    #[schema(value_type = FreeObject)]
    pub datasource_item: Value,
    /// `name`, `type`, `score`, `passed` and `sample` of each grader.
    #[schema(value_type = Vec<ItemResult>)]
    pub results: Value,
    /// What the model was asked and answered.
    #[schema(value_type = ItemSample)]
    pub sample: Value,
}

impl Identified for OutputItem {
    fn id(&self) -> &str {
        &self.id
    }
}
