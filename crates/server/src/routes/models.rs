//! Models: base models, tuned models and checkpoints, side by side.

use axum::Json;
use axum::extract::State;
use store::models;

use crate::convert::{self, OrNotFound};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Id};
use crate::state::AppState;
use crate::wire::error::ErrorEnvelope;
use crate::wire::file::Deleted;
use crate::wire::model::{Model, ModelList};

/// Every model that the project can use: base models, its tuned models and checkpoints, and those that other
/// projects share with it.
#[utoipa::path(get, path = "/models", tag = "Models", operation_id = "listModels",
    responses((status = 200, body = ModelList), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(project): Caller,
) -> ApiResult<Json<ModelList>> {
    let rows = models::list(&state.store.db, &project).await?;
    let data = rows.into_iter().map(convert::model).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// One model.
#[utoipa::path(get, path = "/models/{model}", tag = "Models", operation_id = "retrieveModel",
    params(("model" = String, Path)),
    responses((status = 200, body = Model), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Model>> {
    let row = models::get(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::ModelNotFound(id))?;
    Ok(Json(convert::model(row)))
}

/// Delete a tuned model or a checkpoint's model. Base models are refused, another project's models, and those
/// that a job which has not ended starts from.
#[utoipa::path(delete, path = "/models/{model}", tag = "Models", operation_id = "deleteModel",
    params(("model" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Deleted>> {
    models::delete(&state.store, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::ModelNotFound(id.clone()))?;
    Ok(Json(Deleted { id, object: "model", deleted: true }))
}
