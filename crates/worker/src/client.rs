//! The internal API, typed: one function per call of `domain::internal`'s table.
//!
//! Each function makes one attempt and says in its error whether another one is sensible. Retrying
//! is the caller's, because only the caller knows what to do in the meantime.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use domain::ModelId;
use domain::internal::{
    AdapterRef, BaseModel, ClaimRequest, ClaimedRun, InferenceTask, InternalError, NextInference,
};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;

use crate::Error;

/// Plain calls answer in milliseconds; beyond this the connection is as good as gone.
pub(crate) const SHORT_CALL: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The run belongs to somebody else, or to nobody: stop it.
    #[error("the lease of this run is gone")]
    LeaseLost,
    /// No answer, or one that says "not now": the call may be repeated as it is.
    #[error("{0}")]
    Unreachable(String),
    /// A repetition would be refused in the same way.
    #[error("the server refused {call}: {status} {code}: {message}")]
    Refused { call: String, status: u16, code: String, message: String },
}

/// A connection to the servers. A clone shares the connections, and calls the server that answered
/// last.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// `http://host:port/internal/v1/`, at least one.
    servers: Arc<[String]>,
    current: Arc<AtomicUsize>,
    authorization: HeaderValue,
}

impl Client {
    pub fn new(server_urls: &[String], token: &SecretString) -> Result<Self, Error> {
        if server_urls.is_empty() {
            return Err(Error::NoServer);
        }
        let mut servers = Vec::with_capacity(server_urls.len());
        let mut all_local = true;
        for text in server_urls {
            let url = reqwest::Url::parse(text)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .ok_or_else(|| Error::ServerUrl(text.clone()))?;
            all_local &= matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            servers.push(format!("{}/internal/v1/", url.as_str().trim_end_matches('/')));
        }
        let bearer = format!("Bearer {}", token.expose_secret());
        let mut authorization = HeaderValue::from_str(&bearer).map_err(|_| Error::Token)?;
        authorization.set_sensitive(true);
        let mut builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Duration::from_secs(20));
        if all_local {
            // A proxy of the machine must not stand between the parts of `finetuned up`.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| Error::Http(chain(&e)))?;
        Ok(Self { http, servers: servers.into(), current: Arc::default(), authorization })
    }

    /// A client of each server alone: an answer goes to the server that asked.
    pub fn each(&self) -> Vec<Self> {
        let only = |server: &String| Self {
            servers: [server.clone()].into(),
            current: Arc::default(),
            ..self.clone()
        };
        self.servers.iter().map(only).collect()
    }

    /// A client that starts at the server in use now and fails over on its own.
    pub fn detached(&self) -> Self {
        let current = Arc::new(AtomicUsize::new(self.current.load(Ordering::Relaxed)));
        Self { current, ..self.clone() }
    }

