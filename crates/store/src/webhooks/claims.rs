//! Who sends a delivery. Any server may: it claims the *endpoint* for a while, with the delivery that is due the
//! longest, and says how it went under the claim's fence. So an endpoint gets one request at a time, and a server
//! that dies leaves a claim that runs out; what it had sent may then be sent again.
//!
//! An endpoint that fails again and again rests for ever longer, so that it costs the others little.

use std::time::Duration;

use domain::{WebhookDeliveryId, WebhookEndpointId, WebhookEventId};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};
use time::OffsetDateTime;

use super::deliveries::Attempt;
use super::{EndpointRecord, EndpointRow, columns};
use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::text;

/// Failures in a row after which an endpoint rests between any two requests.
const PATIENCE: i32 = 3;
/// The first rest; each further failure doubles it, up to the longest.
const REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(300);
/// Attempts that a delivery's log keeps.
const LOGGED: i32 = 50;

/// A delivery that this server sends until the claim is over.
#[derive(Debug, Clone)]
pub struct Claim {
    pub endpoint: EndpointRow,
    pub delivery: WebhookDeliveryId,
    pub event: EventRow,
    /// Attempts before this one.
    pub tries: u32,
    fence: i64,
}

/// An event as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    pub id: WebhookEventId,
    pub kind: String,
    /// The job or run that it is about.
    pub subject: String,
    pub created_at: OffsetDateTime,
}

/// Which endpoints are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Any,
    /// Those alone whose latest request went well.
    Healthy,
}

/// What an attempt has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// To be sent again after this time.
    RetryIn(Duration),
    /// That was the last attempt.
    GiveUp,
    /// The receiver wants nothing any more: the endpoint is disabled, and all that it was to get has failed.
    Gone,
}

/// How a request went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub status_code: Option<u16>,
    pub error: Option<String>,
    pub duration: Duration,
    pub verdict: Verdict,
}

const CLAIM: &str = "
    with next as materialized (
        select id from webhook_endpoints e
        where disabled_at is null and ($2 or failures = 0)
          and (claim_until is null or claim_until < statement_timestamp())
          and rest_until <= statement_timestamp()
          and exists (select 1 from webhook_deliveries d
                      where d.endpoint_id = e.id and d.status = 'pending'
                        and d.next_attempt_at <= statement_timestamp())
        order by claimed_at nulls first, id limit 1 for no key update skip locked)
    update webhook_endpoints e set fence = e.fence + 1, claimed_at = clock_timestamp(),
        claim_until = clock_timestamp() + $1
    from next where e.id = next.id
      and (e.claim_until is null or e.claim_until < statement_timestamp()) and e.disabled_at is null
    returning e.id, e.fence";

/// Takes the endpoint whose turn it is, with its delivery that has been due the longest, for `hold`; after that
/// somebody else may take it.
pub async fn claim(db: &Db, choice: Choice, hold: Duration) -> Result<Option<Claim>> {
    let args = (choice, hold);
    db.transact(Lane::Api, args, |tx, (choice, hold)| Box::pin(claim_next(tx, *choice, *hold)))
        .await
}

async fn claim_next(
    tx: &mut PgConnection,
    choice: Choice,
    hold: Duration,
) -> Result<Option<Claim>> {
    let next: Option<(String, i64)> = sqlx::query_as(CLAIM)
        .bind(crate::interval(hold))
        .bind(choice == Choice::Any)
        .fetch_optional(&mut *tx)
        .await?;
    let Some((id, fence)) = next else { return Ok(None) };
    let due = sqlx::query(
        "select d.id, d.tries, o.id as event_id, o.type, coalesce(o.job_id, o.eval_run_id) as subject,
                o.created_at
         from webhook_deliveries d join outbox o on o.id = d.event_id
         where d.endpoint_id = $1 and d.status = 'pending' and d.next_attempt_at <= clock_timestamp()
         order by d.next_attempt_at, d.id limit 1",
    )
    .bind(&id)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(due) = due else {
        // Somebody else has sent it between the two looks.
        sqlx::query("update webhook_endpoints set claim_until = null where id = $1")
            .bind(&id)
            .execute(tx)
            .await?;
        return Ok(None);
    };
    let endpoint: EndpointRecord =
        sqlx::query_as(concat!("select ", columns!(), " from webhook_endpoints where id = $1"))
            .bind(&id)
            .fetch_one(tx)
            .await?;
    let event = EventRow {
        id: due.try_get::<String, _>("event_id")?.into(),
        kind: due.try_get("type")?,
        subject: due.try_get("subject")?,
        created_at: due.try_get("created_at")?,
    };
    Ok(Some(Claim {
        endpoint: endpoint.into(),
        delivery: due.try_get::<String, _>("id")?.into(),
        event,
        tries: due.try_get::<i32, _>("tries")?.unsigned_abs(),
        fence,
    }))
}

