//! Sends webhooks: claims an endpoint with the delivery that is due, makes one request, and records how it went.
//! Several endpoints are served at once, each by one request at a time. Half of the places are for endpoints whose
//! latest request went well, so that those that answer late or never hold up each other alone.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use store::webhooks::claims::{self, Choice, Claim, Sent, Verdict};
use tokio::task::JoinSet;

use crate::egress::{EgressError, Reply};
use crate::error::ErrorChain;
use crate::state::AppState;
use crate::webhooks::message;

const POLL: Duration = Duration::from_secs(1);
/// A claim outlives its request by this: the recording may have to wait for the database.
const MARGIN: Duration = Duration::from_secs(10);
/// A receiver that asks for more patience is asked after this all the same.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(state: AppState) {
    let places = state.config.webhooks.at_once.max(2);
    let mut sending = JoinSet::new();
    loop {
        // Listening begins before looking, so that no wish falls between the two.
        let woken = state.wake.webhooks.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        while sending.try_join_next().is_some() {}
        if state.stopping.is_cancelled() {
            break;
        }
        if let Some(claim) = next(&state, places, sending.len()).await {
            sending.spawn(deliver(state.clone(), claim));
            continue;
        }
        tokio::select! {
            () = woken => {}
            Some(_) = sending.join_next() => {}
            () = tokio::time::sleep(POLL) => {}
            () = state.stopping.cancelled() => {}
        }
    }
    while sending.join_next().await.is_some() {}
}

async fn next(state: &AppState, places: usize, taken: usize) -> Option<Claim> {
    if taken >= places {
        return None;
    }
    let choice = if taken < places / 2 { Choice::Any } else { Choice::Healthy };
    let hold = state.config.webhooks.timeout + MARGIN;
    match claims::claim(&state.store.db, choice, hold).await {
        Ok(claim) => claim,
        Err(error) => {
            let error = ErrorChain(&error).to_string();
            tracing::warn!(error, "looking for webhooks to send failed");
            None
        }
    }
}

async fn deliver(state: AppState, claim: Claim) {
    let (endpoint, event) = (&claim.endpoint, &claim.event);
    let body = message::body(event);
    let headers = message::headers(event.id.as_str(), endpoint.secrets(), &body);
    let start = Instant::now();
    let reply = tokio::select! {
        reply = state.egress.post(&endpoint.url, headers, body) => reply,
        () = state.stopping.cancelled() => {
            // The receiver may get it twice, and knows the id.
            if let Err(error) = claims::release(&state.store.db, &claim).await {
                tracing::debug!(error = ErrorChain(&error).to_string(), "a claim runs out by itself");
            }
            return;
        }
    };
    let sent = judge(reply, start.elapsed(), |asked| pause(&state, claim.tries, asked));
    let (status, error) = (sent.status_code, sent.error.clone());
    match (sent.verdict, &error) {
        (Verdict::Delivered, _) => {
            tracing::info!(webhook.endpoint = %endpoint.id, webhook.event = %event.id, status,
                "a webhook was delivered");
        }
        (verdict, error) => {
            tracing::warn!(webhook.endpoint = %endpoint.id, webhook.event = %event.id, status, error,
                ?verdict, "a webhook was not taken");
        }
    }
    if let Err(error) = claims::settle(&state.store.db, &claim, sent).await {
        let error = ErrorChain(&error).to_string();
        tracing::warn!(webhook.event = %event.id, error,
            "how a webhook went could not be recorded; it is sent again");
    }
}

/// What an answer, or none, means. `pause` says when to try again, if at all.
fn judge(
    reply: Result<Reply, EgressError>,
    duration: Duration,
    pause: impl Fn(Option<Duration>) -> Option<Duration>,
) -> Sent {
    let again = |asked| pause(asked).map_or(Verdict::GiveUp, Verdict::RetryIn);
    let (status, error, verdict) = match reply {
        Err(error) => (None, Some(error.to_string()), again(None)),
        Ok(Reply { status, .. }) if status.is_success() => (Some(status), None, Verdict::Delivered),
        Ok(Reply { status, .. }) if status == StatusCode::GONE => {
            (Some(status), Some("the receiver is gone".to_owned()), Verdict::Gone)
        }
        Ok(Reply { status, retry_after }) => {
            let error = match status.is_redirection() {
                true => "redirects are not followed".to_owned(),
                false => format!("the receiver answered {status}"),
            };
            (Some(status), Some(error), again(retry_after))
        }
    };
    Sent { status_code: status.map(|status| status.as_u16()), error, duration, verdict }
}

/// The pause before the next attempt: the operator's, up to a tenth longer, so that what failed together does not
/// come back together; or what the receiver asked for, if that is longer. None after the last attempt.
fn pause(state: &AppState, tries: u32, asked: Option<Duration>) -> Option<Duration> {
    let planned = state.config.webhooks.retries.get(tries as usize)?.0;
    let share = f64::from(uuid::Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX);
    let planned = planned.mul_f64(1.0 + share / 10.0);
    Some(asked.map_or(planned, |asked| planned.max(asked.min(LONGEST_PAUSE))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: u16, retry_after: Option<u64>) -> (Verdict, Option<String>) {
        let status = StatusCode::from_u16(status).unwrap();
        let reply = Reply { status, retry_after: retry_after.map(Duration::from_secs) };
        let pause = |asked: Option<Duration>| Some(asked.unwrap_or(Duration::from_secs(5)));
        let sent = judge(Ok(reply), Duration::ZERO, pause);
        assert_eq!(sent.status_code, Some(status.as_u16()));
        (sent.verdict, sent.error)
    }

    #[test]
    fn only_success_acknowledges_and_only_410_disables() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(verdict(status, None), (Verdict::Delivered, None));
        }
        for status in [301, 302, 307, 308, 400, 401, 404, 429, 500, 503] {
            let (verdict, error) = verdict(status, None);
            assert_eq!(verdict, Verdict::RetryIn(Duration::from_secs(5)), "{status}");
            assert!(error.is_some());
        }
        assert_eq!(verdict(410, None).0, Verdict::Gone);
        assert_eq!(verdict(503, Some(77)).0, Verdict::RetryIn(Duration::from_secs(77)));
    }

    #[test]
    fn no_answer_is_tried_again_until_there_are_no_more_attempts() {
        let none = || Err(EgressError::Timeout(Duration::from_secs(20)));
        let sent = judge(none(), Duration::ZERO, |_| Some(Duration::from_secs(1)));
        assert_eq!(
            (sent.status_code, sent.verdict),
            (None, Verdict::RetryIn(Duration::from_secs(1)))
        );
        assert_eq!(sent.error.as_deref(), Some("there was no answer within 20s"));
        assert_eq!(judge(none(), Duration::ZERO, |_| None).verdict, Verdict::GiveUp);
    }
}
