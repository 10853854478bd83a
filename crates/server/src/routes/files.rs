//! Files: upload, list, retrieve, content, delete.

use std::ops::Range;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::json;
use store::files::{self, NewFile};
use store::idempotency::Created;
use store::{Project, Uploaded};

use crate::base64_text::Base64;
use crate::convert::{self, OrNotFound, page_query};
use crate::error::{ApiError, ApiResult};
use crate::extract::upload::{self, Destination};
use crate::extract::{Caller, Id, Page};
use crate::file_rules;
use crate::repeats;
use crate::results::STEP_METRICS;
use crate::state::AppState;
use crate::wire::error::ErrorEnvelope;
use crate::wire::file::{Deleted, File};
use crate::wire::list::List;
use crate::wire::query::{OrderParam, PageParams};

const LIST_SIZES: (u32, u32) = (10_000, 10_000);
const ANCHOR: &str = "expires_after[anchor]";
const SECONDS: &str = "expires_after[seconds]";

/// Upload a file. The parts may come in any order.
#[utoipa::path(post, path = "/files", tag = "Files", operation_id = "createFile",
    request_body(content_type = "multipart/form-data", content = NewFileForm),
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = File)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    headers: HeaderMap,
    request: Request,
) -> ApiResult<Json<File>> {
    let form =
        upload::receive(&state, &Files { state: &state, project: &project }, request).await?;
    let (filename, content) = form.content.ok_or_else(|| ApiError::missing("file"))?;
    let field = |name: &str| form.fields.get(name).map(String::as_str);
    let purpose = field("purpose").ok_or_else(|| ApiError::missing("purpose"))?;
    file_rules::check_purpose(purpose, &filename)?;
    let most = file_rules::largest(&state.config, purpose, u64::MAX);
    if content.bytes() > most {
        return Err(upload::too_large(Files::NAME, most));
    }
    if content.bytes() == 0 {
        let message = "File is empty.".to_owned();
        return Err(ApiError::Parameter { code: None, param: "file".to_owned(), message });
    }
    let seconds = field(SECONDS).map(str::parse).transpose();
    let seconds = seconds.map_err(|_| ApiError::invalid_type(SECONDS, "an integer", "a string"))?;
    let name = |name: &str| format!("expires_after[{name}]");
    let expires_after = file_rules::life(purpose, field(ANCHOR), seconds, name)?;
    let asked = json!({
        "filename": filename,
        "purpose": purpose,
        "expires_after": expires_after.map(|life| life.as_secs()),
        "sha256": content.sha256(),
    });
    let once = repeats::once(&headers, Created::File, &asked)?;
    let new = NewFile { filename, purpose: purpose.to_owned(), expires_after };
    Ok(Json(convert::file(content.commit(new, Some(once)).await?)))
}

struct Files<'a> {
    state: &'a AppState,
    project: &'a Project,
}

impl Destination for Files<'_> {
    type Stored = Uploaded;

    const NAME: &'static str = "file";
    const FIELDS: &'static [&'static str] = &["purpose", ANCHOR, SECONDS];

    fn limit(&self) -> u64 {
        self.state.config.max_file_bytes.as_u64()
    }

    async fn store(&self, chunks: BoxStream<'_, upload::Chunk>) -> Result<Uploaded, store::Error> {
        files::upload(&self.state.store, self.project, chunks, self.limit()).await
    }
}

/// The form of an upload, for the description of the API.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "the form is read part by part; this is its description")]
struct NewFileForm {
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `assistants`, `batch`, `fine-tune`, `vision`, `user_data` or `evals`.
    purpose: String,
    /// Always `created_at`.
    #[schema(rename = "expires_after[anchor]")]
    anchor: Option<String>,
    #[schema(rename = "expires_after[seconds]", minimum = 3600, maximum = 2592000)]
    seconds: Option<u32>,
}

/// List files, the newest first.
#[utoipa::path(get, path = "/files", tag = "Files", operation_id = "listFiles",
    params(("purpose" = Option<String>, Query), PageParams, OrderParam),
    responses((status = 200, body = List<File>)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(project): Caller,
    page: Page,
) -> ApiResult<Json<List<File>>> {
    let query = page_query(&page, LIST_SIZES);
    let rows = files::list(&state.store.db, &project, page.purpose.as_deref(), &query).await?;
    Ok(Json(convert::list(rows, convert::file)))
}

