//! One row of a training file as the model of a job would see it. Nothing is created.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use dataset::{ChatTokenizer, Example, FileRole, Format, NoSuchRow, Previewed};
use domain::{MethodType, ModelId};
use serde_json::json;
use store::base_models::BaseModelRow;

use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Json as Body};
use crate::faults::Faults;
use crate::inference::prompt::integer;
use crate::lanes::examine::Examination;
use crate::lanes::models::{Model, ModelError};
use crate::request;
use crate::routes::validation::{base_model, of_row, turn};
use crate::state::AppState;
use crate::wire::preview::{PreviewRequest, RowPreview, Sequence, Token};

/// No further sequence is listed behind so many tokens.
const MOST_TOKENS: usize = 65_536;
/// The largest integer that JSON carries everywhere.
const LAST_ROW: i64 = (1 << 53) - 1;

/// Show a row of a training file as the model sees it: its tokens, and which of them are trained. An extension of
/// this server's.
#[utoipa::path(post, path = "/fine_tuning/preview", tag = "Fine-tuning",
    operation_id = "previewTrainingRow",
    request_body = PreviewRequest,
    responses((status = 200, body = RowPreview)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    Body(asked): Body<PreviewRequest>,
) -> ApiResult<Json<RowPreview>> {
    let row = asked.row.map(|row| integer("row", row, 1, LAST_ROW)).transpose()?;
    let mut faults = Faults::default();
    let mut job = json!({"model": asked.model, "training_file": asked.training_file});
    for (field, value) in [("method", asked.method), ("finetuned", asked.finetuned)] {
        if let Some(value) = value {
            job[field] = value;
        }
    }
    let wanted = request::read(&state, &project, job, &mut faults).await?;
    faults.into_result()?;
    let incomplete = || ApiError::internal("a request without faults lacks a part");
    let wanted = wanted.ok_or_else(incomplete)?;
    let file = wanted.training_file.as_ref().ok_or_else(incomplete)?;
    let base_model = wanted.base_model.as_ref().ok_or_else(incomplete)?;
    let (_, model) = usable_model(&state, base_model).await?;
    let examination = Examination {
        state: &state,
        model: &model,
        method: wanted.method,
        hyperparameters: &wanted.hyperparameters,
        options: &wanted.options,
    };
    let _turn = turn(&state).await?;
    let found = examination.preview(file, row.map(i64::unsigned_abs)).await?;
    let found = found.ok_or_else(|| {
        let message = "The content of the file is not in the storage any more.";
        ApiError::invalid_value("training_file", message)
    })?;
    let found = found.map_err(|missing| no_such_row(row, missing))?;
    let max_seq_len = examination.cut_at();
    Ok(Json(shown(&model.tokenizer, asked.model, wanted.method, max_seq_len, found)))
}

/// The base model of a request, with its tokenizer.
pub(super) async fn usable_model(
    state: &AppState,
    id: &ModelId,
) -> ApiResult<(BaseModelRow, Arc<Model>)> {
    let row = base_model(state, id).await?;
    match state.models.get(&state.store, &row).await {
        Ok(model) => Ok((row, model)),
        Err(ModelError::Store(error)) => Err(error.into()),
        Err(unusable @ ModelError::Unusable { .. }) => {
            Err(ApiError::invalid_value("model", unusable.to_string()))
        }
    }
}

fn no_such_row(row: Option<i64>, missing: NoSuchRow) -> ApiError {
    match row {
        Some(row) => ApiError::invalid_value(
            "row",
            format!("Invalid 'row': there is no row {row}: {missing}."),
        ),
        None => ApiError::invalid_value(
            "training_file",
            format!("There is nothing to show: {missing}."),
        ),
    }
}

fn shown(
    tokenizer: &ChatTokenizer,
    model: String,
    method: MethodType,
    max_seq_len: u32,
    found: Previewed,
) -> RowPreview {
    let is_pair = found.shape.format() == Format::Preference;
    let total_sequences = found.sequences.len() as u64;
    let mut tokens = 0;
    let listed = found.sequences.iter().take_while(|sequence| {
        let is_listed = tokens < MOST_TOKENS;
        tokens += sequence.input_ids.len();
        is_listed
    });
    let sequences = listed.enumerate().map(|(index, example)| {
        let answer = ["preferred", "non_preferred"].get(index).copied().filter(|_| is_pair);
        sequence(tokenizer, answer, example)
    });
    RowPreview {
        object: "fine_tuning.preview",
        model,
        method: method.as_str(),
        row: found.number,
        format: found.shape.as_str(),
        container: found.container.as_str(),
        max_seq_len,
        sequences: sequences.collect(),
        total_sequences,
        problems: found
            .problems
            .iter()
            .map(|problem| of_row(FileRole::Training, problem))
            .collect(),
    }
}

fn sequence(
    tokenizer: &ChatTokenizer,
    answer: Option<&'static str>,
    example: &Example,
) -> Sequence {
    let tokens = example.input_ids.iter().zip(&example.is_target).map(|(&id, &trained)| Token {
        id,
        text: String::from_utf8_lossy(&tokenizer.token_text(id)).into_owned(),
        trained,
    });
    Sequence {
        answer,
        n_tokens: example.input_ids.len() as u64,
        n_trained: example.targets() as u64,
        truncated: example.truncated,
        n_tokens_before_truncation: example.full_len as u64,
        tokens: tokens.collect(),
    }
}
