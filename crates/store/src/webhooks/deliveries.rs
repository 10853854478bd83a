//! The log of an endpoint's deliveries, as users see it, and their wish that one be sent again.

use domain::{WebhookDeliveryId, WebhookEndpointId, WebhookEventId};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::page::{Page, PageQuery};
use crate::projects::Project;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// It is yet to be sent, or to be sent again.
    Pending,
    Delivered,
    /// Every attempt has failed.
    Failed,
}

impl DeliveryStatus {
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    fn from_column(text: &str) -> Self {
        // The column's CHECK admits these three.
        Self::ALL.into_iter().find(|status| status.as_str() == text).unwrap_or(Self::Pending)
    }
}

/// One request that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it began, in Unix seconds.
    pub at: i64,
    /// None when there was no answer.
    pub status_code: Option<u16>,
    /// Why it counts as failed.
    pub error: Option<String>,
    pub duration_ms: u64,
}

#[derive(Debug, Clone)]
pub struct DeliveryRow {
    pub id: WebhookDeliveryId,
    pub event_id: WebhookEventId,
    pub event_type: String,
    /// The job or run that the event is about.
    pub subject: String,
    pub status: DeliveryStatus,
    /// The latest ones, oldest first.
    pub attempts: Vec<Attempt>,
    pub next_attempt_at: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
    pub finished_at: Option<OffsetDateTime>,
}

#[derive(FromRow)]
struct DeliveryRecord {
    id: String,
    event_id: String,
    r#type: String,
    subject: String,
    status: String,
    attempts: Json<Vec<Attempt>>,
    next_attempt_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    finished_at: Option<OffsetDateTime>,
}

impl From<DeliveryRecord> for DeliveryRow {
    fn from(record: DeliveryRecord) -> Self {
        Self {
            id: record.id.into(),
            event_id: record.event_id.into(),
            event_type: record.r#type,
            subject: record.subject,
            status: DeliveryStatus::from_column(&record.status),
            attempts: record.attempts.0,
            next_attempt_at: record.next_attempt_at,
            created_at: record.created_at,
            finished_at: record.finished_at,
        }
    }
}

macro_rules! select {
    () => {
        "select d.id, d.event_id, o.type, coalesce(o.job_id, o.eval_run_id) as subject, d.status, d.attempts,
                d.next_attempt_at, d.created_at, d.finished_at
         from webhook_deliveries d join outbox o on o.id = d.event_id "
    };
}

/// `NotFound` for an unknown endpoint; those of one status alone, if it is named.
pub async fn list(
    db: &Db,
    project: &Project,
    endpoint: &WebhookEndpointId,
    status: Option<DeliveryStatus>,
    page: &PageQuery,
) -> Result<Page<DeliveryRow>> {
    super::get(db, project, endpoint).await?;
    let records: Vec<DeliveryRecord> = sqlx::query_as(page.sql(concat!(
        select!(),
        "where d.endpoint_id = $1 and d.project_id = $2 and ($3::text is null or d.status = $3)
           and ($4::text is null or (d.created_at, d.id) {after}
                (select created_at, id from webhook_deliveries where id = $4 and endpoint_id = $1))
         order by d.created_at {way}, d.id {way} limit $5"
    )))
    .bind(endpoint.as_str())
    .bind(project.id.as_str())
    .bind(status.map(DeliveryStatus::as_str))
    .bind(page.after.as_deref())
    .bind(page.fetch_limit())
    .fetch_all(&db.pool)
    .await?;
    Ok(Page::from_rows(records.into_iter().map(Into::into).collect(), page))
}

/// Sends a delivery now, as if it had never been tried: the same event, with the same id. Its log goes on.
pub async fn redeliver(
    db: &Db,
    project: &Project,
    endpoint: &WebhookEndpointId,
    id: &WebhookDeliveryId,
) -> Result<DeliveryRow> {
    let args = (project.clone(), endpoint.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, endpoint, id)| {
        Box::pin(make_due(tx, project, endpoint, id))
    })
    .await
}

async fn make_due(
    tx: &mut PgConnection,
    project: &Project,
    endpoint: &WebhookEndpointId,
    id: &WebhookDeliveryId,
) -> Result<DeliveryRow> {
    // The endpoint's row first, as everywhere. A wish of the user's ends its rest.
    let found: Option<(Option<String>,)> = sqlx::query_as(
        "update webhook_endpoints set rest_until = clock_timestamp()
         where id = $1 and project_id = $2 returning disabled_reason",
    )
    .bind(endpoint.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let (disabled,) = found.ok_or(Error::NotFound("webhook endpoint"))?;
    if let Some(reason) = disabled {
        return Err(Conflict::WebhookDisabled { endpoint: endpoint.clone(), reason }.into());
    }
    let changed = sqlx::query(
        "update webhook_deliveries
         set status = 'pending', tries = 0, next_attempt_at = clock_timestamp(), finished_at = null
         where id = $1 and endpoint_id = $2",
    )
    .bind(id.as_str())
    .bind(endpoint.as_str())
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if changed == 0 {
        return Err(Error::NotFound("webhook delivery"));
    }
    let record: DeliveryRecord = sqlx::query_as(concat!(select!(), "where d.id = $1"))
        .bind(id.as_str())
        .fetch_one(tx)
        .await?;
    Ok(record.into())
}
