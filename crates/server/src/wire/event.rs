//! A job's events and checkpoints as the API shows them.

use domain::report::RewardMetrics;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::list::Identified;
use super::shape::FreeObject;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Event {
    /// Always `fine_tuning.job.event`.
    pub object: &'static str,
    pub id: String,
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: &'static str,
    pub message: String,
    /// `message` or `metrics`.
    pub r#type: &'static str,
    #[schema(value_type = Option<FreeObject>)]
    pub data: Option<Value>,
}

impl Identified for Event {
    fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Checkpoint {
    /// Always `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    pub id: String,
    pub created_at: i64,
    pub fine_tuned_model_checkpoint: String,
    pub fine_tuning_job_id: String,
    pub metrics: CheckpointMetrics,
    pub step_number: u64,
}

impl Identified for Checkpoint {
    fn id(&self) -> &str {
        &self.id
    }
}

/// What was measured at a checkpoint; what was not measured is left out.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckpointMetrics {
    pub step: u64,
    pub train_loss: f64,
    pub train_mean_token_accuracy: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_mean_token_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_mean_token_accuracy: Option<f64>,
    /// Of jobs of the method `dpo`.
    #[serde(flatten)]
    #[schema(value_type = RewardFigures)]
    pub rewards: RewardMetrics,
}

/// Rewards of a preference job, as [`RewardMetrics`] writes them; for the schema.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct RewardFigures {
    train_reward_accuracy: Option<f64>,
    train_chosen_reward: Option<f64>,
    train_rejected_reward: Option<f64>,
    train_reward_margin: Option<f64>,
    valid_reward_accuracy: Option<f64>,
    valid_reward_margin: Option<f64>,
    full_valid_reward_accuracy: Option<f64>,
    full_valid_reward_margin: Option<f64>,
}
