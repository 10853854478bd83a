//! Weights for workers: base models and adapters, file by file.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use domain::ModelId;
use domain::internal::BaseModel;
use store::{base_models, models};

use super::error::InternalResult;
use super::runs::download;
use crate::extract::Worker;
use crate::state::AppState;

pub(crate) async fn list(
    _: Worker,
    State(state): State<AppState>,
) -> InternalResult<Json<Vec<BaseModel>>> {
    let rows = base_models::list_for_workers(&state.store.db).await?;
    Ok(Json(rows.iter().map(base_models::BaseModelRow::to_manifest).collect()))
}

pub(crate) async fn retrieve(
    _: Worker,
    State(state): State<AppState>,
    Path(model): Path<ModelId>,
) -> InternalResult<Json<BaseModel>> {
    let row = base_models::get_for_workers(&state.store.db, &model).await?;
    Ok(Json(row.to_manifest()))
}

pub(crate) async fn file(
    _: Worker,
    State(state): State<AppState>,
    Path((model, name)): Path<(ModelId, String)>,
) -> InternalResult<Response> {
    let row = base_models::get_for_workers(&state.store.db, &model).await?;
    let (key, _) = row.blob_key(&name)?;
    download(&state, &key).await
}

pub(crate) async fn adapter_file(
    _: Worker,
    State(state): State<AppState>,
    Path((model, name)): Path<(ModelId, String)>,
) -> InternalResult<Response> {
    let db = &state.store.db;
    let (key, _) = models::adapter_file_for_workers(db, &model, &name).await?;
    download(&state, &key).await
}
