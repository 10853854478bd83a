//! The ids in a path: each one segment, percent-decoded. Ids are opaque; whatever is none of ours is not
//! found.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::error::ApiError;
use crate::state::AppState;

/// The only path parameter of a route.
pub(crate) struct Id(pub String);

impl FromRequestParts<AppState> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(without_nul(id))),
            Err(_) => Err(ApiError::UnknownRoute {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
            }),
        }
    }
}

/// The two path parameters of a route, in their order.
pub(crate) struct Ids(pub String, pub String);

impl FromRequestParts<AppState> for Ids {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((first, second))) => Ok(Self(without_nul(first), without_nul(second))),
            Err(_) => Err(ApiError::UnknownRoute {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
            }),
        }
    }
}

/// A text that a database can compare: a NUL, which none can hold, becomes a character that no id
/// holds.
pub(crate) fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// All path parameters of a route that has more than two, in their order.
pub(crate) struct Segments<const N: usize>(pub [String; N]);

impl<const N: usize> FromRequestParts<AppState> for Segments<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let found = Path::<Vec<String>>::from_request_parts(parts, state).await.ok();
        let ids = found.map(|Path(ids)| ids.into_iter().map(without_nul).collect::<Vec<_>>());
        match ids.map(<[String; N]>::try_from) {
            Some(Ok(ids)) => Ok(Self(ids)),
            _ => Err(ApiError::UnknownRoute {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
            }),
        }
    }
}
