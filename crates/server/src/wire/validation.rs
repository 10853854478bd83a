//! The validation of a job on the wire: an extension, so its names are ours.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::advice::{Advice, Cost};
use super::estimate::MemoryEstimate;
use super::job::Resolved;
use super::shape::FreeObject;
use super::shape::options::ShownOptions;
use crate::reasons::Reasons;

/// What a job with this request would meet. Nothing is created.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobValidation {
    /// Always `fine_tuning.job.validation`.
    pub object: &'static str,
    /// No problem is an error.
    pub valid: bool,
    /// Those of the request first, then those of the files by line, at most 1000 of each file.
    pub problems: Vec<Problem>,
    /// Errors and warnings, also those that are not listed.
    pub total_problems: u64,
    pub model: Option<String>,
    pub method: Option<&'static str>,
    /// Resolved as the job's would be; null unless the files are good.
    #[schema(value_type = Option<FreeObject>)]
    pub hyperparameters: Option<Value>,
    /// What a job shows under this name.
    #[schema(value_type = Option<ShownOptions>)]
    pub finetuned: Option<Resolved>,
    /// Why each of these has its value, by its name; of a part of an object by its path: `lora.rank`.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    pub reasons: Option<Reasons>,
    /// Counts, tokens and truncated rows, by file.
    #[schema(value_type = Option<FreeObject>)]
    pub dataset: Option<Value>,
    /// Copies, contradictions, labels, languages, personal data and more, by file, of the rows without
    /// fault. What should be looked at stands among the problems, as warnings.
    #[schema(value_type = Option<FreeObject>)]
    pub quality: Option<Value>,
    /// Optimizer steps of all epochs.
    pub steps: Option<u64>,
    /// Tokens of all epochs after truncation, which a job counts as trained.
    pub trained_tokens: Option<u64>,
    /// At the speed of the latest jobs of the base model on these machines.
    pub estimated_seconds: Option<f64>,
    /// On the CPU.
    pub memory: Option<MemoryEstimate>,
    /// At the estimated time, and elsewhere.
    pub cost: Option<Cost>,
    /// How the job might better be trained. Nothing is changed by it.
    pub advice: Option<Advice>,
}

/// One fault, or one thing to know.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `error` or `warning`.
    pub severity: &'static str,
    /// Stable, for programs.
    pub code: String,
    /// `training_file` or `validation_file`; null: the request.
    pub file: Option<&'static str>,
    /// 1-based.
    pub line: Option<u64>,
    /// Of the request's field, or within the row.
    pub path: Option<String>,
    pub message: String,
    /// What to do about it.
    pub remedy: &'static str,
    /// Of a warning about several rows: all of them, the first thousand.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u64>>)]
    pub lines: Option<Value>,
}
