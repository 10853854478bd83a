//! Is the process alive, and should it receive requests?

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use store::BlobKey;

use crate::state::AppState;

/// The process is alive. Looks at nothing else.
#[utoipa::path(get, path = "/healthz", operation_id = "checkHealth", tag = "Health", security(()),
    responses((status = 200, body = String)))]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers, the object store answers, and the server is not shutting down.
#[utoipa::path(get, path = "/readyz", operation_id = "checkReadiness", tag = "Health", security(()),
    responses((status = 200, body = String), (status = 503, body = String)))]
pub(crate) async fn readyz(State(state): State<AppState>) -> Response {
    if state.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response();
    }
    match check(&state).await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => {
            let error = crate::error::ErrorChain(&error).to_string();
            tracing::warn!(error, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "the database or the object store does not answer\n")
                .into_response()
        }
    }
}

async fn check(state: &AppState) -> store::Result<()> {
    state.store.db.ping().await?;
    // Any key does: an answer, even "no such blob", shows that the storage is there.
    let probe = BlobKey::File { project: "readiness".into(), file: "readiness".into() };
    state.store.blobs.head(&probe).await.map(|_| ())
}
