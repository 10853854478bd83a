//! The list of routes. What is listed here is what `/openapi.json` describes: both come from the
//! handlers.

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::Request;
use tower::util::MapRequestLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::describe::{self, Description};
use crate::error::ApiError;
use crate::heads;
use crate::internal;
use crate::observe::{after_panic, observe};
use crate::routes::{
    bad_lines, completions, estimate, evals, files, graders, health, jobs, models, permissions,
    preview, reports, scores, stored, texts, uploads, validation, webhooks,
};
use crate::state::AppState;

/// The public API below its prefix.
fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(files::create, files::list))
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(files::content))
        .routes(routes!(uploads::create))
        .routes(routes!(uploads::retrieve))
        .routes(routes!(uploads::add_part))
        .routes(routes!(uploads::complete))
        .routes(routes!(uploads::cancel))
        .routes(routes!(jobs::create, jobs::list))
        .routes(routes!(validation::create))
        .routes(routes!(bad_lines::create))
        .routes(routes!(preview::create))
        .routes(routes!(jobs::retrieve, jobs::update, jobs::delete))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::pause))
        .routes(routes!(jobs::resume))
        .routes(routes!(jobs::events))
        .routes(routes!(jobs::checkpoints))
        .routes(routes!(reports::retrieve, reports::create))
        .routes(routes!(permissions::create, permissions::list))
        .routes(routes!(permissions::delete))
        .routes(routes!(estimate::create))
        .routes(routes!(scores::create))
        .routes(routes!(graders::validate))
        .routes(routes!(graders::run))
        .routes(routes!(evals::create, evals::list))
        .routes(routes!(evals::retrieve, evals::update, evals::delete))
        .routes(routes!(evals::create_run, evals::list_runs))
        .routes(routes!(evals::retrieve_run, evals::cancel_run, evals::delete_run))
        .routes(routes!(evals::cancel))
        .routes(routes!(evals::list_items))
        .routes(routes!(evals::retrieve_item))
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve, models::delete))
        .routes(routes!(models::weights))
        .routes(routes!(completions::create, stored::list))
        .routes(routes!(stored::retrieve, stored::update, stored::delete))
        .routes(routes!(stored::messages))
        .routes(routes!(texts::create))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::retrieve, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::rotate_secret))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::event_types))
        .routes(routes!(webhooks::list_deliveries))
        .routes(routes!(webhooks::redeliver))
}

/// The public routes and their description.
pub(crate) fn public() -> (Router<AppState>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .nest("/v1", api())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(describe::openapi))
        .routes(routes!(describe::docs))
        .split_for_parts()
}

pub(crate) fn router(state: AppState) -> Router {
    let (public, _) = public();
    let azure = Router::from(api());
    let body_idle_timeout = state.config.body_idle_timeout;
    // The limits on bodies are the extractors' own, each with its answer in the API's shape.
    let unboxed = |request: Request<_>| request.map(Body::new);
    public
        .nest("/openai/v1", azure.clone())
        .nest("/openai", azure)
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::disable())
        .layer(MapRequestLayer::new(unboxed))
        .layer(RequestBodyTimeoutLayer::new(body_idle_timeout))
        .nest("/internal/v1", internal::router(body_idle_timeout))
        .layer(CatchPanicLayer::custom(after_panic))
        .layer(axum::middleware::from_fn(heads::fit))
        .layer(axum::middleware::from_fn(observe))
        .with_state(state)
}

async fn unknown_route(request: Request<Body>) -> ApiError {
    ApiError::UnknownRoute {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    }
}

async fn method_not_allowed(request: Request<Body>) -> ApiError {
    ApiError::MethodNotAllowed {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    }
}