/// One file's description.
#[utoipa::path(get, path = "/files/{file_id}", tag = "Files", operation_id = "retrieveFile",
    params(("file_id" = String, Path)),
    responses((status = 200, body = File)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<File>> {
    let row = files::get(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::FileNotFound(id))?;
    Ok(Json(convert::file(row)))
}

/// Delete a file. Refused while a job that has not ended uses it.
#[utoipa::path(delete, path = "/files/{file_id}", tag = "Files", operation_id = "deleteFile",
    params(("file_id" = String, Path)),
    responses((status = 200, body = Deleted)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Deleted>> {
    files::delete(&state.store, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::FileNotFound(id.clone()))?;
    Ok(Json(Deleted { id, object: "file", deleted: true }))
}

#[derive(Deserialize)]
pub(crate) struct Format {
    #[serde(default)]
    format: String,
}

/// A file's bytes. OpenAI's service answers with a job's `step_metrics.csv` in base64, and so does
/// this one, unless `format=csv` asks for the plain text. Ranges are served for everything plain.
#[utoipa::path(get, path = "/files/{file_id}/content", tag = "Files",
    operation_id = "downloadFile",
    params(("file_id" = String, Path), ("format" = Option<String>, Query,
        description = "With `csv`, a result file is plain text."),
        ("Range" = Option<String>, Header, description = "One range of bytes.")),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 416, body = ErrorEnvelope)))]
pub(crate) async fn content(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Query(Format { format }): Query<Format>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let not_found = || ApiError::FileNotFound(id.clone());
    let file_id = id.as_str().into();
    let row = files::get(&state.store.db, &project, &file_id).await.or_not_found(not_found)?;
    let in_base64 =
        row.purpose == "fine-tune-results" && row.filename == STEP_METRICS && format != "csv";
    let range = if in_base64 { None } else { range(&headers, row.bytes)? };
    let (_, reader) = files::open(&state.store, &project, &file_id, range.clone())
        .await
        .or_not_found(not_found)?;
    let body = if in_base64 {
        Body::from_stream(Base64::new(reader.stream))
    } else {
        Body::from_stream(reader.stream)
    };
    let mut response = Response::new(body);
    let answer = response.headers_mut();
    let kind = if format == "csv" { "text/csv; charset=utf-8" } else { "application/octet-stream" };
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if !in_base64 {
        let length = reader.range.end - reader.range.start;
        answer.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if let Some(disposition) = disposition(&row.filename) {
        answer.insert(header::CONTENT_DISPOSITION, disposition);
    }
    if let Some(Range { start, end }) = range {
        let text = format!("bytes {start}-{}/{}", end - 1, row.bytes);
        let value = HeaderValue::from_str(&text).map_err(ApiError::internal)?;
        answer.insert(header::CONTENT_RANGE, value);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response.into_response())
}

/// The file's name for a browser, in plain ASCII.
fn disposition(filename: &str) -> Option<HeaderValue> {
    let plain: String = filename
        .chars()
        .map(|c| if c.is_ascii_graphic() && !matches!(c, '"' | '\\') { c } else { '_' })
        .collect();
    HeaderValue::from_str(&format!("attachment; filename=\"{plain}\"")).ok()
}

/// The range asked for, if it is one that is served: a single one of bytes. Others are ignored, as
/// the standard lets a server do.
fn range(headers: &HeaderMap, size: u64) -> ApiResult<Option<Range<u64>>> {
    let Some(spec) = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok()?.strip_prefix("bytes="))
        .filter(|spec| !spec.contains(','))
    else {
        return Ok(None);
    };
    let Some((first, last)) = spec.trim().split_once('-') else { return Ok(None) };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(tail)) if first.is_empty() => size.saturating_sub(tail)..size,
        _ => return Ok(None),
    };
    if range.is_empty() {
        return Err(ApiError::RangeNotSatisfiable(size));
    }
    Ok(Some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_byte_ranges_are_served_and_odd_ones_ignored() {
        let of = |spec: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, spec.parse().unwrap());
            range(&headers, 100)
        };
        assert_eq!(of("bytes=0-9").unwrap(), Some(0..10));
        assert_eq!(of("bytes=90-").unwrap(), Some(90..100));
        assert_eq!(of("bytes=-30").unwrap(), Some(70..100));
        assert_eq!(of("bytes=90-500").unwrap(), Some(90..100));
        for odd in ["bytes=5-2", "bytes=0-1,5-6", "bytes=x-y", "lines=1-2"] {
            assert_eq!(of(odd).unwrap(), None, "{odd}");
        }
        assert!(matches!(of("bytes=100-"), Err(ApiError::RangeNotSatisfiable(100))));
        assert!(matches!(of("bytes=-0"), Err(ApiError::RangeNotSatisfiable(100))));
    }
}
