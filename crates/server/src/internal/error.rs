//! Errors of the internal API: a stable code for the worker's decision, a text for the log.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use domain::internal::InternalError;

use crate::error::ErrorChain;

pub(crate) type InternalResult<T> = Result<T, InternalApiError>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum InternalApiError {
    /// The worker has to stop this run at once.
    #[error("the lease of this run is gone")]
    LeaseLost,
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    HashMismatch(String),
    #[error("the worker token is missing, wrong or revoked")]
    Unauthorized,
    #[error("this key is not a worker's")]
    NotAWorker,
    #[error("{0}")]
    InvalidRequest(String),
    /// Long polls only: everything else is served until the end.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Another try may succeed; the log has the details.
    #[error("the server could not do this now")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl IntoResponse for InternalApiError {
    fn into_response(self) -> Response {
        let (status, code) = match &self {
            Self::LeaseLost => (StatusCode::CONFLICT, "lease_lost"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::HashMismatch(_) => (StatusCode::UNPROCESSABLE_ENTITY, "hash_mismatch"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::NotAWorker => (StatusCode::FORBIDDEN, "unauthorized"),
            Self::InvalidRequest(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::Unavailable(source) => {
                let error = ErrorChain(source.as_ref()).to_string();
                tracing::error!(error, "internal call failed");
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
        };
        let body = InternalError { code: code.to_owned(), message: self.to_string() };
        (status, Json(body)).into_response()
    }
}
