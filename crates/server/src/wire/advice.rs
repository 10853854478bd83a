//! What a job would cost and how it might better be trained, on the wire: an extension, so its names are ours.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::shape::FreeObject;

/// What a run costs here, and what hosted services charge for as many tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Cost {
    /// Null where the operator has not said what an hour costs (`costs.gpu_hour_price`).
    pub here: Option<CostHere>,
    /// Those whose class of sizes the base model is in, and those of services that sell no other model.
    pub hosted: Vec<HostedCost>,
}

/// At the operator's price.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CostHere {
    pub amount: f64,
    /// Such as `USD`.
    pub currency: String,
    pub gpu_hour_price: f64,
    /// The estimated time that is paid for.
    pub seconds: f64,
}

/// At a price of the configuration's list (`costs.hosted`).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HostedCost {
    pub provider: String,
    /// What the price is for.
    pub model: String,
    pub amount: f64,
    pub currency: String,
    pub per_million_tokens: f64,
    /// When the price was read, as `2026-01`.
    pub as_of: String,
    /// Where.
    pub source: String,
}

/// How the job might better be trained.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Advice {
    pub method: AdvisedMethod,
    /// Of a worker's device, as far as the configuration says (`server.device_memory`).
    pub memory_bytes: Option<u64>,
    /// What could be trained, and the memory that it takes.
    pub alternatives: Vec<Alternative>,
    /// Only what differs from what the job would do.
    pub settings: Vec<AdvisedSetting>,
}

/// The one of the alternatives that is advised.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdvisedMethod {
    /// For `finetuned.tuning`: `lora`, `full`, `prompt` or `prefix`. Null: none fits into the memory.
    pub tuning: Option<&'static str>,
    /// For `finetuned.quantization`: `none` or `nf4`.
    pub quantization: Option<&'static str>,
    /// Whether the job would do just that.
    pub is_chosen: bool,
    /// Why.
    pub message: String,
}

/// One way to train the base model on these rows.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Alternative {
    pub tuning: &'static str,
    pub quantization: &'static str,
    /// The expected peak.
    pub peak_bytes: u64,
    /// What must be free for the run to be admitted as it is.
    pub required_bytes: u64,
    /// `whole`: as it is; `smaller`: with smaller micro-batches, or more that is computed again, with the same
    /// result; `no`. Null where the memory is not known.
    pub fits: Option<&'static str>,
}

/// A value that is advised.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdvisedSetting {
    /// Of the request: `finetuned.early_stopping`, `n_epochs`, …
    pub field: &'static str,
    /// Null where it depends on the user, as a file does.
    #[schema(value_type = Option<FreeObject>)]
    pub value: Option<Value>,
    pub message: String,
}
