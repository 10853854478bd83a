//! How much memory a run would take, before there is a job or a file.

use axum::Json;
use axum::extract::State;
use domain::memory::{Workload, estimate};
use domain::plan::ResolvedHyperparameters;
use domain::{Hyperparameters, ModelId};
use store::base_models::{self, BaseModelRow};

use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Json as Body};
use crate::hyperparameters::check_options;
use crate::inference::prompt::integer;
use crate::lanes::models::{self, ModelConfig, ModelError};
use crate::resolve::{Measured, resolve};
use crate::state::AppState;
use crate::wire::estimate::{EstimateRequest, MemoryEstimate};

const LONGEST_ROW: i64 = 1_048_576;

/// Estimate the memory of a run on the CPU. An extension of this server's.
#[utoipa::path(post, path = "/fine_tuning/estimate", tag = "Fine-tuning",
    operation_id = "estimateFineTuningMemory",
    request_body = EstimateRequest,
    responses((status = 200, body = MemoryEstimate)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    Body(body): Body<EstimateRequest>,
) -> ApiResult<Json<MemoryEstimate>> {
    let options = body.finetuned.unwrap_or_default();
    check_options(&options, "finetuned")?;
    let longest = match body.longest_row {
        Some(tokens) => integer("longest_row", tokens, 1, LONGEST_ROW)? as u64,
        None => 0,
    };
    let model = ModelId::from(body.model.as_str());
    let row = base_models::get(&state.store.db, &project, &model).await;
    let row = row.map_err(|error| match error {
        store::Error::NotFound(_) => ApiError::ModelNotTrainable(body.model.clone()),
        other => other.into(),
    })?;
    let config = models::config(&state.store, &row).await.map_err(|error| match error {
        ModelError::Store(error) => error.into(),
        unusable @ ModelError::Unusable { .. } => {
            ApiError::invalid_value("model", unusable.to_string())
        }
    })?;
    let measured = Measured {
        n_examples: 1,
        has_validation: body.validation,
        hidden_size: config.shape.hidden_size,
        context_length: config.max_position_embeddings,
    };
    let operator = &state.config.training;
    let settings = resolve(&Hyperparameters::default(), &options, operator, 0, &measured);
    Ok(Json(memory(&row, &config, &settings, longest, body.validation)))
}

/// The memory of a run whose longest row has so many tokens.
pub(crate) fn memory(
    row: &BaseModelRow,
    config: &ModelConfig,
    settings: &ResolvedHyperparameters,
    longest: u64,
    has_validation: bool,
) -> MemoryEstimate {
    let rows = longest.min(u64::from(settings.max_seq_len));
    let longest = rows + u64::from(settings.rows_per_document());
    let workload = Workload::of(settings, longest, has_validation);
    let found = estimate(&config.shape, &workload);
    MemoryEstimate {
        object: "fine_tuning.estimate",
        model: row.id.to_string(),
        parameters: config.shape.parameters(),
        tokens: workload.tokens,
        weights_bytes: found.weights,
        trainable_bytes: found.trainable,
        activations_bytes: found.activations,
        workspace_bytes: found.workspace,
        runtime_bytes: found.runtime,
        peak_bytes: found.peak(),
        required_bytes: found.required(),
    }
}
