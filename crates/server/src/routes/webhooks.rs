//! Webhook endpoints, as OpenAI has them; and, beside them, the log of deliveries.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use domain::{JobId, WebhookEndpointId, WebhookEventId};
use secrecy::ExposeSecret;
use store::Project;
use store::idempotency::Created;
use store::webhooks::claims::EventRow;
use store::webhooks::deliveries::{self, DeliveryRow, DeliveryStatus};
use store::webhooks::{self, EVENT_TYPES, EndpointRow};
use time::OffsetDateTime;

use crate::convert::{self, OrNotFound, page_query};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Id, Ids, Json as Body, JsonObject, JsonOrNothing, Page, from_value};
use crate::repeats;
use crate::state::AppState;
use crate::webhooks::{message, request, signature};
use crate::wire::list::List;
use crate::wire::query::{OrderParam, PageParams};
use crate::wire::webhook::{
    CreateWebhookEndpoint, DeletedWebhookEndpoint, RotateWebhookSecret, TestWebhookEndpoint,
    UpdateWebhookEndpoint, WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEndpointHealth,
    WebhookEndpointTest, WebhookEndpointWithSecret, WebhookEventTypes,
};

const SIZES: (u32, u32) = (20, 100);
const OLD_SECRET_STAYS: Duration = Duration::from_secs(24 * 3600);

fn no_endpoint(id: &str) -> ApiError {
    ApiError::NoSuch { what: "Webhook endpoint", param: "webhook_endpoint_id", id: id.to_owned() }
}

/// Create a webhook endpoint. Its signing secret is shown this once, and to repetitions of this request.
#[utoipa::path(post, path = "/webhook_endpoints", tag = "Webhooks",
    operation_id = "createWebhookEndpoint", request_body = CreateWebhookEndpoint,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = WebhookEndpointWithSecret)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    headers: HeaderMap,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<WebhookEndpointWithSecret>> {
    let once = repeats::once(&headers, Created::WebhookEndpoint, &body)?;
    let new = request::new_endpoint(from_value(body)?, &state.egress)?;
    let most = state.config.webhooks.max_endpoints;
    let row = webhooks::create(&state.store.db, &project, new, most, Some(once)).await?;
    Ok(Json(with_secret(row)))
}

/// The project's webhook endpoints, the newest first.
#[utoipa::path(get, path = "/webhook_endpoints", tag = "Webhooks",
    operation_id = "listWebhookEndpoints",
    params(PageParams, OrderParam),
    responses((status = 200, body = List<WebhookEndpoint>)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(project): Caller,
    page: Page,
) -> ApiResult<Json<List<WebhookEndpoint>>> {
    let rows = webhooks::list(&state.store.db, &project, &page_query(&page, SIZES)).await?;
    Ok(Json(convert::list(rows, endpoint)))
}

/// One webhook endpoint.
#[utoipa::path(get, path = "/webhook_endpoints/{webhook_endpoint_id}", tag = "Webhooks",
    operation_id = "retrieveWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = WebhookEndpoint)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<WebhookEndpoint>> {
    Ok(Json(endpoint(get(&state, &project, &id).await?)))
}

/// Change a webhook endpoint. A url, be it the same, enables one that was disabled.
#[utoipa::path(post, path = "/webhook_endpoints/{webhook_endpoint_id}", tag = "Webhooks",
    operation_id = "updateWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path)), request_body = UpdateWebhookEndpoint,
    responses((status = 200, body = WebhookEndpoint)))]
pub(crate) async fn update(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Body(body): Body<UpdateWebhookEndpoint>,
) -> ApiResult<Json<WebhookEndpoint>> {
    let change = request::change(body, &state.egress)?;
    let row = webhooks::update(&state.store.db, &project, &id.as_str().into(), &change)
        .await
        .or_not_found(|| no_endpoint(&id))?;
    state.wake.webhooks.notify_one();
    Ok(Json(endpoint(row)))
}

