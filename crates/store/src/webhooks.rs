//! Webhook endpoints: where a project wants to hear of events. What happened is in [`outbox`], who is told in
//! [`deliveries`], who tells it in [`claims`].
//!
//! The store keeps no time-table and signs nothing: when to try again, and with what signature, is the server's.

pub mod claims;
pub mod deliveries;
pub mod outbox;

use std::time::Duration;

use domain::WebhookEndpointId;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{FromRow, PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::idempotency::{self, Created, Once};
use crate::page::{Page, PageQuery};
use crate::projects::Project;
use crate::text;

/// All events that ever happen here, in OpenAI's words.
pub const EVENT_TYPES: [&str; 6] = [
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "eval.run.succeeded",
    "eval.run.failed",
    "eval.run.canceled",
];

#[derive(Debug, Clone)]
pub struct EndpointRow {
    pub id: WebhookEndpointId,
    pub name: String,
    pub url: String,
    pub event_types: Vec<String>,
    pub secret: SecretString,
    /// The secret before the latest rotation, while it signs too.
    pub old_secret: Option<SecretString>,
    pub disabled: Option<Disabled>,
    /// Failed attempts in a row.
    pub failures: u32,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

impl EndpointRow {
    /// The secrets that sign at present, the newest first.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        std::iter::once(&self.secret).chain(&self.old_secret)
    }
}

/// Nothing is sent to the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disabled {
    pub since: OffsetDateTime,
    pub reason: String,
}

#[derive(Debug, Clone)]
pub struct NewEndpoint {
    pub name: String,
    pub url: String,
    pub event_types: Vec<String>,
    pub secret: SecretString,
}

/// What may change of an endpoint; what is none stays. A URL, be it the same, enables the endpoint again.
#[derive(Debug, Clone, Default)]
pub struct EndpointChange {
    pub name: Option<String>,
    pub url: Option<String>,
    pub event_types: Option<Vec<String>>,
}

