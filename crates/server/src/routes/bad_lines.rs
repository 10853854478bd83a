//! The rows of a job's file that something is said about, as a file of their own. Nothing is created.
//!
//! The files are checked as in a validation, then the one that is asked for is read once more and its rows
//! stream out; what is held is the list of problems and one row.

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use dataset::{BadLines, FileRole, Listed};
use futures::stream::{self, Stream};
use futures::{TryStream, TryStreamExt};
use serde::Deserialize;
use store::files::FileRow;

use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, JsonObject};
use crate::faults::Faults;
use crate::lanes::examine::Examination;
use crate::request::{self, Wanted};
use crate::routes::preview::usable_model;
use crate::routes::validation::{in_time, turn};
use crate::state::AppState;

const FILES: [&str; 2] = ["training_file", "validation_file"];

/// Which of the two files.
#[derive(Deserialize)]
#[serde(default)]
pub(crate) struct Which {
    file: String,
}

impl Default for Which {
    fn default() -> Self {
        Self { file: FILES[0].to_owned() }
    }
}

/// Download the rows of a file that a validation says something about. Each line of the answer is
/// `{"line": 13, "problems": ["invalid_json"], "row": "the row as it is"}`. An extension of this server's.
#[utoipa::path(post, path = "/fine_tuning/jobs/validate/bad_lines", tag = "Fine-tuning",
    operation_id = "downloadBadLines",
    params(("file" = Option<String>, Query,
        description = "`training_file`, which is the default, or `validation_file`.")),
    request_body = crate::wire::job::CreateJob,
    responses((status = 200, content_type = "application/jsonl", body = Vec<u8>)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    Query(Which { file }): Query<Which>,
    JsonObject(body): JsonObject,
) -> ApiResult<Response> {
    let role = match file.as_str() {
        "training_file" => FileRole::Training,
        "validation_file" => FileRole::Validation,
        other => return Err(ApiError::unsupported_value("file", other, &FILES)),
    };
    let mut faults = Faults::default();
    let wanted = request::read(&state, &project, body, &mut faults).await?;
    faults.into_result()?;
    let wanted = wanted.ok_or_else(incomplete)?;
    let asked_for = match role {
        FileRole::Training => wanted.training_file.as_ref().ok_or_else(incomplete)?,
        FileRole::Validation => wanted.validation_file.as_ref().ok_or_else(|| {
            let message = "The request names no 'validation_file' whose rows could be downloaded.";
            ApiError::invalid_value("file", message)
        })?,
    };
    let listed = problems(&state, &wanted, role).await?;
    let reader = store::files::read(&state.store, asked_for, None).await.map_err(gone(role))?;
    let most = state.config.max_line_bytes.as_u64() as usize;
    let headers = [
        (CONTENT_TYPE, "application/jsonl"),
        (CONTENT_DISPOSITION, "attachment; filename=\"bad_lines.jsonl\""),
    ];
    let body = Body::from_stream(copied(reader.stream, BadLines::new(&listed, most)));
    Ok((headers, body).into_response())
}

fn incomplete() -> ApiError {
    ApiError::internal("a request without faults lacks a part")
}

fn gone(role: FileRole) -> impl Fn(store::Error) -> ApiError {
    move |error| match error {
        store::Error::NotFound(_) => {
            let message = "The content of the file is not in the storage any more.";
            ApiError::invalid_value(role.field(), message)
        }
        other => other.into(),
    }
}

/// What is said about one of the files, which the other is read for too when rows are compared.
async fn problems(state: &AppState, wanted: &Wanted, role: FileRole) -> ApiResult<Vec<Listed>> {
    let base_model = wanted.base_model.as_ref().ok_or_else(incomplete)?;
    let training_file = wanted.training_file.as_ref().ok_or_else(incomplete)?;
    let (_, model) = usable_model(state, base_model).await?;
    let examination = Examination {
        state,
        model: &model,
        method: wanted.method,
        hyperparameters: &wanted.hyperparameters,
        options: &wanted.options,
    };
    if let Some(message) = examination.misfit() {
        return Err(ApiError::invalid_value("finetuned.virtual_tokens.count", message));
    }
    let is_gone = |role: FileRole| gone(role)(store::Error::NotFound("blob"));
    let check = async |file: &FileRow| -> ApiResult<Vec<Listed>> {
        let training = examination.training(training_file).await?;
        let training = training.ok_or_else(|| is_gone(FileRole::Training))?;
        if role == FileRole::Training {
            return Ok(training.listed(role, None, examination.cut_at()));
        }
        let checked = examination.validation(file, training.format).await?;
        let checked = checked.ok_or_else(|| is_gone(role))?;
        Ok(checked.listed(role, Some(&training), examination.cut_at()))
    };
    let _turn = turn(state).await?;
    in_time(check(wanted.validation_file.as_ref().unwrap_or(training_file))).await?
}

/// The rows that are wanted of a file, as they are found.
fn copied<S>(chunks: S, bad: BadLines) -> impl Stream<Item = Result<Bytes, S::Error>>
where
    S: TryStream<Ok = Bytes> + Unpin,
{
    stream::try_unfold(Some((chunks, bad)), |open| async move {
        let Some((mut chunks, mut bad)) = open else { return Ok(None) };
        let mut copy = Vec::new();
        while copy.is_empty() {
            let Some(chunk) = chunks.try_next().await? else {
                bad.finish(&mut copy);
                return Ok(Some((Bytes::from(copy), None)));
            };
            bad.push(&chunk, &mut copy);
        }
        Ok(Some((Bytes::from(copy), Some((chunks, bad)))))
    })
}
