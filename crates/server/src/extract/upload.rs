//! A multipart form with content, streamed: its bytes go to storage as they arrive, in whatever order
//! the form's parts come, and never more than a few chunks are in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, ready};

use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};

use super::body;
use super::path::without_nul;
use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// Room for the parts beside the file.
const OVERHEAD_BYTES: u64 = 1024 * 1024;
/// A part's headers, or what stands before the first part.
const MAX_UNPARSED_BYTES: u64 = 1024 * 1024;
const MAX_FIELD_BYTES: usize = 4096;

/// Bytes of the content, or why there are no more.
pub(crate) type Chunk = Result<Bytes, String>;

/// Where the content of a form goes.
pub(crate) trait Destination: Sync {
    /// Stored but not yet visible; dropping it removes it.
    type Stored: Send;

    /// The form's part that holds the content.
    const NAME: &'static str;
    /// The parts that may stand beside it.
    const FIELDS: &'static [&'static str];

    /// Most bytes of the content.
    fn limit(&self) -> u64;

    fn store(
        &self,
        chunks: BoxStream<'_, Chunk>,
    ) -> impl Future<Output = Result<Self::Stored, store::Error>> + Send;
}

/// What a form held: the content with its filename, and the fields.
pub(crate) struct Form<T> {
    pub content: Option<(String, T)>,
    pub fields: BTreeMap<String, String>,
}

/// Reads the whole form, its content into the destination.
pub(crate) async fn receive<D: Destination>(
    state: &AppState,
    destination: &D,
    request: Request,
) -> ApiResult<Form<D::Stored>> {
    let limit = destination.limit();
    // A body somewhat over the limit is read to its end, so that its sender gets to read the
    // answer; one far beyond is cut.
    let most = limit.saturating_mul(2).saturating_add(OVERHEAD_BYTES);
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most) {
        return Err(too_large(D::NAME, limit));
    }
    let unparsed = Arc::new(AtomicU64::new(0));
    let request = request.map(|body| Body::from_stream(guarded(body, most, unparsed.clone())));
    let mut multipart = Multipart::from_request(request, state).await.map_err(|_| {
        let beside = if D::FIELDS.contains(&"purpose") { " and 'purpose'" } else { "" };
        let parts = format!("'{}'{beside}", D::NAME);
        ApiError::BadRequest(format!("The request must be multipart/form-data with {parts}."))
    })?;
    let mut form = Form { content: None, fields: BTreeMap::new() };
    while let Some(field) = multipart.next_field().await.map_err(|e| explain(&e))? {
        unparsed.store(0, Ordering::Relaxed);
        let name = field.name().unwrap_or_default().to_owned();
        if name == D::NAME {
            if form.content.is_some() {
                let message = format!("Send '{name}' once: one file or part at a time.");
                return Err(ApiError::invalid_value(name, message));
            }
            let filename = without_nul(field.file_name().unwrap_or("upload").to_owned());
            let content = store(destination, field, &unparsed).await?;
            form.content = Some((filename, content));
        } else if D::FIELDS.contains(&name.as_str()) {
            let value = short_text(field, &name, &unparsed).await?;
            form.fields.insert(name, without_nul(value));
        } else {
            return Err(ApiError::unknown_parameter(without_nul(name)));
        }
    }
    Ok(form)
}

async fn store<D: Destination>(
    destination: &D,
    field: Field<'_>,
    unparsed: &AtomicU64,
) -> ApiResult<D::Stored> {
    let limit = destination.limit();
    let is_over = AtomicBool::new(false);
    let chunks = stream::try_unfold((field, 0u64), |(mut field, mut size)| {
        let is_over = &is_over;
        async move {
            while let Some(chunk) = field.chunk().await? {
                unparsed.store(0, Ordering::Relaxed);
                size += chunk.len() as u64;
                if size <= limit {
                    return Ok::<_, MultipartError>(Some((chunk, (field, size))));
                }
                is_over.store(true, Ordering::Relaxed);
            }
            Ok(None)
        }
    });
    // The sender's fault has to be told from the storage's, which the store cannot do.
    let mut fault = None;
    let uploaded = {
        let fault = &mut fault;
        let chunks = chunks.map(|chunk| {
            chunk.map_err(|error| {
                let text = error.to_string();
                *fault = Some(error);
                text
            })
        });
        destination.store(Box::pin(chunks)).await
    };
    if let Some(error) = fault {
        return Err(explain(&error));
    }
    let uploaded = uploaded?;
    if is_over.into_inner() {
        return Err(too_large(D::NAME, limit));
    }
    Ok(uploaded)
}

async fn short_text(mut field: Field<'_>, name: &str, unparsed: &AtomicU64) -> ApiResult<String> {
    let mut text = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|e| explain(&e))? {
        unparsed.store(0, Ordering::Relaxed);
        if text.len() + chunk.len() > MAX_FIELD_BYTES {
            return Err(ApiError::too_long(name, MAX_FIELD_BYTES, text.len() + chunk.len()));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).map_err(|_| {
        ApiError::invalid_value(name, format!("Invalid value for '{name}': it is not UTF-8."))
    })
}

#[derive(Debug, thiserror::Error)]
enum GuardError {
    #[error("the body is longer than {0} bytes")]
    TooLong(u64),
    #[error("the headers of a part are longer than {MAX_UNPARSED_BYTES} bytes")]
    NoPart,
}

/// The body's chunks, cut off when there are too many of them, or when the parser swallows more and
/// more without finding a part in them (it would keep them all).
///
/// After each chunk the stream is once "not ready": the parser reads for as long as there is
/// something to read before it hands anything on, and would gather a fast sender's whole file.
fn guarded(
    body: Body,
    most: u64,
    unparsed: Arc<AtomicU64>,
) -> impl Stream<Item = Result<Bytes, axum::BoxError>> + Send {
    let mut chunks = body.into_data_stream();
    let mut total = 0u64;
    let mut has_just_given = false;
    stream::poll_fn(move |context| {
        if std::mem::take(&mut has_just_given) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(chunk) = ready!(chunks.poll_next_unpin(context)) else {
            return Poll::Ready(None);
        };
        has_just_given = true;
        Poll::Ready(Some(chunk.map_err(Into::into).and_then(|chunk| {
            let length = chunk.len() as u64;
            total += length;
            if unparsed.fetch_add(length, Ordering::Relaxed) > MAX_UNPARSED_BYTES {
                return Err(GuardError::NoPart.into());
            }
            if total > most { Err(GuardError::TooLong(most).into()) } else { Ok(chunk) }
        })))
    })
}

pub(crate) fn too_large(name: &str, limit: u64) -> ApiError {
    let what = if name == "data" { "part" } else { name };
    ApiError::PayloadTooLarge(format!("The {what} is larger than the limit of {limit} bytes."))
}

fn explain(error: &MultipartError) -> ApiError {
    match body::explain(error) {
        ApiError::BadRequest(_) => {
            let chain = crate::error::ErrorChain(error);
            ApiError::BadRequest(format!("The upload could not be read to its end: {chain}."))
        }
        other => other,
    }
}
