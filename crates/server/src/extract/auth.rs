//! Who calls: a project's key on the public API, a worker's key on the internal one.
//!
//! Keys are opaque and may hold spaces: everything after the first space of the header is the key.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderValue;
use axum::http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use axum::http::request::Parts;
use store::{KeyKind, Principal, Project, keys};

use crate::error::{ApiError, ApiResult};
use crate::internal::InternalApiError;
use crate::limits::{Charge, Class};
use crate::observe::Told;
use crate::state::AppState;

const ORGANIZATION: HeaderName = HeaderName::from_static("openai-organization");

/// The authenticated project of a public call, within its limits.
pub(crate) struct Caller(pub Project);

/// The same of a call that asks a model, whose tokens count.
pub(crate) struct Asker {
    pub project: Project,
    state: AppState,
    told: Told,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let project = project(parts, state).await?;
        let counted = state.limits.request(&project.id, Class::Other);
        if counted.is_err() {
            told(parts).tell(state.limits.headers(&project.id, Class::Other));
        }
        counted.map(|()| Self(project)).map_err(ApiError::RateLimited)
    }
}

impl FromRequestParts<AppState> for Asker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let project = project(parts, state).await?;
        let counted = state.limits.request(&project.id, Class::Completion);
        let asker = Self { project, state: state.clone(), told: told(parts) };
        asker.tell();
        counted.map(|()| asker).map_err(ApiError::RateLimited)
    }
}

impl Asker {
    /// Takes the tokens of a prompt and of the longest answer it may have.
    pub(crate) fn charge(&self, prompt: u64, answer: u64) -> ApiResult<Arc<Charge>> {
        let charge = Charge::take(&self.state.limits, &self.project.id, prompt, answer);
        self.tell();
        charge.map_err(ApiError::RateLimited)
    }

    fn tell(&self) {
        self.told.tell(self.state.limits.headers(&self.project.id, Class::Completion));
    }
}

/// The project of the key, which is told as its organisation.
async fn project(parts: &Parts, state: &AppState) -> ApiResult<Project> {
    let key = key(parts).ok_or(ApiError::MissingKey)?;
    match keys::authenticate(&state.store.db, &key).await? {
        Some(Principal { project, kind: KeyKind::Project, .. }) => {
            if let Ok(slug) = HeaderValue::from_str(&project.organization_slug) {
                told(parts).tell(HeaderMap::from_iter([(ORGANIZATION, slug)]));
            }
            Ok(project)
        }
        Some(_) => Err(ApiError::Forbidden(
            "You have insufficient permissions for this operation: a worker's token opens \
             the internal API only. Use an API key."
                .to_owned(),
        )),
        None => Err(ApiError::WrongKey(masked(&key))),
    }
}

fn told(parts: &Parts) -> Told {
    parts.extensions.get::<Told>().cloned().unwrap_or_default()
}

/// An authenticated worker.
pub(crate) struct Worker;

impl FromRequestParts<AppState> for Worker {
    type Rejection = InternalApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AppState,
    ) -> Result<Self, InternalApiError> {
        let key = key(parts).ok_or(InternalApiError::Unauthorized)?;
        match keys::authenticate(&state.store.db, &key).await? {
            Some(Principal { kind: KeyKind::Worker, .. }) => Ok(Self),
            Some(_) => Err(InternalApiError::NotAWorker),
            None => Err(InternalApiError::Unauthorized),
        }
    }
}

fn key(parts: &Parts) -> Option<String> {
    let text = |name: &str| {
        let value = parts.headers.get(name)?;
        std::str::from_utf8(value.as_bytes()).ok().map(str::to_owned)
    };
    let bearer = text(AUTHORIZATION.as_str()).and_then(|header| {
        let (scheme, key) = header.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.to_owned())
    });
    bearer.or_else(|| text("api-key")).filter(|key| !key.is_empty())
}

/// Enough of a key to recognise it, too little to use it.
fn masked(key: &str) -> String {
    let characters: Vec<char> = key.chars().collect();
    if characters.len() < 12 {
        return "*".repeat(characters.len());
    }
    let (head, tail) = (&characters[..3], &characters[characters.len() - 4..]);
    format!("{}*****{}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(headers: &[(&str, &str)]) -> Option<String> {
        let mut request = axum::http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        key(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_key_is_everything_after_the_first_space() {
        let key = |headers: &[(&str, &str)]| key_of(headers);
        assert_eq!(key(&[("authorization", "Bearer a b  c")]).as_deref(), Some("a b  c"));
        assert_eq!(key(&[("authorization", "bearer x")]).as_deref(), Some("x"));
        assert_eq!(key(&[("api-key", "azure key")]).as_deref(), Some("azure key"));
        assert_eq!(key(&[("authorization", "Bearer")]), None);
        assert_eq!(key(&[("authorization", "Basic eDp5")]), None);
        assert_eq!(key(&[]), None);
    }

    #[test]
    fn a_masked_key_cannot_be_used() {
        assert_eq!(masked("short"), "*****");
        assert_eq!(masked("ftk_proj_0123456789"), "ftk*****6789");
    }
}
