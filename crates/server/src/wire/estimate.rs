//! The memory estimate on the wire: an extension, so its names are ours.

use domain::TrainingOptions;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shape;

/// `POST /fine_tuning/estimate`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EstimateRequest {
    /// A base model.
    pub model: String,
    /// Tokens of the longest row; absent: as many as a micro-batch has.
    #[schema(minimum = 1, maximum = 1048576)]
    pub longest_row: Option<i64>,
    /// Whether there will be a validation file.
    #[serde(default)]
    pub validation: bool,
    /// As in the creation of a job.
    #[schema(value_type = Option<shape::options::TrainingOptions>)]
    pub finetuned: Option<TrainingOptions>,
}

/// What a run will take on the CPU, in bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MemoryEstimate {
    /// Always `fine_tuning.estimate`.
    pub object: &'static str,
    pub model: String,
    /// Numbers in the base model.
    pub parameters: u64,
    /// Tokens of the largest micro-batch.
    pub tokens: u64,
    pub weights_bytes: u64,
    /// What is trained, its gradients and the optimizer's moments.
    pub trainable_bytes: u64,
    pub activations_bytes: u64,
    pub workspace_bytes: u64,
    pub runtime_bytes: u64,
    pub peak_bytes: u64,
    /// The peak with its margin: what must be free for the run to be admitted as it is.
    pub required_bytes: u64,
}
