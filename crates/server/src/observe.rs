//! Around every request: an id, the time it took, the headers that clients and scripts read, one
//! log line, and a 500 in the API's own shape when a handler panics.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");

/// Headers of the answer to a request, for whoever learns on the way what they are. They are sent whatever the
/// answer becomes.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<HeaderMap>>);

impl Told {
    pub(crate) fn tell(&self, headers: HeaderMap) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(headers);
    }

    fn take(&self) -> HeaderMap {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(crate) async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let told = Told::default();
    request.extensions_mut().insert(told.clone());
    let id = incoming_id(&request).unwrap_or_else(new_id);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let client_id = request
        .headers()
        .get(CLIENT_REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let span = tracing::info_span!("request", id, client_id);
    let mut response = next.run(request).instrument(span.clone()).await;
    let elapsed = started.elapsed().as_millis() as u64;
    let status = response.status().as_u16();
    span.in_scope(|| {
        // Workers poll all the time; their calls would bury everybody else's.
        if path.starts_with("/internal/") || path == "/healthz" || path == "/readyz" {
            tracing::debug!(%method, path, status, elapsed_ms = elapsed, "answered");
        } else {
            tracing::info!(%method, path, status, elapsed_ms = elapsed, "answered");
        }
    });
    let headers = response.headers_mut();
    headers.extend(told.take());
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(elapsed));
    headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    response
}

fn new_id() -> String {
    format!("req_{}", uuid::Uuid::new_v4().simple())
}

/// An id that a proxy gave the request, if it is fit for a log line.
fn incoming_id(request: &Request) -> Option<String> {
    let text = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = (1..=128).contains(&text.len()) && text.chars().all(is_plain);
    fits.then(|| text.to_owned())
}

/// The answer after a panic in a handler.
pub(crate) fn after_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panic without a text".to_owned());
    ApiError::internal(text).into_response()
}
