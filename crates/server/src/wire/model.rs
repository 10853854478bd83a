//! Models as the API shows them: base models, tuned models, checkpoints.

use domain::hyperparameters::Tuning;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    pub created: i64,
    /// The slug of the organisation that owns a tuned model; `system` for a base model.
    pub owned_by: String,
    /// The base model at the root of its lineage; itself for a base model.
    pub root: String,
    /// What it was tuned from: the base model, or an earlier tuned model. Null for a base model.
    pub parent: Option<String>,
    /// The job that made it.
    pub fine_tuning_job_id: Option<String>,
    /// Steps of that job when it was written.
    pub step_number: Option<u64>,
    /// What was trained: `lora`, `full`, `prompt` or `prefix`.
    #[schema(value_type = Option<String>)]
    pub tuning: Option<Tuning>,
    /// Tokens that it reads, virtual ones taken off; null when its files do not say.
    pub max_model_len: Option<u64>,
    pub capabilities: Capabilities,
}

/// What a model can be used for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Capabilities {
    /// It answers chats.
    pub chat: bool,
    /// It is a reward model: it scores answers.
    pub score: bool,
    /// A job may start from it.
    pub fine_tune: bool,
    /// Its weights can be downloaded merged into one whole model.
    pub merge: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<Model>,
}
