//! Fine-tuning jobs on the wire: the body that creates one, and the object that every call answers
//! with.

use std::collections::BTreeMap;

use domain::hyperparameters::{
    EarlyStopping, GradientCheckpointing, OptimizerKind, Precision, Quantization, Schedule, Tuning,
};
use domain::plan::{LoraConfig, VirtualTokens};
use domain::{Hyperparameters, TrainingOptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::list::Identified;
use super::shape::{FreeObject, job as shape};

/// `POST /fine_tuning/jobs`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateJob {
    /// A base model, a tuned model or a checkpoint.
    pub model: String,
    /// A file of purpose `fine-tune`.
    pub training_file: String,
    pub validation_file: Option<String>,
    /// Part of the tuned model's name.
    #[schema(max_length = 64)]
    pub suffix: Option<String>,
    /// Drawn and shown when absent.
    #[schema(minimum = 0, maximum = 2147483647)]
    pub seed: Option<i64>,
    #[schema(value_type = Option<shape::Method>)]
    pub method: Option<Method>,
    /// The older place of the method's hyperparameters; `method` wins over it.
    #[schema(value_type = Option<shape::SupervisedHyperparameters>)]
    pub hyperparameters: Option<Value>,
    /// At most 5: `{"type": "wandb", "wandb": {"project": …, "name": …, "entity": …, "tags": […]}}`. Shown with
    /// the job; this server sends nothing to Weights & Biases by itself.
    #[schema(value_type = Option<Vec<shape::Integration>>, max_items = 5)]
    pub integrations: Option<Value>,
    pub metadata: Option<BTreeMap<String, String>>,
    /// What this server can set beyond OpenAI's hyperparameters.
    #[schema(value_type = Option<super::shape::options::TrainingOptions>)]
    pub finetuned: Option<TrainingOptions>,
    /// Sent by Azure's clients; without meaning here.
    #[serde(rename = "trainingType")]
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted, so that it is no unknown field")]
    pub training_type: Option<Value>,
}

/// A training method. Blocks that do not match `type` are ignored, as OpenAI's service ignores
/// them.
#[derive(Debug, Deserialize)]
pub(crate) struct Method {
    /// `supervised` or `dpo`; `reinforcement` is checked, and answered with an error.
    pub r#type: String,
    /// Read when `type` is `supervised`: `{"hyperparameters": {…}}`.
    pub supervised: Option<Value>,
    /// Read when `type` is `dpo`: `{"hyperparameters": {…}}`.
    pub dpo: Option<Value>,
    /// Read when `type` is `reinforcement`: `{"grader": {…}, "hyperparameters": {…}, "response_format": {…}}`.
    pub reinforcement: Option<Value>,
    /// Belongs into the block of the method, and is refused here.
    pub hyperparameters: Option<Value>,
}

/// `POST /fine_tuning/jobs/{id}`, an extension.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateJob {
    /// Replaces the pairs that are there; null removes them.
    #[serde(deserialize_with = "Option::deserialize")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// The answer of a deletion.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobDeleted {
    pub id: String,
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    pub deleted: bool,
}

/// A job. Every key is always there: strict clients refuse a job that lacks one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Job {
    #[schema(example = "ftjob-0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    pub model: String,
    pub created_at: i64,
    pub finished_at: Option<i64>,
    pub fine_tuned_model: Option<String>,
    pub organization_id: String,
    pub result_files: Vec<String>,
    /// `validating_files`, `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    pub validation_file: Option<String>,
    pub training_file: String,
    #[schema(value_type = shape::ShownHyperparameters)]
    pub hyperparameters: Hyperparameters,
    pub trained_tokens: Option<u64>,
    pub error: Option<JobError>,
    pub user_provided_suffix: Option<String>,
    pub seed: i64,
    pub estimated_finish: Option<i64>,
    #[schema(value_type = Vec<shape::Integration>)]
    pub integrations: Value,
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub metadata: Option<Value>,
    #[schema(value_type = Option<FreeObject>)]
    pub usage_metrics: Option<Value>,
    pub shared_with_openai: bool,
    #[schema(value_type = shape::Method)]
    pub method: Value,
    /// What this server resolved beyond OpenAI's hyperparameters, once the files are validated; and what a job
    /// that does not run waits for.
    #[schema(value_type = Option<super::shape::options::ShownOptions>)]
    pub finetuned: Option<Ours>,
}

impl Identified for Job {
    fn id(&self) -> &str {
        &self.id
    }
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobError {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
}

/// The resolved training options of a job.
#[derive(Debug, Serialize)]
pub(crate) struct Resolved {
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub warmup_steps: u64,
    pub weight_decay: f64,
    pub optimizer: OptimizerKind,
    pub max_grad_norm: f64,
    pub max_seq_len: u32,
    pub micro_batch_tokens: u32,
    pub checkpoint_steps: u64,
    pub gradient_checkpointing: GradientCheckpointing,
    pub early_stopping: Option<EarlyStopping>,
    pub quantization: Quantization,
    /// `auto` until a worker takes the job.
    pub precision: Precision,
    pub tuning: Tuning,
    /// Of the tuning `lora`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Of the tunings `prompt` and `prefix`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_tokens: Option<VirtualTokens>,
    /// What the files hold: examples, tokens, truncated rows.
    pub dataset: Option<Value>,
}

/// What the service this one follows does not say of a job.
#[derive(Debug, Serialize)]
pub(crate) struct Ours {
    /// None until the files are validated.
    #[serde(flatten)]
    pub resolved: Option<Resolved>,
    /// Jobs of the project that run before this one; only of a queued job. 100,000 stands for more, too.
    pub queue_position: Option<u64>,
    pub wait_reason: Option<WaitReason>,
}

/// Why a job that has not ended does not run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WaitReason {
    /// `checking_files`, `jobs_before_it`, `workers_busy`, `no_worker`, `starting`, `backing_off` or `paused`.
    pub code: &'static str,
    pub message: String,
    /// Of `backing_off`: when the job may be taken again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}
