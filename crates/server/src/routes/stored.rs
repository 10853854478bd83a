//! Stored completions: list, retrieve, describe, delete, and the messages that they answer.

use axum::Json;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use serde_json::{Map, Value, json};
use store::completions::{self, CompletionRow, Metadata};
use store::{Order, PageQuery};

use crate::convert::{OrNotFound, page_query};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Filters, Id, Json as Body, Page};
use crate::request::check_metadata;
use crate::state::AppState;
use crate::wire::file::Deleted;
use crate::wire::list::{Identified, List};
use crate::wire::query::{OrderParam, PageParams};
use crate::wire::stored::{StoredCompletion, StoredMessage, UpdateCompletion};

const SIZES: (u32, u32) = (20, 100);

/// `model=…` of a list's query.
pub(crate) struct OfModel(Option<String>);

impl FromRequestParts<AppState> for OfModel {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let Query(pairs) = pairs.map_err(|error| {
            ApiError::BadRequest(format!("The query string is malformed: {error}"))
        })?;
        let model = pairs.into_iter().find(|(key, _)| key == "model").map(|(_, value)| value);
        Ok(Self(model.filter(|model| !model.is_empty()).map(|m| m.replace('\0', "\u{fffd}"))))
    }
}

/// Completions that were kept, the oldest first.
#[utoipa::path(get, path = "/chat/completions", tag = "Chat",
    operation_id = "listChatCompletions",
    params(("model" = Option<String>, Query),
        ("metadata" = Option<std::collections::BTreeMap<String, String>>, Query, style = DeepObject,
        explode, description = "Only completions with these pairs."), PageParams, OrderParam),
    responses((status = 200, body = List<StoredCompletion>)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(project): Caller,
    OfModel(model): OfModel,
    filters: Filters,
    page: Page,
) -> ApiResult<Json<List<StoredCompletion>>> {
    let metadata = match filters {
        Filters::All | Filters::NoMetadata => Metadata::new(),
        Filters::Metadata(pairs) => pairs.into_iter().collect(),
    };
    let order = page.order_or(Order::Oldest);
    let query = PageQuery { order, ..page_query(&page, SIZES) };
    let db = &state.store.db;
    let rows = completions::list(db, &project, model.as_deref(), &metadata, &query).await?;
    Ok(Json(List::new(rows.data.into_iter().map(stored).collect(), rows.has_more)))
}

/// One of them.
#[utoipa::path(get, path = "/chat/completions/{completion_id}", tag = "Chat",
    operation_id = "getChatCompletion", params(("completion_id" = String, Path)),
    responses((status = 200, body = StoredCompletion)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<StoredCompletion>> {
    let row = completions::get(&state.store.db, &project, &id).await;
    Ok(Json(stored(row.or_not_found(|| ApiError::CompletionNotFound(id))?)))
}

/// Replace the metadata of one of them.
#[utoipa::path(post, path = "/chat/completions/{completion_id}", tag = "Chat",
    operation_id = "updateChatCompletion", params(("completion_id" = String, Path)),
    request_body = UpdateCompletion,
    responses((status = 200, body = StoredCompletion)))]
pub(crate) async fn update(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Body(body): Body<UpdateCompletion>,
) -> ApiResult<Json<StoredCompletion>> {
    check_metadata(body.metadata.as_ref())?;
    let metadata = body.metadata.unwrap_or_default();
    let row = completions::describe(&state.store.db, &project, &id, &metadata).await;
    Ok(Json(stored(row.or_not_found(|| ApiError::CompletionNotFound(id))?)))
}

/// Delete one of them.
#[utoipa::path(delete, path = "/chat/completions/{completion_id}", tag = "Chat",
    operation_id = "deleteChatCompletion", params(("completion_id" = String, Path)),
    responses((status = 200, body = Deleted)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Deleted>> {
    let gone = completions::delete(&state.store.db, &project, &id).await;
    gone.or_not_found(|| ApiError::CompletionNotFound(id.clone()))?;
    Ok(Json(Deleted { id, object: "chat.completion.deleted", deleted: true }))
}

/// The messages that a kept completion answers.
#[utoipa::path(get, path = "/chat/completions/{completion_id}/messages", tag = "Chat",
    operation_id = "getChatCompletionMessages",
    params(("completion_id" = String, Path), PageParams, OrderParam),
    responses((status = 200, body = List<StoredMessage>)))]
pub(crate) async fn messages(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    page: Page,
) -> ApiResult<Json<List<StoredMessage>>> {
    let row = completions::get(&state.store.db, &project, &id).await;
    let row = row.or_not_found(|| ApiError::CompletionNotFound(id))?;
    let all = row.request.get("messages").and_then(Value::as_array).cloned().unwrap_or_default();
    let named = all.into_iter().enumerate();
    let mut all: Vec<StoredMessage> =
        named.map(|(index, message)| stored_message(&row.id, index, message)).collect();
    if page.order_or(Order::Oldest) == Order::Newest {
        all.reverse();
    }
    let from = match &page.after {
        None => 0,
        Some(after) => all.iter().position(|m| m.id() == after).map_or(all.len(), |at| at + 1),
    };
    let rest = all.split_off(from);
    let limit = page.limit(SIZES.0, SIZES.1) as usize;
    let has_more = rest.len() > limit;
    Ok(Json(List::new(rest.into_iter().take(limit).collect(), has_more)))
}

/// The completion as it was given, with the request's own values beside it.
fn stored(row: CompletionRow) -> StoredCompletion {
    let mut fields = match row.completion {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.insert("metadata".to_owned(), json!(row.metadata));
    fields.insert("request_id".to_owned(), Value::Null);
    fields.insert("input_user".to_owned(), Value::Null);
    let request = match row.request {
        Value::Object(request) => request,
        _ => Map::new(),
    };
    for (key, value) in request.into_iter().filter(|(key, _)| key != "messages") {
        fields.entry(key).or_insert(value);
    }
    for (key, value) in [
        ("temperature", json!(1.0)),
        ("top_p", json!(1.0)),
        ("frequency_penalty", json!(0.0)),
        ("presence_penalty", json!(0.0)),
        ("seed", Value::Null),
        ("tools", Value::Null),
        ("tool_choice", Value::Null),
        ("response_format", Value::Null),
    ] {
        fields.entry(key).or_insert(value);
    }
    StoredCompletion { id: row.id, fields }
}

fn stored_message(completion: &str, index: usize, message: Value) -> StoredMessage {
    let mut fields = match message {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let parts = fields.get("content").filter(|content| content.is_array()).cloned();
    if let Some(Value::Array(parts)) = &parts {
        let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
        let text: String = parts.iter().filter_map(text).collect();
        fields.insert("content".to_owned(), text.into());
    }
    fields.insert("content_parts".to_owned(), parts.unwrap_or_default());
    for key in ["content", "refusal", "name"] {
        fields.entry(key).or_insert(Value::Null);
    }
    let id = format!("{completion}-{index}");
    fields.shift_remove("id");
    StoredMessage { id, fields }
}
