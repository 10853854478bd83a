//! A row as a model sees it, on the wire: an extension, so its names are ours.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::shape::{job, options};
use super::validation::Problem;

/// `POST /fine_tuning/preview`: what of a job's creation decides how its rows are read, and a row.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreviewRequest {
    /// A base model, a tuned model or a checkpoint.
    pub model: String,
    /// A file of purpose `fine-tune`.
    pub training_file: String,
    #[schema(value_type = Option<job::Method>)]
    pub method: Option<Value>,
    #[schema(value_type = Option<options::TrainingOptions>)]
    pub finetuned: Option<Value>,
    /// As problems name it: of JSON lines and CSV the line on which the row begins, of an array its place, from 1.
    /// Absent: the first row.
    #[schema(minimum = 1, maximum = 9007199254740991i64)]
    pub row: Option<i64>,
}

/// What is trained of a row.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RowPreview {
    /// Always `fine_tuning.preview`.
    pub object: &'static str,
    pub model: String,
    pub method: &'static str,
    pub row: u64,
    /// How the row is written.
    pub format: &'static str,
    /// What holds the file's rows.
    pub container: &'static str,
    /// Tokens after which a sequence is cut, or a text split.
    pub max_seq_len: u32,
    /// Why the row would be refused; it has no sequences then.
    pub problems: Vec<Problem>,
    /// One of most rows; two of a pair, the preferred answer first; the pieces of a long text.
    pub sequences: Vec<Sequence>,
    /// Also those that are not listed: a text of very many tokens has its first ones only.
    pub total_sequences: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Sequence {
    /// Of a pair: `preferred` or `non_preferred`.
    pub answer: Option<&'static str>,
    /// Of those below, which the model sees.
    pub n_tokens: u64,
    pub n_trained: u64,
    /// Whether tokens were cut off at the end.
    pub truncated: bool,
    /// Before the cut.
    pub n_tokens_before_truncation: u64,
    pub tokens: Vec<Token>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Token {
    pub id: u32,
    /// What it stands for; U+FFFD in place of parts of a character.
    pub text: String,
    /// Whether the model is trained to say it.
    pub trained: bool,
}
