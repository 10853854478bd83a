//! Reports of a run. The store turns them into events and metrics, in one transaction with the
//! lease check.

use axum::extract::State;
use axum::http::StatusCode;
use domain::internal::ReportBatch;
use store::queue;

use super::error::InternalResult;
use super::extract::{InternalJson, Leased};
use crate::extract::Worker;
use crate::state::AppState;

pub(crate) async fn record(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    InternalJson(batch): InternalJson<ReportBatch>,
) -> InternalResult<StatusCode> {
    queue::record_reports(&state.store.db, &lease, &batch).await?;
    state.follow.ring();
    Ok(StatusCode::NO_CONTENT)
}
