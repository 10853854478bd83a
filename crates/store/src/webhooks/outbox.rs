//! Events, written in the transaction of the change that they tell of, together with one delivery for every
//! endpoint that wants them. The ids of events are the receivers' keys against doubles and never change.

use std::time::Duration;

use domain::{WebhookDeliveryId, WebhookEventId};
use serde_json::json;
use sqlx::PgConnection;

use super::EVENT_TYPES;
use crate::db::Db;
use crate::error::Result;

/// Rows that are removed in one go.
const EXPIRED_AT_ONCE: i64 = 1000;

/// What an event is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject<'a> {
    Job(&'a str),
    EvalRun(&'a str),
}

/// Writes an event and its deliveries.
pub(crate) async fn announce(
    tx: &mut PgConnection,
    project: &str,
    kind: &str,
    subject: Subject<'_>,
) -> Result<()> {
    debug_assert!(EVENT_TYPES.contains(&kind), "no endpoint can want {kind}");
    let (job, run) = match subject {
        Subject::Job(id) => (Some(id), None),
        Subject::EvalRun(id) => (None, Some(id)),
    };
    let event = WebhookEventId::new();
    sqlx::query(
        "insert into outbox (id, project_id, job_id, eval_run_id, type, payload)
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(event.as_str())
    .bind(project)
    .bind(job)
    .bind(run)
    .bind(kind)
    .bind(json!({ "id": job.or(run) }))
    .execute(&mut *tx)
    .await?;
    // The share of the lock lets no endpoint vanish before its delivery refers to it: a job must not fail to end
    // because of somebody who listens.
    let endpoints: Vec<(String,)> = sqlx::query_as(
        "select id from webhook_endpoints
         where project_id = $1 and disabled_at is null and $2 = any (event_types) for key share",
    )
    .bind(project)
    .bind(kind)
    .fetch_all(&mut *tx)
    .await?;
    if endpoints.is_empty() {
        return Ok(());
    }
    let endpoints: Vec<String> = endpoints.into_iter().map(|(id,)| id).collect();
    let ids: Vec<String> = endpoints.iter().map(|_| WebhookDeliveryId::new().to_string()).collect();
    sqlx::query(
        "insert into webhook_deliveries (id, project_id, endpoint_id, event_id)
         select id, $1, endpoint, $2 from unnest($3::text[], $4::text[]) as new (id, endpoint)",
    )
    .bind(project)
    .bind(event.as_str())
    .bind(ids)
    .bind(endpoints)
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes some of the deliveries that ended longer ago than `age`, and of the events that are older and have no
/// delivery; how many rows.
pub async fn expire(db: &Db, age: Duration) -> Result<u64> {
    let mut gone = 0;
    for statement in [
        "delete from webhook_deliveries where id in (
             select id from webhook_deliveries where finished_at < clock_timestamp() - $1
             order by finished_at limit $2 for update skip locked)",
        "delete from outbox where id in (
             select id from outbox o where created_at < clock_timestamp() - $1
               and not exists (select 1 from webhook_deliveries d where d.event_id = o.id)
             order by created_at limit $2 for update skip locked)",
    ] {
        gone += sqlx::query(statement)
            .bind(crate::interval(age))
            .bind(EXPIRED_AT_ONCE)
            .execute(&db.pool)
            .await?
            .rows_affected();
    }
    Ok(gone)
}
