//! Webhook endpoints, the events that they are told, and the log of deliveries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::list::Identified;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateWebhookEndpoint {
    /// For people.
    pub name: String,
    /// Where deliveries go: `https://…`.
    pub url: String,
    /// The events that are delivered there.
    pub event_types: Vec<String>,
}

/// What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateWebhookEndpoint {
    pub name: Option<String>,
    /// Also enables an endpoint that was disabled.
    pub url: Option<String>,
    /// All events that are delivered from now on.
    pub event_types: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RotateWebhookSecret {
    /// Deliveries are signed with both secrets for 24 hours.
    pub keep_old_secret_active_for_24_hours: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TestWebhookEndpoint {
    /// The event whose sample is sent.
    pub event_type: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookEndpoint {
    #[schema(example = "whe_0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `webhook_endpoint`.
    pub object: &'static str,
    pub created_at: i64,
    /// When the endpoint or its secret was last changed.
    pub updated_at: i64,
    pub name: String,
    pub url: String,
    pub event_types: Vec<String>,
    /// The end of the signing secret.
    pub signing_secret_hint: String,
    pub finetuned: WebhookEndpointHealth,
}

/// What OpenAI's object does not tell.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookEndpointHealth {
    /// Since when nothing is sent, because the receiver answered 410.
    pub disabled_at: Option<i64>,
    pub disabled_reason: Option<String>,
    /// Failed attempts in a row.
    pub failures: u32,
}

impl Identified for WebhookEndpoint {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The only answers that show the secret: to creation and to rotation.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookEndpointWithSecret {
    #[serde(flatten)]
    pub endpoint: WebhookEndpoint,
    #[schema(example = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")]
    pub signing_secret: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedWebhookEndpoint {
    pub id: String,
    /// Always `webhook_endpoint.deleted`.
    pub object: &'static str,
    pub deleted: bool,
}

/// The receiver answered; how, says `status_code`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookEndpointTest {
    /// Always `webhook_endpoint.test`.
    pub object: &'static str,
    pub event_type: String,
    pub status_code: u16,
    /// Always true: the request was made and answered.
    pub success: bool,
    pub webhook_endpoint_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookEventTypes {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<&'static str>,
}

/// What a receiver is sent. The order of the fields is that of the bytes, which never change.
#[derive(Debug, Serialize)]
pub(crate) struct WebhookEvent<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created_at: i64,
    pub r#type: &'a str,
    pub data: WebhookSubject<'a>,
}

/// Thin: a receiver asks for the rest.
#[derive(Debug, Serialize)]
pub(crate) struct WebhookSubject<'a> {
    pub id: &'a str,
}

/// One event on its way to one endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookDelivery {
    #[schema(example = "whd_0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `webhook_endpoint.delivery`.
    pub object: &'static str,
    pub created_at: i64,
    /// The header `webhook-id` of every attempt.
    pub event_id: String,
    pub event_type: String,
    /// The job or the run that the event is about.
    pub data_id: String,
    /// `pending`, `delivered` or `failed`.
    pub status: &'static str,
    /// The latest ones, oldest first.
    pub attempts: Vec<WebhookAttempt>,
    /// While it is pending.
    pub next_attempt_at: Option<i64>,
    pub finished_at: Option<i64>,
}

impl Identified for WebhookDelivery {
    fn id(&self) -> &str {
        &self.id
    }
}

/// One request that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookAttempt {
    pub created_at: i64,
    /// None when there was no answer.
    pub status_code: Option<u16>,
    /// Why it counts as failed.
    pub error: Option<String>,
    pub duration_ms: u64,
}
