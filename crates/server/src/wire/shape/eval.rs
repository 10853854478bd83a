//! The data sources of evaluations and their runs, and what an output item shows.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::FreeObject;
use super::grader::{TemplateContent, TemplateMessage};
use super::message::{ResponseFormat, Tool};

/// Where the rows of runs come from.
#[derive(Serialize, ToSchema)]
pub(crate) struct DataSourceConfig {
    /// `custom`, `logs` or `stored_completions`.
    pub r#type: String,
    /// Of `custom`: a JSON Schema of the rows' `item`.
    pub item_schema: Option<FreeObject>,
    /// Of `custom`: whether graders read `sample`.
    pub include_sample_schema: Option<bool>,
    /// Of `custom`: the schema of whole rows, as a created evaluation shows it.
    pub schema: Option<FreeObject>,
    /// Of `logs` and `stored_completions`: which of them.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// The same as a created evaluation shows it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ShownDataSourceConfig {
    /// `custom`, `logs` or `stored_completions`.
    pub r#type: String,
    /// A JSON Schema of whole rows.
    pub schema: FreeObject,
    /// Of `logs` and `stored_completions`.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// What a run reads and asks.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunDataSource {
    /// `jsonl`, `completions` or `responses`.
    pub r#type: String,
    pub source: RunSource,
    /// What the model is asked; not of `jsonl`.
    pub input_messages: Option<InputMessages>,
    /// The model that is asked.
    pub model: Option<String>,
    pub sampling_params: Option<RunSampling>,
}

/// Rows in the request, in a file, or chat completions that were kept (only with `completions`).
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum RunSource {
    FileContent(RowsOfRequest),
    FileId(RowsOfFile),
    StoredCompletions(KeptCompletions),
}

/// Which of them, the newest first. An item has the messages as `input`, the `model` and the `metadata`; the sample is
/// the answer that was given.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeptCompletions {
    pub metadata: Option<BTreeMap<String, String>>,
    pub model: Option<String>,
    /// Unix seconds.
    #[schema(minimum = 0, maximum = 253402300799i64)]
    pub created_after: Option<i64>,
    /// Unix seconds.
    #[schema(minimum = 0, maximum = 253402300799i64)]
    pub created_before: Option<i64>,
    #[schema(minimum = 1, maximum = 4294967295i64)]
    pub limit: Option<i64>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct RowsOfRequest {
    #[schema(min_items = 1)]
    pub content: Vec<Row>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Row {
    pub item: FreeObject,
    pub sample: Option<FreeObject>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct RowsOfFile {
    /// A file of JSON Lines.
    pub id: String,
}

/// Messages to be filled in, or the place of a row's own messages.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum InputMessages {
    Template(InputTemplate),
    ItemReference(InputReference),
}

#[derive(Serialize, ToSchema)]
pub(crate) struct InputTemplate {
    #[schema(min_items = 1)]
    pub template: Vec<TemplateMessage>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct InputReference {
    /// A path that begins with `item.`.
    pub item_reference: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct RunSampling {
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    pub seed: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    /// Of `completions`.
    pub response_format: Option<ResponseFormat>,
    /// Of `responses`: the form of the answer, in its older place.
    pub text: Option<FreeObject>,
    pub tools: Option<Vec<Tool>>,
}

/// What one grader said of one row.
#[derive(Serialize, ToSchema)]
pub(crate) struct ItemResult {
    /// The criterion's `id`.
    pub name: String,
    pub r#type: Option<String>,
    pub score: f64,
    pub passed: bool,
    /// What a judge was asked and answered.
    pub sample: Option<FreeObject>,
    /// Why there is no verdict.
    pub error: Option<ItemError>,
}

/// Two empty strings where nothing went wrong.
#[derive(Serialize, ToSchema)]
pub(crate) struct ItemError {
    pub code: String,
    pub message: String,
}

/// What the model was asked and answered.
#[derive(Serialize, ToSchema)]
pub(crate) struct ItemSample {
    pub input: Vec<ItemMessage>,
    pub output: Vec<ItemMessage>,
    pub finish_reason: String,
    pub model: String,
    pub usage: ItemUsage,
    pub error: ItemError,
    pub temperature: f64,
    pub max_completion_tokens: i64,
    pub top_p: f64,
    pub seed: i64,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ItemMessage {
    pub role: String,
    pub content: Option<TemplateContent>,
    pub tool_calls: Option<Vec<Value>>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ItemUsage {
    pub total_tokens: u64,
    pub completion_tokens: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
}
