//! Reading a whole body under a limit, with every way of failing told apart.

use axum::body::{Body, Bytes};
use tower_http::timeout::TimeoutError;

use crate::error::ApiError;

/// The whole body, at most `limit` bytes.
pub(crate) async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        if caused_by::<http_body_util::LengthLimitError>(&error) {
            ApiError::PayloadTooLarge(format!(
                "The request body is larger than the limit of {limit} bytes."
            ))
        } else {
            explain(&error)
        }
    })
}

/// Why a body could not be read to its end.
pub(crate) fn explain(error: &(dyn std::error::Error + 'static)) -> ApiError {
    if caused_by::<TimeoutError>(error) {
        return ApiError::RequestTimeout;
    }
    let chain = crate::error::ErrorChain(error);
    ApiError::BadRequest(format!("The request body could not be read: {chain}."))
}

fn caused_by<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<E>() {
            return true;
        }
        next = error.source();
    }
    false
}