#[derive(FromRow)]
pub(super) struct EndpointRecord {
    id: String,
    name: String,
    url: String,
    event_types: Vec<String>,
    secret: String,
    old_secret: Option<String>,
    disabled_at: Option<OffsetDateTime>,
    disabled_reason: Option<String>,
    failures: i32,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl From<EndpointRecord> for EndpointRow {
    fn from(record: EndpointRecord) -> Self {
        let disabled = record.disabled_at.zip(record.disabled_reason);
        Self {
            id: record.id.into(),
            name: record.name,
            url: record.url,
            event_types: record.event_types,
            secret: record.secret.into(),
            old_secret: record.old_secret.map(Into::into),
            disabled: disabled.map(|(since, reason)| Disabled { since, reason }),
            failures: record.failures.unsigned_abs(),
            created_at: record.created_at,
            updated_at: record.updated_at,
        }
    }
}

macro_rules! columns {
    () => {
        "id, name, url, event_types, secret,
         case when old_secret_until > clock_timestamp() then old_secret end as old_secret,
         disabled_at, disabled_reason, failures, created_at, updated_at"
    };
}
pub(super) use columns;

/// `Conflict::TooManyWebhookEndpoints` when the project has `most` of them.
pub async fn create(
    db: &Db,
    project: &Project,
    new: NewEndpoint,
    most: u32,
    once: Option<Once>,
) -> Result<EndpointRow> {
    let args = (project.clone(), new, most, once);
    db.transact(Lane::Api, args, |tx, (project, new, most, once)| {
        Box::pin(async move {
            let id = WebhookEndpointId::new();
            let first = idempotency::begin(tx, project.id.as_str(), once.as_ref(), id.as_str());
            match first.await? {
                Some(first) => find(tx, project, &first.into()).await,
                None => insert(tx, project, &id, new, *most).await,
            }
        })
    })
    .await
}

async fn insert(
    tx: &mut PgConnection,
    project: &Project,
    id: &WebhookEndpointId,
    new: &NewEndpoint,
    most: u32,
) -> Result<EndpointRow> {
    // The project's row is locked, so that two creations count one after the other.
    sqlx::query("select 1 from projects where id = $1 for no key update")
        .bind(project.id.as_str())
        .execute(&mut *tx)
        .await?;
    let (count,): (i64,) =
        sqlx::query_as("select count(*) from webhook_endpoints where project_id = $1")
            .bind(project.id.as_str())
            .fetch_one(&mut *tx)
            .await?;
    if count >= i64::from(most) {
        return Err(Conflict::TooManyWebhookEndpoints(most).into());
    }
    let record: EndpointRecord = sqlx::query_as(concat!(
        "insert into webhook_endpoints (id, project_id, name, url, event_types, secret)
         values ($1, $2, $3, $4, $5, $6) returning ",
        columns!()
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(text::clean(&new.name))
    .bind(&new.url)
    .bind(&new.event_types)
    .bind(new.secret.expose_secret())
    .fetch_one(tx)
    .await?;
    Ok(record.into())
}

pub async fn get(db: &Db, project: &Project, id: &WebhookEndpointId) -> Result<EndpointRow> {
    find(&db.pool, project, id).await
}

async fn find(
    db: impl PgExecutor<'_>,
    project: &Project,
    id: &WebhookEndpointId,
) -> Result<EndpointRow> {
    let record: Option<EndpointRecord> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from webhook_endpoints where id = $1 and project_id = $2"
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(db)
    .await?;
    found(record)
}

pub async fn list(db: &Db, project: &Project, page: &PageQuery) -> Result<Page<EndpointRow>> {
    let records: Vec<EndpointRecord> = sqlx::query_as(page.sql(concat!(
        "select ",
        columns!(),
        " from webhook_endpoints where project_id = $1 and ($2::text is null or (created_at, id) {after}
              (select created_at, id from webhook_endpoints where id = $2 and project_id = $1))
          order by created_at {way}, id {way} limit $3"
    )))
    .bind(project.id.as_str())
    .bind(page.after.as_deref())
    .bind(page.fetch_limit())
    .fetch_all(&db.pool)
    .await?;
    Ok(Page::from_rows(records.into_iter().map(Into::into).collect(), page))
}

/// A change that changes nothing leaves `updated_at` as it is.
pub async fn update(
    db: &Db,
    project: &Project,
    id: &WebhookEndpointId,
    change: &EndpointChange,
) -> Result<EndpointRow> {
    let record: Option<EndpointRecord> = sqlx::query_as(concat!(
        "update webhook_endpoints set name = coalesce($3, name), url = coalesce($4, url),
             event_types = coalesce($5, event_types),
             disabled_at = case when $4 is null then disabled_at end,
             disabled_reason = case when $4 is null then disabled_reason end,
             failures = case when $4 is null then failures else 0 end,
             rest_until = case when $4 is null then rest_until else clock_timestamp() end,
             updated_at = case when (name, url, event_types) is distinct from
                                    (coalesce($3, name), coalesce($4, url), coalesce($5, event_types))
                                 or ($4 is not null and disabled_at is not null)
                          then clock_timestamp() else updated_at end
         where id = $1 and project_id = $2 returning ",
        columns!()
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(change.name.as_deref().map(text::clean))
    .bind(change.url.as_deref())
    .bind(change.event_types.as_deref())
    .fetch_optional(&db.pool)
    .await?;
    found(record)
}

/// The next signature is made with `secret`; for `keep_old` with the present one too.
pub async fn rotate_secret(
    db: &Db,
    project: &Project,
    id: &WebhookEndpointId,
    secret: &SecretString,
    keep_old: Option<Duration>,
) -> Result<EndpointRow> {
    let record: Option<EndpointRecord> = sqlx::query_as(concat!(
        "update webhook_endpoints set secret = $3,
             old_secret = case when $4::interval is not null then secret end,
             old_secret_until = clock_timestamp() + $4, updated_at = clock_timestamp()
         where id = $1 and project_id = $2 returning ",
        columns!()
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(secret.expose_secret())
    .bind(keep_old.map(crate::interval))
    .fetch_optional(&db.pool)
    .await?;
    found(record)
}

/// Removes an endpoint with its deliveries. One that is on its way may still arrive.
pub async fn delete(db: &Db, project: &Project, id: &WebhookEndpointId) -> Result<()> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| {
        Box::pin(async move {
            let statement = "delete from webhook_endpoints where id = $1 and project_id = $2";
            let gone = sqlx::query(statement)
                .bind(id.as_str())
                .bind(project.id.as_str())
                .execute(&mut *tx)
                .await?;
            if gone.rows_affected() == 0 {
                return Err(Error::NotFound("webhook endpoint"));
            }
            let created = Created::WebhookEndpoint;
            idempotency::forget(tx, project.id.as_str(), created, id.as_str()).await
        })
    })
    .await
}

fn found(record: Option<EndpointRecord>) -> Result<EndpointRow> {
    record.map(Into::into).ok_or(Error::NotFound("webhook endpoint"))
}
