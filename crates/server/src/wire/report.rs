//! Reports of jobs on the wire: an extension, so its names are ours. What is made once is kept as it is shown.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::shape::FreeObject;

/// `POST /fine_tuning/jobs/{fine_tuning_job_id}/report`. The body may be absent.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeReport {
    /// Held-out rows that are asked, at most; 50 without it.
    #[schema(minimum = 1, maximum = 1000)]
    pub rows: Option<i64>,
    /// Training rows in the prompt of the base model; 4 without it, and 0 leaves that contender out.
    #[schema(minimum = 0, maximum = 32)]
    pub few_shot: Option<i64>,
    /// Chooses the rows; the job's without it.
    #[schema(minimum = 0, maximum = 4294967295_i64)]
    pub seed: Option<i64>,
}

/// Whether the tuned model answers held-out rows better than what it was tuned from. Everything from `verdict` on is
/// null before the status is `completed`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Report {
    /// Always `fine_tuning.job.report`.
    pub object: &'static str,
    pub job_id: String,
    /// `not_available`, `pending`, `in_progress`, `completed` or `failed`.
    pub status: &'static str,
    /// Why there is no report, of the status `not_available`.
    pub reason: Option<String>,
    /// Of the status `failed`.
    pub error: Option<ReportError>,
    pub progress: Option<ReportProgress>,
    pub created_at: Option<i64>,
    pub finished_at: Option<i64>,
    /// One sentence with its numbers.
    pub verdict: Option<String>,
    /// What the expected answers are: classification, extraction, short_text or text.
    pub task: Option<String>,
    /// The score by which contenders are compared: accuracy, json_field_f1, exact_match or rouge_l.
    pub primary_metric: Option<String>,
    /// The method of the job.
    pub method: Option<String>,
    pub seed: Option<i64>,
    /// Most tokens of an answer.
    pub max_completion_tokens: Option<i64>,
    /// Which rows were asked: `source`, `file`, `rows`, and out of how many (`of`).
    #[schema(value_type = Option<FreeObject>)]
    pub held_out: Option<Value>,
    /// `tuned`, `base`, `few_shot`: each with its `model`, `metrics`, figures per label and confusion matrix.
    #[schema(value_type = Option<Vec<FreeObject>>)]
    pub contenders: Option<Value>,
    /// The tuned model against `base` and `few_shot`: difference, 95 % interval, p, rows won, lost and tied.
    #[schema(value_type = Option<FreeObject>)]
    pub comparison: Option<Value>,
    /// On the whole validation file.
    #[schema(value_type = Option<FreeObject>)]
    pub loss: Option<Value>,
    /// Losses and accuracies by step.
    #[schema(value_type = Option<Vec<FreeObject>>)]
    pub curves: Option<Value>,
    /// Side by side: the question, the expected answer, and what each contender said, with its scores.
    #[schema(value_type = Option<Vec<FreeObject>>)]
    pub rows: Option<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReportError {
    pub code: String,
    pub message: String,
}

/// How far the making is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReportProgress {
    /// Answers of models that there are.
    pub answers: u32,
    /// Null before the rows are chosen.
    pub wanted: Option<u32>,
}
