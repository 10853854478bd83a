//! One reader's stream: server-sent events from wherever it wants to begin, until the job has ended.
//!
//! A reader holds its place and nothing else. Whoever reads slowly is not waited for: what it has missed it
//! takes from the database later.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use domain::JobId;
use futures::{Stream, stream};
use store::events::EventRow;
use store::{Project, follow};
use tokio::sync::watch;

use super::hub::Latest;
use crate::convert::{self, OrNotFound};
use crate::error::{ApiError, ApiResult, ErrorChain};
use crate::state::AppState;

/// Proxies cut connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const RETRY_IN: Duration = Duration::from_secs(1);
/// Events that are read from the database at once.
const PAGE: u32 = 100;
/// What a client that lost its connection sends by itself: the id of the last event that it got.
const LAST_EVENT_ID: &str = "last-event-id";

/// An event on the wire.
pub(super) fn frame(event: EventRow) -> Bytes {
    let event = convert::event(event);
    let json = serde_json::to_string(&event).unwrap_or_default();
    Bytes::from(format!("id: {}\ndata: {json}\n\n", event.id))
}

/// The stream of a job's events after the one that the client names, or of all.
pub(crate) async fn open(
    state: AppState,
    project: &Project,
    job: String,
    after: Option<String>,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let id = JobId::from(job.as_str());
    let db = &state.store.db;
    let progress =
        follow::progress(db, project, &id).await.or_not_found(|| ApiError::JobNotFound(job))?;
    let last = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let last = last.filter(|id| !id.is_empty()).map(str::to_owned).or(after);
    let seen = match last {
        None => 0,
        Some(event) => follow::seq_of(db, &id, &event).await?.ok_or_else(|| {
            let message = format!("Invalid 'after': job {id} has no event '{event}'.");
            ApiError::invalid_value("after", message)
        })?,
    };
    let latest = state.follow.subscribe(&id, progress);
    let reader = Reader { state, id, seen, latest };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would gather the events until its buffer is full.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(reader.into_stream())).into_response())
}

struct Reader {
    state: AppState,
    id: JobId,
    /// The number of the last event that was handed on.
    seen: i64,
    latest: watch::Receiver<Latest>,
}

impl Reader {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        // Small while it waits: the reading, which is large, is boxed.
        stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            let (chunk, goes_on) = reader.next().await?;
            Some((Ok(chunk), goes_on.then_some(reader)))
        })
    }

    /// The next bytes, and whether more may follow. None ends the stream without a word: the job is gone, or
    /// the server stops and the client shall come back.
    async fn next(&mut self) -> Option<(Bytes, bool)> {
        loop {
            let latest = self.latest.borrow_and_update().clone();
            if latest.is_gone {
                return None;
            }
            if self.seen < latest.progress.event_seq {
                let chunk = match latest.after(self.seen) {
                    Some(chunk) => {
                        self.seen = latest.progress.event_seq;
                        chunk
                    }
                    None => Box::pin(self.read()).await?,
                };
                return Some((chunk, true));
            }
            if latest.progress.has_ended {
                return Some((Bytes::from_static(b"data: [DONE]\n\n"), false));
            }
            tokio::select! {
                changed = tokio::time::timeout(KEEP_ALIVE, self.latest.changed()) => match changed {
                    Ok(Ok(())) => {}
                    // Nobody looks after the job any more.
                    Ok(Err(_)) => return None,
                    Err(_) => return Some((keep_alive(), true)),
                },
                () = self.state.stopping.cancelled() => return None,
            }
        }
    }

    /// Events that are not kept any more, a page at a time.
    async fn read(&mut self) -> Option<Bytes> {
        let _turn = self.state.follow.reading.acquire().await.ok()?;
        match follow::backlog(&self.state.store.db, &self.id, self.seen, PAGE).await {
            Ok(events) => {
                // An event that is counted is there, unless the job was deleted meanwhile.
                self.seen = events.last()?.seq;
                Some(events.into_iter().flat_map(frame).collect())
            }
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                tracing::debug!(job.id = %self.id, error, "a reader of events has to wait");
                tokio::time::sleep(RETRY_IN).await;
                Some(keep_alive())
            }
        }
    }
}

fn keep_alive() -> Bytes {
    Bytes::from_static(b": keep-alive\n\n")
}
