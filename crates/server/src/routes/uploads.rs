//! Uploads: files that come in parts. Create, add parts, complete, cancel; and, beyond OpenAI's
//! API, retrieve, so that a client that has lost its connection knows which parts are there.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use domain::UploadId;
use futures::stream::BoxStream;
use store::idempotency::Created;
use store::uploads::{self, Completion, NewUpload, PartLimits, StoredPart};
use store::{Error, Project};

use crate::convert::{self, OrNotFound};
use crate::error::{ApiError, ApiResult};
use crate::extract::upload::{self, Destination};
use crate::extract::{Caller, Id, Json as Body, JsonObject, from_value};
use crate::file_rules;
use crate::inference::prompt::integer;
use crate::repeats;
use crate::state::AppState;
use crate::wire::upload::{CompleteUpload, CreateUpload, Upload, UploadPart};

const MAX_MIME_TYPE_BYTES: usize = 255;

/// Begin an upload. It takes parts until it is completed, cancelled, or its time is over.
#[utoipa::path(post, path = "/uploads", tag = "Uploads", operation_id = "createUpload",
    request_body = CreateUpload,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Upload)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    headers: HeaderMap,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<Upload>> {
    let once = repeats::once(&headers, Created::Upload, &body)?;
    let body: CreateUpload = from_value(body)?;
    if body.filename.is_empty() {
        let message = "Invalid 'filename': empty string. Expected the file's name.";
        return Err(ApiError::invalid_value("filename", message));
    }
    file_rules::check_purpose(&body.purpose, &body.filename)?;
    if body.mime_type.len() > MAX_MIME_TYPE_BYTES {
        return Err(ApiError::too_long("mime_type", MAX_MIME_TYPE_BYTES, body.mime_type.len()));
    }
    let config = &state.config;
    let most = file_rules::largest(config, &body.purpose, config.max_upload_bytes.as_u64());
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let bytes = integer("bytes", body.bytes, 0, most)?.unsigned_abs();
    let (anchor, seconds) = match &body.expires_after {
        Some(after) => (Some(after.anchor.as_str()), Some(after.seconds)),
        None => (None, None),
    };
    let field = |name: &str| format!("expires_after.{name}");
    let file_expires_after = file_rules::life(&body.purpose, anchor, seconds, field)?;
    let new = NewUpload {
        filename: body.filename,
        purpose: body.purpose,
        mime_type: body.mime_type,
        bytes,
        file_expires_after,
        lifetime: config.upload_lifetime,
    };
    let row = uploads::create(&state.store.db, &project, new, Some(once)).await?;
    Ok(Json(convert::upload(row, None)))
}

/// An upload, with the parts that have been received. OpenAI's API has no such call.
#[utoipa::path(get, path = "/uploads/{upload_id}", tag = "Uploads",
    operation_id = "retrieveUpload", params(("upload_id" = String, Path)),
    responses((status = 200, body = Upload)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Upload>> {
    let (row, parts) = uploads::get(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::UploadNotFound(id))?;
    Ok(Json(convert::upload(row, Some(parts))))
}

/// The form of a part, for the description of the API.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "the form is read part by part; this is its description")]
struct NewPartForm {
    #[schema(value_type = String, format = Binary)]
    data: Vec<u8>,
}

/// Add a part. Parts may come in any order, and several at a time.
#[utoipa::path(post, path = "/uploads/{upload_id}/parts", tag = "Uploads",
    operation_id = "addUploadPart", params(("upload_id" = String, Path)),
    request_body(content_type = "multipart/form-data", content = NewPartForm),
    responses((status = 200, body = UploadPart)))]
pub(crate) async fn add_part(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    request: Request,
) -> ApiResult<Json<UploadPart>> {
    let limits = PartLimits {
        parts: state.config.max_upload_parts,
        part_bytes: state.config.max_part_bytes.as_u64(),
    };
    let not_found = || ApiError::UploadNotFound(id.clone());
    let upload = UploadId::from(id.as_str());
    uploads::check_open(&state.store.db, &project, &upload, limits)
        .await
        .or_not_found(not_found)?;
    let parts = Parts { state: &state, project: &project, upload: &upload, limits };
    let form = upload::receive(&state, &parts, request).await?;
    let (_, content) = form.content.ok_or_else(|| ApiError::missing("data"))?;
    let row = content.commit(limits).await.or_not_found(not_found)?;
    Ok(Json(convert::part(row)))
}

struct Parts<'a> {
    state: &'a AppState,
    project: &'a Project,
    upload: &'a UploadId,
    limits: PartLimits,
}

impl Destination for Parts<'_> {
    type Stored = StoredPart;

    const NAME: &'static str = "data";
    const FIELDS: &'static [&'static str] = &[];

    fn limit(&self) -> u64 {
        self.limits.part_bytes
    }

    async fn store(&self, chunks: BoxStream<'_, upload::Chunk>) -> Result<StoredPart, Error> {
        uploads::store_part(&self.state.store, self.project, self.upload, chunks, self.limit())
            .await
    }
}

/// Make a file of the parts named, in their order. A repeated call gives the same file.
#[utoipa::path(post, path = "/uploads/{upload_id}/complete", tag = "Uploads",
    operation_id = "completeUpload", params(("upload_id" = String, Path)),
    request_body = CompleteUpload,
    responses((status = 200, body = Upload)))]
pub(crate) async fn complete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Body(body): Body<CompleteUpload>,
) -> ApiResult<Json<Upload>> {
    let completion = Completion {
        part_ids: body.part_ids.iter().map(|part| part.as_str().into()).collect(),
        md5: body.md5.as_deref().map(checked_md5).transpose()?,
    };
    let upload = UploadId::from(id.as_str());
    // A large content takes its time. A client that gives up and asks again finds the first call
    // still at work, waits for it, and gets its file.
    let turn = state.upload_turns.turn(&upload).await;
    let (store, owner) = (state.store.clone(), project.clone());
    let completing = tokio::spawn(async move {
        let _turn = turn;
        uploads::complete(&store, &owner, &upload, completion).await
    });
    let row = completing
        .await
        .map_err(ApiError::internal)?
        .or_not_found(|| ApiError::UploadNotFound(id))?;
    Ok(Json(convert::upload(row, None)))
}

fn checked_md5(text: &str) -> ApiResult<String> {
    if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    let message = "Invalid 'md5': expected the MD5 of the content as 32 hexadecimal digits.";
    Err(ApiError::invalid_value("md5", message))
}

/// Cancel an upload. Its parts are removed.
#[utoipa::path(post, path = "/uploads/{upload_id}/cancel", tag = "Uploads",
    operation_id = "cancelUpload", params(("upload_id" = String, Path)),
    responses((status = 200, body = Upload)))]
pub(crate) async fn cancel(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Upload>> {
    let row = uploads::cancel(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::UploadNotFound(id))?;
    Ok(Json(convert::upload(row, None)))
}
