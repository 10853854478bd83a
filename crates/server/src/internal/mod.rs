//! The internal API: what a worker may do, and with which lease. The table of calls stands in
//! `domain::internal`. Workers open every connection; long polls end when the server shuts down.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::{get, post, put};

use tower::util::MapRequestLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::state::AppState;

mod error;
mod extract;
mod inference;
mod models;
mod reports;
mod runs;

pub(crate) use error::InternalApiError;

pub(crate) fn router(body_idle_timeout: Duration) -> Router<AppState> {
    let unlimited = |request: Request<_>| request.map(Body::new);
    // The engine may think for long between two events; everybody else has the bytes at hand.
    let patient = Router::new().route("/inference/{id}/events", post(inference::events));
    Router::new()
        .route("/runs/claim", post(runs::claim))
        .route("/runs/{job}/heartbeat", post(runs::heartbeat))
        .route("/runs/{job}/reports", post(reports::record))
        .route("/runs/{job}/files/{file}", get(runs::file))
        .route("/runs/{job}/checkpoints", post(runs::begin_checkpoint))
        .route(
            "/runs/{job}/checkpoints/{checkpoint}/files/{name}",
            put(runs::put_checkpoint_file).get(runs::checkpoint_file),
        )
        .route("/runs/{job}/checkpoints/{checkpoint}/commit", post(runs::commit_checkpoint))
        .route("/runs/{job}/finish", post(runs::finish))
        .route("/runs/{job}/fail", post(runs::fail))
        .route("/runs/{job}/release", post(runs::release))
        .route("/models", get(models::list))
        .route("/models/{model}", get(models::retrieve))
        .route("/models/{model}/files/{name}", get(models::file))
        .route("/adapters/{model}/files/{name}", get(models::adapter_file))
        .route("/inference/next", post(inference::next))
        .layer(MapRequestLayer::new(unlimited))
        .layer(RequestBodyTimeoutLayer::new(body_idle_timeout))
        .merge(patient)
        .fallback(unknown)
}

async fn unknown() -> InternalApiError {
    InternalApiError::NotFound("there is no such call".to_owned())
}
