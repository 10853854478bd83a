//! Methods, hyperparameters and integrations of jobs.

use serde::Serialize;
use utoipa::ToSchema;

use super::grader::Grader;
use super::message::ResponseFormat;

/// A number, or the word `auto`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum AutoNumber {
    Number(f64),
    /// Always `auto`.
    Auto(String),
}

/// A whole number, or the word `auto`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum AutoInteger {
    Number(u32),
    /// Always `auto`.
    Auto(String),
}

/// A training method. Blocks that do not match `type` are ignored.
#[derive(Serialize, ToSchema)]
pub(crate) struct Method {
    /// `supervised`, `dpo` or `reinforcement`.
    pub r#type: String,
    pub supervised: Option<SupervisedBlock>,
    pub dpo: Option<DpoBlock>,
    pub reinforcement: Option<ReinforcementBlock>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct SupervisedBlock {
    pub hyperparameters: Option<SupervisedHyperparameters>,
}

/// Each a number or `auto`.
#[derive(Serialize, ToSchema)]
pub(crate) struct SupervisedHyperparameters {
    /// 1 to 50.
    pub n_epochs: Option<AutoInteger>,
    /// Examples per step, 1 to 256.
    pub batch_size: Option<AutoInteger>,
    /// Above 0.
    pub learning_rate_multiplier: Option<AutoNumber>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DpoBlock {
    pub hyperparameters: Option<DpoHyperparameters>,
}

/// OpenAI's four, each a number or `auto`, and this server's extensions.
#[derive(Serialize, ToSchema)]
pub(crate) struct DpoHyperparameters {
    /// 1 to 50.
    pub n_epochs: Option<AutoInteger>,
    /// Pairs per step, 1 to 256.
    pub batch_size: Option<AutoInteger>,
    /// Above 0.
    pub learning_rate_multiplier: Option<AutoNumber>,
    /// Above 0 and at most 2 (`simpo`: at most 10); `auto` is 0.1 (`simpo`: 2).
    pub beta: Option<AutoNumber>,
    /// `sigmoid`, `ipo`, `hinge`, `orpo`, `simpo`, `kto` or `reward`. Extension: `sigmoid` is the default, `reward`
    /// trains a reward model, and rows of `kto` are `{"input": …, "completion": …, "label": true}`.
    pub loss_type: Option<String>,
    /// Extension, for `sigmoid` and `simpo`: the share of pairs that may be labelled the wrong way round, from
    /// 0 to below 0.5.
    pub label_smoothing: Option<f64>,
    /// Extension, for `simpo` and `reward`: the margin that the preferred answer must win by, from 0 to 10; 1 by
    /// default (`reward`: 0).
    pub gamma: Option<f64>,
    /// Extension, for `kto`: how much good answers count; 1 by default.
    pub desirable_weight: Option<f64>,
    /// Extension, for `kto`: how much bad answers count; 1 by default.
    pub undesirable_weight: Option<f64>,
    /// Extension, for `reward`: how much scores are drawn towards 0, from 0 to below 1; 0 by default.
    pub center_coefficient: Option<f64>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ReinforcementBlock {
    pub grader: Grader,
    pub hyperparameters: Option<ReinforcementHyperparameters>,
    pub response_format: Option<ResponseFormat>,
}

/// Each a number or `auto`.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReinforcementHyperparameters {
    /// 1 to 50.
    pub n_epochs: Option<AutoInteger>,
    /// Examples per step, 1 to 256.
    pub batch_size: Option<AutoInteger>,
    /// Above 0.
    pub learning_rate_multiplier: Option<AutoNumber>,
    /// Above 0.00001 and at most 10.
    pub compute_multiplier: Option<AutoNumber>,
    /// Steps between evaluations.
    pub eval_interval: Option<AutoInteger>,
    pub eval_samples: Option<AutoInteger>,
    /// `default`, `low`, `medium` or `high`.
    pub reasoning_effort: Option<String>,
}

/// `auto` until the files are validated, numbers afterwards.
#[derive(Serialize, ToSchema)]
pub(crate) struct ShownHyperparameters {
    pub n_epochs: AutoInteger,
    pub batch_size: AutoInteger,
    pub learning_rate_multiplier: AutoNumber,
}

/// Where a job's record also goes. This server sends nothing by itself.
#[derive(Serialize, ToSchema)]
pub(crate) struct Integration {
    /// Always `wandb`.
    pub r#type: String,
    pub wandb: Wandb,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Wandb {
    pub project: String,
    pub name: Option<String>,
    pub entity: Option<String>,
    #[schema(max_items = 50)]
    pub tags: Option<Vec<String>>,
}
