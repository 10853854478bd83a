//! Requests whose headers are too large, refused in the API's own shape. The parser below has wider limits, at
//! which it can answer with a bare status only.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;

/// Largest request head: headers and request line together.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
pub(crate) const MAX_HEADERS: usize = 100;

pub(crate) async fn fit(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let bytes = request.uri().path().len() + request.uri().query().map_or(0, str::len);
    if headers.len() > MAX_HEADERS || bytes + lines.sum::<usize>() > MAX_HEAD_BYTES {
        return ApiError::HeadTooLarge(MAX_HEAD_BYTES, MAX_HEADERS).into_response();
    }
    next.run(request).await
}