    /// Lets the next call go to the next server.
    pub fn rotate(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn server(&self) -> &str {
        &self.servers[self.current.load(Ordering::Relaxed) % self.servers.len()]
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.server()))
            .header(AUTHORIZATION, self.authorization.clone())
    }

    /// Sends a request and sorts the answers; `call` names it in errors.
    pub(crate) async fn send(&self, call: &str, r: RequestBuilder) -> Result<Response, CallError> {
        match r.send().await {
            Ok(response) if response.status().is_success() => Ok(response),
            Ok(response) => {
                let status = response.status();
                let body = response.bytes().await.unwrap_or_default();
                let error = sort_refusal(call, status, &body);
                if matches!(error, CallError::Unreachable(_)) {
                    self.rotate();
                }
                Err(error)
            }
            Err(error) => {
                let server = self.server().to_owned();
                self.rotate();
                Err(CallError::Unreachable(format!("{call} at {server}: {}", chain(&error))))
            }
        }
    }

    pub async fn claim(&self, request: &ClaimRequest) -> Result<Option<ClaimedRun>, CallError> {
        let call = self.request(Method::POST, "runs/claim").json(request);
        self.long_poll("runs/claim", request.wait_seconds, call).await
    }

    pub async fn models(&self) -> Result<Vec<BaseModel>, CallError> {
        let call = self.request(Method::GET, "models").timeout(SHORT_CALL);
        read_json("models", self.send("models", call).await?).await
    }

    pub async fn model_file(&self, model: &ModelId, name: &str) -> Result<Response, CallError> {
        let path = format!("models/{}/files/{}", segment(model.as_str()), segment(name));
        self.send(&path, self.request(Method::GET, &path)).await
    }

    pub async fn adapter_file(
        &self,
        adapter: &AdapterRef,
        name: &str,
    ) -> Result<Response, CallError> {
        let id = segment(adapter.model_id.as_str());
        let path = format!("adapters/{id}/files/{}", segment(name));
        self.send(&path, self.request(Method::GET, &path)).await
    }

    pub async fn next_inference(
        &self,
        request: &NextInference,
    ) -> Result<Option<InferenceTask>, CallError> {
        let call = self.request(Method::POST, "inference/next").json(request);
        self.long_poll("inference/next", request.wait_seconds, call).await
    }

    /// Streams an answer; returns when the server has all of it, or wants no more of it.
    pub async fn inference_events(&self, id: &str, body: reqwest::Body) -> Result<(), CallError> {
        let path = format!("inference/{}/events", segment(id));
        let call = self
            .request(Method::POST, &path)
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(body);
        self.send(&path, call).await.map(drop)
    }

    async fn long_poll<T: DeserializeOwned>(
        &self,
        call: &str,
        wait_seconds: u64,
        request: RequestBuilder,
    ) -> Result<Option<T>, CallError> {
        let limit = Duration::from_secs(wait_seconds) + SHORT_CALL / 2;
        let response = self.send(call, request.timeout(limit)).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            _ => read_json(call, response).await.map(Some),
        }
    }
}

pub(crate) async fn read_json<T: DeserializeOwned>(
    call: &str,
    response: Response,
) -> Result<T, CallError> {
    let status = response.status().as_u16();
    let body = response.bytes().await.map_err(|e| {
        CallError::Unreachable(format!("{call}: the answer broke off: {}", chain(&e)))
    })?;
    serde_json::from_slice(&body).map_err(|e| CallError::Refused {
        call: call.to_owned(),
        status,
        code: "unreadable_answer".to_owned(),
        message: format!("{e}; do server and worker have the same version?"),
    })
}

fn sort_refusal(call: &str, status: StatusCode, body: &[u8]) -> CallError {
    let error = serde_json::from_slice::<InternalError>(body).unwrap_or_else(|_| InternalError {
        code: status.canonical_reason().unwrap_or("unknown").to_owned(),
        message: String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned(),
    });
    let InternalError { code, message } = error;
    match status {
        StatusCode::CONFLICT if code == "lease_lost" => CallError::LeaseLost,
        // A token is rotated while its workers run: not a reason to throw a run away.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => CallError::Unreachable(format!(
            "{call}: the server refuses this worker's token ({status}); check `worker.token`"
        )),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            CallError::Unreachable(format!("{call}: {status}: {message}"))
        }
        _ if status.is_server_error() => {
            CallError::Unreachable(format!("{call}: {status}: {message}"))
        }
        _ => CallError::Refused { call: call.to_owned(), status: status.as_u16(), code, message },
    }
}

/// An error with its causes: reqwest's own text stops before the interesting part.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Text as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' => {
                out.push(char::from(byte));
            }
            _ => write!(out, "%{byte:02X}").expect("a String takes all text"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_never_ends_its_path() {
        assert_eq!(segment("ft:base:org::a1"), "ft:base:org::a1");
        assert_eq!(segment("a/b?c#d é"), "a%2Fb%3Fc%23d%20%C3%A9");
    }

    #[test]
    fn only_lease_lost_ends_a_run_and_only_a_plain_refusal_is_final() {
        let lost = br#"{"code":"lease_lost","message":"gone"}"#;
        assert!(matches!(sort_refusal("x", StatusCode::CONFLICT, lost), CallError::LeaseLost));
        let other = br#"{"code":"conflict","message":"no"}"#;
        let refusal = sort_refusal("x", StatusCode::CONFLICT, other);
        assert!(matches!(refusal, CallError::Refused { status: 409, .. }));
        for status in [401, 408, 429, 500, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = sort_refusal("x", status, b"<html>");
            assert!(matches!(error, CallError::Unreachable(_)), "{status}");
        }
    }
}
