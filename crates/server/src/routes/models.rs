//! Models: base models, tuned models and checkpoints, side by side.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use store::models;

use crate::convert::{self, OrNotFound};
use crate::error::{ApiError, ApiResult};
use crate::extract::page::FlagName;
use crate::extract::{Caller, Flag, Id};
use crate::state::AppState;
use crate::weights::{ModelFiles, WeightsError, tar, tar_bytes};
use crate::wire::file::Deleted;
use crate::wire::model::{Model, ModelList};

/// Every model that the project can use: base models, its tuned models and checkpoints, and those that other
/// projects share with it.
#[utoipa::path(get, path = "/models", tag = "Models", operation_id = "listModels",
    responses((status = 200, body = ModelList)))]
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
    responses((status = 200, body = Model)))]
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
    responses((status = 200, body = Deleted)))]
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

/// Download a model's files as a tar stream: an adapter in PEFT's format, or a whole model in Hugging Face's layout.
/// `merged=true` merges an adapter into its base model. An extension of this server's.
#[utoipa::path(get, path = "/models/{model}/weights", tag = "Models",
    operation_id = "downloadModelWeights",
    params(("model" = String, Path), ("merged" = Option<bool>, Query)),
    responses((status = 200, body = Vec<u8>, content_type = "application/x-tar")))]
pub(crate) async fn weights(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    merged: Flag<Merged>,
) -> ApiResult<Response> {
    let model = id.as_str().into();
    let files = match ModelFiles::of(&state.store, &project, &model, merged.is_set).await {
        Ok(files) => files,
        Err(WeightsError::Store(error)) => {
            return Err(error).or_not_found(|| ApiError::ModelNotFound(id));
        }
        Err(error @ WeightsError::Busy) => {
            let message = error.to_string();
            return Err(ApiError::Unavailable { message, retry_after_seconds: 10 });
        }
        Err(error @ WeightsError::CannotMerge(_)) => {
            return Err(ApiError::invalid_value("merged", error.to_string()));
        }
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let name: String = id.chars().map(plain).collect();
    let headers = [
        (CONTENT_TYPE, "application/x-tar".to_owned()),
        (CONTENT_LENGTH, tar_bytes(&files).to_string()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}.tar\"")),
    ];
    Ok((headers, Body::from_stream(tar(files))).into_response())
}

/// `merged=true` of a download.
pub(crate) struct Merged;

impl FlagName for Merged {
    const NAME: &'static str = "merged";
}