/// Delete a webhook endpoint with the log of its deliveries.
#[utoipa::path(delete, path = "/webhook_endpoints/{webhook_endpoint_id}", tag = "Webhooks",
    operation_id = "deleteWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, body = DeletedWebhookEndpoint)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<DeletedWebhookEndpoint>> {
    webhooks::delete(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| no_endpoint(&id))?;
    Ok(Json(DeletedWebhookEndpoint { id, object: "webhook_endpoint.deleted", deleted: true }))
}

/// Give a webhook endpoint a new signing secret, which is shown this once.
#[utoipa::path(post, path = "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    tag = "Webhooks", operation_id = "rotateWebhookEndpointSecret",
    params(("webhook_endpoint_id" = String, Path)),
    request_body = Option<RotateWebhookSecret>,
    responses((status = 200, body = WebhookEndpointWithSecret)))]
pub(crate) async fn rotate_secret(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    JsonOrNothing(body): JsonOrNothing<RotateWebhookSecret>,
) -> ApiResult<Json<WebhookEndpointWithSecret>> {
    let keeps = body.keep_old_secret_active_for_24_hours.unwrap_or(false);
    let keep_old = keeps.then_some(OLD_SECRET_STAYS);
    let (db, secret) = (&state.store.db, signature::new_secret());
    let row = webhooks::rotate_secret(db, &project, &id.as_str().into(), &secret, keep_old)
        .await
        .or_not_found(|| no_endpoint(&id))?;
    Ok(Json(with_secret(row)))
}

/// Send a sample of an event at once, signed as deliveries are, and tell how it was answered.
#[utoipa::path(post, path = "/webhook_endpoints/{webhook_endpoint_id}/test", tag = "Webhooks",
    operation_id = "testWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path)), request_body = TestWebhookEndpoint,
    responses((status = 200, body = WebhookEndpointTest)))]
pub(crate) async fn test(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Body(body): Body<TestWebhookEndpoint>,
) -> ApiResult<Json<WebhookEndpointTest>> {
    let event_type = request::event_type(&body.event_type, "event_type")?.to_owned();
    let row = get(&state, &project, &id).await?;
    // No job has this id: a receiver that asks for it learns that this was a test.
    let subject = match event_type.starts_with("eval.") {
        true => "evalrun_test".to_owned(),
        false => format!("{}test", JobId::PREFIX),
    };
    let created_at = OffsetDateTime::now_utc();
    let event = EventRow { id: WebhookEventId::new(), kind: event_type, subject, created_at };
    let bytes = message::body(&event);
    let headers = message::headers(event.id.as_str(), row.secrets(), &bytes);
    let reply = state.egress.post(&row.url, headers, bytes).await.map_err(|error| {
        ApiError::BadRequest(format!("The webhook endpoint could not be reached: {error}."))
    })?;
    Ok(Json(WebhookEndpointTest {
        object: "webhook_endpoint.test",
        event_type: event.kind,
        status_code: reply.status.as_u16(),
        success: true,
        webhook_endpoint_id: id,
    }))
}

/// The events that can be delivered.
#[utoipa::path(get, path = "/webhook_event_types", tag = "Webhooks",
    operation_id = "listWebhookEventTypes",
    responses((status = 200, body = WebhookEventTypes)))]
pub(crate) async fn event_types(_caller: Caller) -> Json<WebhookEventTypes> {
    Json(WebhookEventTypes { object: "list", data: EVENT_TYPES.to_vec() })
}

/// What was delivered to an endpoint, or is to be, the newest first. Not among OpenAI's calls.
#[utoipa::path(get, path = "/webhook_endpoints/{webhook_endpoint_id}/deliveries", tag = "Webhooks",
    operation_id = "listWebhookDeliveries",
    params(("webhook_endpoint_id" = String, Path), PageParams, OrderParam,
        ("status" = Option<String>, Query)),
    responses((status = 200, body = List<WebhookDelivery>)))]
