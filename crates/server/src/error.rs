//! One error type for the whole public API, and the one match from error to status, type, code and
//! param.
//!
//! What a client reads is the `Display` text; what went wrong inside is logged once, here, and
//! never sent.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::limits::{Measure, Refusal};
use crate::wire::error::{ErrorBody, ErrorEnvelope};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

pub(crate) type ApiResult<T> = Result<T, ApiError>;

/// Everything that a public call may answer instead of success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error(
        "You did not provide an API key. Send it in the Authorization header with Bearer auth \
         (Authorization: Bearer YOUR_KEY) or in the header api-key."
    )]
    MissingKey,
    #[error(
        "Incorrect API key provided: {0}. Keys are made with `finetuned keys create`; \
         `finetuned up` prints where its own key lies."
    )]
    WrongKey(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("Invalid URL ({method} {path})")]
    UnknownRoute { method: String, path: String },
    #[error("Not allowed to {method} on {path}; perhaps another HTTP method was meant.")]
    MethodNotAllowed { method: String, path: String },
    #[error("We could not parse the JSON body of your request: {0}")]
    MalformedJson(String),
    /// One field of the request is wrong.
    #[error("{message}")]
    Parameter { code: Option<&'static str>, param: String, message: String },
    /// The request as a whole cannot be served.
    #[error("{0}")]
    BadRequest(String),
    #[error("No such File object: {0}")]
    FileNotFound(String),
    #[error("No such Upload object: {0}")]
    UploadNotFound(String),
    /// A body names a file that does not exist.
    #[error("No such File object: {id}")]
    ReferencedFileNotFound { param: &'static str, id: String },
    /// An id in the path that names nothing here, where OpenAI has no words of its own for it.
    #[error("{what} not found: {id}")]
    NoSuch { what: &'static str, param: &'static str, id: String },
    #[error("Could not find fine tune: {0}")]
    JobNotFound(String),
    #[error("The model '{0}' does not exist")]
    ModelNotFound(String),
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    ChatModelNotFound(String),
    #[error("Model {0} is not available for fine-tuning or does not exist.")]
    ModelNotTrainable(String),
    #[error("Could not find chat completion: {0}")]
    CompletionNotFound(String),
    #[error("{0}")]
    ContextLengthExceeded(String),
    #[error("{0}")]
    PayloadTooLarge(String),
    #[error("The request body did not arrive in time.")]
    RequestTimeout,
    #[error("The range is outside the file, which has {0} bytes.")]
    RangeNotSatisfiable(u64),
    #[error("The headers of the request are larger than the limit of {0} bytes, or more than {1}.")]
    HeadTooLarge(usize, usize),
    #[error("{0}")]
    RateLimited(Refusal),
    /// Passing trouble; another try may succeed.
    #[error("{message}")]
    Unavailable { message: String, retry_after_seconds: u64 },
    #[error("The server had an error while processing your request. The log has the details.")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What the one match yields.
struct Shape<'a> {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'a str>,
    param: Option<&'a str>,
}

impl ApiError {
    pub(crate) fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'.");
        Self::Parameter { code: Some("missing_required_parameter"), param, message }
    }

    pub(crate) fn unknown_parameter(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Unknown parameter: '{param}'.");
        Self::Parameter { code: Some("unknown_parameter"), param, message }
    }

    pub(crate) fn invalid_type(param: impl Into<String>, expected: &str, got: &str) -> Self {
        let param = param.into();
        let message =
            format!("Invalid type for '{param}': expected {expected}, but got {got} instead.");
        Self::Parameter { code: Some("invalid_type"), param, message }
    }

    /// A value outside a closed set of words.
    pub(crate) fn unsupported_value(
        param: impl Into<String>,
        value: &str,
        supported: &[&str],
    ) -> Self {
        let listed: Vec<String> = supported.iter().map(|word| format!("'{word}'")).collect();
        let listed = listed.join(", ");
        let message = format!("Invalid value: '{value}'. Supported values are: {listed}.");
        Self::invalid_value(param, message)
    }

    pub(crate) fn invalid_value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Parameter {
            code: Some("invalid_value"),
            param: param.into(),
            message: message.into(),
        }
    }

    pub(crate) fn too_long(param: &str, maximum: usize, length: usize) -> Self {
        let message = format!(
            "Invalid '{param}': string too long. Expected a string with maximum length \
             {maximum}, but got a string with length {length} instead."
        );
        let code = Some("string_above_max_length");
        Self::Parameter { code, param: param.to_owned(), message }
    }

    pub(crate) fn too_many(param: &str, maximum: usize, length: usize) -> Self {
        let message = format!(
            "Invalid '{param}': array too long. Expected an array with maximum length {maximum}, but \
             got an array with length {length} instead."
        );
        let code = Some("array_above_max_length");
        Self::Parameter { code, param: param.to_owned(), message }
    }

    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }

    fn shape(&self) -> Shape<'_> {
        use StatusCode as S;
        const INVALID: &str = "invalid_request_error";
        let shape = |status, kind, code, param| Shape { status, kind, code, param };
        match self {
            Self::MissingKey => shape(S::UNAUTHORIZED, INVALID, None, None),
            Self::WrongKey(_) => shape(S::UNAUTHORIZED, INVALID, Some("invalid_api_key"), None),
            Self::Forbidden(_) => shape(S::FORBIDDEN, INVALID, None, None),
            Self::UnknownRoute { .. } => shape(S::NOT_FOUND, INVALID, None, None),
            Self::MethodNotAllowed { .. } => {
                shape(S::METHOD_NOT_ALLOWED, INVALID, Some("method_not_supported"), None)
            }
            Self::MalformedJson(_) | Self::BadRequest(_) => {
                shape(S::BAD_REQUEST, INVALID, None, None)
            }
            Self::Parameter { code, param, .. } => {
                shape(S::BAD_REQUEST, INVALID, *code, Some(param))
            }
            Self::FileNotFound(_) | Self::UploadNotFound(_) => {
                shape(S::NOT_FOUND, INVALID, None, Some("id"))
            }
            Self::ReferencedFileNotFound { param, .. } | Self::NoSuch { param, .. } => {
                shape(S::NOT_FOUND, INVALID, None, Some(param))
            }
            Self::JobNotFound(_) => {
                shape(S::NOT_FOUND, INVALID, Some("fine_tune_not_found"), Some("fine_tune_id"))
            }
            Self::ModelNotFound(_) => {
                shape(S::NOT_FOUND, INVALID, Some("model_not_found"), Some("model"))
            }
            Self::ChatModelNotFound(_) => {
                shape(S::NOT_FOUND, INVALID, Some("model_not_found"), None)
            }
            Self::ModelNotTrainable(_) => {
                shape(S::BAD_REQUEST, INVALID, Some("model_not_available"), None)
            }
            Self::CompletionNotFound(_) => {
                shape(S::NOT_FOUND, INVALID, Some("not_found"), Some("completion_id"))
            }
            Self::ContextLengthExceeded(_) => {
                shape(S::BAD_REQUEST, INVALID, Some("context_length_exceeded"), Some("messages"))
            }
            Self::PayloadTooLarge(_) => shape(S::PAYLOAD_TOO_LARGE, INVALID, None, None),
            Self::RequestTimeout => shape(S::REQUEST_TIMEOUT, INVALID, None, None),
            Self::RangeNotSatisfiable(_) => shape(S::RANGE_NOT_SATISFIABLE, INVALID, None, None),
            Self::HeadTooLarge(..) => {
                shape(S::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID, None, None)
            }
            Self::RateLimited(refusal) => {
                let kind = match refusal.measure {
                    Measure::Requests => "requests",
                    Measure::Tokens => "tokens",
                };
                shape(S::TOO_MANY_REQUESTS, kind, Some("rate_limit_exceeded"), None)
            }
            Self::Unavailable { .. } => shape(S::SERVICE_UNAVAILABLE, "server_error", None, None),
            Self::Internal(_) => shape(S::INTERNAL_SERVER_ERROR, "server_error", None, None),
        }
    }

    /// The field of the request that is wrong, by its path.
    pub(crate) fn param(&self) -> Option<&str> {
        self.shape().param
    }

    /// The body alone: for an error in the middle of a stream, whose status has long been sent.
    pub(crate) fn envelope(&self) -> ErrorEnvelope {
        let Shape { kind, code, param, .. } = self.shape();
        ErrorEnvelope {
            error: ErrorBody {
                message: self.to_string(),
                r#type: kind.to_owned(),
                param: param.map(str::to_owned),
                code: code.map(str::to_owned),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal(source) = &self {
            tracing::error!(error = ErrorChain(source.as_ref()).to_string(), "request failed");
        }
        let mut response = (self.shape().status, Json(self.envelope())).into_response();
        self.tell(response.headers_mut());
        response
    }
}

impl ApiError {
    /// The headers that say what to do next.
    fn tell(&self, headers: &mut HeaderMap) {
        match self {
            Self::Unavailable { retry_after_seconds, .. } => {
                retry_after(headers, Duration::from_secs(*retry_after_seconds));
            }
            Self::RateLimited(Refusal { wait: Some(wait), .. }) => retry_after(headers, *wait),
            // Clients try every 429 again by themselves.
            Self::RateLimited(_) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Self::RangeNotSatisfiable(total) => {
                if let Ok(value) = HeaderValue::from_str(&format!("bytes */{total}")) {
                    headers.insert(header::CONTENT_RANGE, value);
                }
            }
            Self::MissingKey | Self::WrongKey(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
    }
}

/// Another try is right, after so long: in whole seconds for everybody, in milliseconds for those who read them.
fn retry_after(headers: &mut HeaderMap, wait: Duration) {
    let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
    headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
    headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
}

/// An error with all its causes, in one line.
pub(crate) struct ErrorChain<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