/// Gives the claim back with nothing said of the delivery (shutdown); it may be claimed at once.
pub async fn release(db: &Db, claim: &Claim) -> Result<()> {
    let changed = sqlx::query(
        "update webhook_endpoints set claim_until = null
         where id = $1 and fence = $2 and claim_until is not null",
    )
    .bind(claim.endpoint.id.as_str())
    .bind(claim.fence)
    .execute(&db.pool)
    .await?
    .rows_affected();
    if changed == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Records an attempt and ends the claim. `LeaseLost` when the claim is over: then nothing is recorded, and
/// whoever has the endpoint sends again.
pub async fn settle(db: &Db, claim: &Claim, sent: Sent) -> Result<()> {
    let args = (claim.endpoint.id.clone(), claim.fence, claim.delivery.clone(), claim.tries, sent);
    db.transact(Lane::Api, args, |tx, (endpoint, fence, delivery, tries, sent)| {
        Box::pin(async move {
            let began = end_claim(tx, endpoint, *fence, sent).await?;
            record(tx, delivery, *tries, began, sent).await?;
            match sent.verdict {
                Verdict::Gone => disable(tx, endpoint).await,
                _ => Ok(()),
            }
        })
    })
    .await
}

#[derive(FromRow)]
struct Began {
    claimed_at: OffsetDateTime,
}

async fn end_claim(
    tx: &mut PgConnection,
    endpoint: &WebhookEndpointId,
    fence: i64,
    sent: &Sent,
) -> Result<OffsetDateTime> {
    let is_good = sent.verdict == Verdict::Delivered;
    let began: Option<Began> = sqlx::query_as(
        "update webhook_endpoints set claim_until = null,
             failures = case when $3 then 0 else failures + 1 end,
             rest_until = case when $3 or failures + 1 < $4 then clock_timestamp()
                 else clock_timestamp() + least($5 * 2 ^ least(failures + 1 - $4, 20), $6) end
         where id = $1 and fence = $2 and claim_until is not null
         returning claimed_at",
    )
    .bind(endpoint.as_str())
    .bind(fence)
    .bind(is_good)
    .bind(PATIENCE)
    .bind(crate::interval(REST))
    .bind(crate::interval(LONGEST_REST))
    .fetch_optional(tx)
    .await?;
    began.map(|began| began.claimed_at).ok_or(Error::LeaseLost)
}

async fn record(
    tx: &mut PgConnection,
    delivery: &WebhookDeliveryId,
    tries: u32,
    began: OffsetDateTime,
    sent: &Sent,
) -> Result<()> {
    let attempt = Attempt {
        at: began.unix_timestamp(),
        status_code: sent.status_code,
        error: sent.error.as_deref().map(text::clean_message),
        duration_ms: u64::try_from(sent.duration.as_millis()).unwrap_or(u64::MAX),
    };
    let (status, retry_in) = match sent.verdict {
        Verdict::Delivered => ("delivered", None),
        Verdict::RetryIn(pause) => ("pending", Some(crate::interval(pause))),
        Verdict::GiveUp | Verdict::Gone => ("failed", None),
    };
    // A delivery that the user has meanwhile wanted anew (tries are fewer) stays due, unless this went well.
    sqlx::query(
        "update webhook_deliveries set
             attempts = (case when jsonb_array_length(attempts) >= $6 then attempts - 0 else attempts end)
                        || jsonb_build_array($2::jsonb),
             status = case when stays then status else $3 end,
             tries = case when stays then tries else tries + 1 end,
             next_attempt_at = case when stays then next_attempt_at else clock_timestamp() + $4 end,
             finished_at = case when stays then finished_at
                                when $4::interval is null then clock_timestamp() end
         from (select id as same, tries < $5 and $3 <> 'delivered' as stays
               from webhook_deliveries where id = $1) as now
         where id = $1 and id = same and status = 'pending'",
    )
    .bind(delivery.as_str())
    .bind(Json(attempt))
    .bind(status)
    .bind(retry_in)
    .bind(i32::try_from(tries).unwrap_or(i32::MAX))
    .bind(LOGGED)
    .execute(tx)
    .await?;
    Ok(())
}

/// The receiver has said that it is gone.
async fn disable(tx: &mut PgConnection, endpoint: &WebhookEndpointId) -> Result<()> {
    sqlx::query(
        "update webhook_endpoints set disabled_at = clock_timestamp(),
             disabled_reason = 'It answered 410 Gone.' where id = $1",
    )
    .bind(endpoint.as_str())
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "update webhook_deliveries set status = 'failed', next_attempt_at = null,
             finished_at = clock_timestamp() where endpoint_id = $1 and status = 'pending'",
    )
    .bind(endpoint.as_str())
    .execute(tx)
    .await?;
    Ok(())
}