pub(crate) async fn list_deliveries(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    page: Page,
) -> ApiResult<Json<List<WebhookDelivery>>> {
    let status = page.status.as_deref().map(delivery_status).transpose()?;
    let endpoint_id = WebhookEndpointId::from(id.as_str());
    let query = page_query(&page, SIZES);
    let rows = deliveries::list(&state.store.db, &project, &endpoint_id, status, &query)
        .await
        .or_not_found(|| no_endpoint(&id))?;
    Ok(Json(convert::list(rows, delivery)))
}

/// Send a delivery again, now, whatever became of it. Not among OpenAI's calls.
#[utoipa::path(post,
    path = "/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/redeliver",
    tag = "Webhooks", operation_id = "redeliverWebhook",
    params(("webhook_endpoint_id" = String, Path), ("delivery_id" = String, Path)),
    responses((status = 200, body = WebhookDelivery)))]
pub(crate) async fn redeliver(
    State(state): State<AppState>,
    Caller(project): Caller,
    Ids(id, delivery_id): Ids,
) -> ApiResult<Json<WebhookDelivery>> {
    let (endpoint_id, wanted) = (id.as_str().into(), delivery_id.as_str().into());
    let sent = deliveries::redeliver(&state.store.db, &project, &endpoint_id, &wanted).await;
    let row = sent.map_err(|error| match error {
        store::Error::NotFound("webhook delivery") => {
            ApiError::NoSuch { what: "Webhook delivery", param: "delivery_id", id: delivery_id }
        }
        store::Error::NotFound(_) => no_endpoint(&id),
        other => other.into(),
    })?;
    state.wake.webhooks.notify_one();
    Ok(Json(delivery(row)))
}

async fn get(state: &AppState, project: &Project, id: &str) -> ApiResult<EndpointRow> {
    webhooks::get(&state.store.db, project, &id.into()).await.or_not_found(|| no_endpoint(id))
}

fn delivery_status(text: &str) -> ApiResult<DeliveryStatus> {
    let known = DeliveryStatus::ALL;
    known.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|status| status.as_str()).collect();
        ApiError::unsupported_value("status", text, &known)
    })
}

fn endpoint(row: EndpointRow) -> WebhookEndpoint {
    WebhookEndpoint {
        id: row.id.to_string(),
        object: "webhook_endpoint",
        created_at: row.created_at.unix_timestamp(),
        updated_at: row.updated_at.unix_timestamp(),
        name: row.name,
        url: row.url,
        event_types: row.event_types,
        signing_secret_hint: signature::hint(&row.secret),
        finetuned: WebhookEndpointHealth {
            disabled_at: row.disabled.as_ref().map(|disabled| disabled.since.unix_timestamp()),
            disabled_reason: row.disabled.map(|disabled| disabled.reason),
            failures: row.failures,
        },
    }
}

fn with_secret(row: EndpointRow) -> WebhookEndpointWithSecret {
    let signing_secret = row.secret.expose_secret().to_owned();
    WebhookEndpointWithSecret { endpoint: endpoint(row), signing_secret }
}

fn delivery(row: DeliveryRow) -> WebhookDelivery {
    let attempts = row.attempts.into_iter().map(|attempt| WebhookAttempt {
        created_at: attempt.at,
        status_code: attempt.status_code,
        error: attempt.error,
        duration_ms: attempt.duration_ms,
    });
    WebhookDelivery {
        id: row.id.to_string(),
        object: "webhook_endpoint.delivery",
        created_at: row.created_at.unix_timestamp(),
        event_id: row.event_id.to_string(),
        event_type: row.event_type,
        data_id: row.subject,
        status: row.status.as_str(),
        attempts: attempts.collect(),
        next_attempt_at: row.next_attempt_at.map(OffsetDateTime::unix_timestamp),
        finished_at: row.finished_at.map(OffsetDateTime::unix_timestamp),
    }
}
