//! One request to a receiver: the event's bytes, and the headers that sign them.

use axum::http::header::{CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::SecretString;
use store::webhooks::claims::EventRow;
use time::OffsetDateTime;

use super::signature;
use crate::wire::webhook::{WebhookEvent, WebhookSubject};

/// The body: the same bytes for every attempt and every receiver.
pub(crate) fn body(event: &EventRow) -> Vec<u8> {
    let event = WebhookEvent {
        id: event.id.as_str(),
        object: "event",
        created_at: event.created_at.unix_timestamp(),
        r#type: &event.kind,
        data: WebhookSubject { id: &event.subject },
    };
    serde_json::to_vec(&event).expect("texts and a number become JSON")
}

/// Signed now: receivers refuse what was signed long ago.
pub(crate) fn headers<'s>(
    id: &str,
    secrets: impl Iterator<Item = &'s SecretString>,
    body: &[u8],
) -> HeaderMap {
    let timestamp = OffsetDateTime::now_utc().unix_timestamp();
    let signature = signature::sign(secrets, id, timestamp, body);
    let text = |text: &str| HeaderValue::from_str(text).expect("ids and base64 fit a header");
    HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (USER_AGENT, HeaderValue::from_static(concat!("finetuned/", env!("CARGO_PKG_VERSION")))),
        (HeaderName::from_static("webhook-id"), text(id)),
        (HeaderName::from_static("webhook-timestamp"), HeaderValue::from(timestamp)),
        (HeaderName::from_static("webhook-signature"), text(&signature)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are a promise: a retry by another version of the server must not differ.
    #[test]
    fn the_body_never_changes() {
        let event = EventRow {
            id: "evt_1".into(),
            kind: "fine_tuning.job.succeeded".to_owned(),
            subject: "ftjob-1".to_owned(),
            created_at: OffsetDateTime::from_unix_timestamp(1_719_168_000).unwrap(),
        };
        let expected = concat!(
            r#"{"id":"evt_1","object":"event","created_at":1719168000,"#,
            r#""type":"fine_tuning.job.succeeded","data":{"id":"ftjob-1"}}"#
        );
        assert_eq!(String::from_utf8(body(&event)).unwrap(), expected);
    }
}
