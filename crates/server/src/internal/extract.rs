//! What internal calls carry: a JSON body, and for a run's calls its lease.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use domain::JobId;
use domain::internal::{FENCE_HEADER, LEASE_HEADER};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::queue::Lease;

use super::error::InternalApiError;
use crate::extract::body;
use crate::state::AppState;

/// How long a long poll may be held open.
pub(crate) const LONGEST_POLL: Duration = Duration::from_secs(30);
/// Largest JSON body of an internal call: a batch of reports, mostly.
const MAX_BYTES: usize = 16 * 1024 * 1024;

pub(crate) struct InternalJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for InternalJson<T> {
    type Rejection = InternalApiError;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, InternalApiError> {
        let bytes = body::collect(request.into_body(), MAX_BYTES)
            .await
            .map_err(|error| InternalApiError::InvalidRequest(error.to_string()))?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| InternalApiError::InvalidRequest(error.to_string()))
    }
}

/// The lease that a run's call is made under: the job from the path, the rest from the headers.
pub(crate) struct Leased(pub Lease);

impl FromRequestParts<AppState> for Leased {
    type Rejection = InternalApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AppState,
    ) -> Result<Self, InternalApiError> {
        #[derive(Deserialize)]
        struct OfJob {
            job: JobId,
        }
        let Path(OfJob { job }) = Path::<OfJob>::from_request_parts(parts, state)
            .await
            .map_err(|error| InternalApiError::InvalidRequest(error.body_text()))?;
        let header = |name: &str| {
            parts.headers.get(name).and_then(|value| value.to_str().ok()).ok_or_else(|| {
                InternalApiError::InvalidRequest(format!("the header {name} is missing"))
            })
        };
        let fence = header(FENCE_HEADER)?.parse().map_err(|_| {
            InternalApiError::InvalidRequest(format!("{FENCE_HEADER} is not a number"))
        })?;
        Ok(Self(Lease::parse(job, fence, header(LEASE_HEADER)?)?))
    }
}
