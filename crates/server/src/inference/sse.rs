//! Server-sent events of a stream: each leaves as soon as it is written; a client that is gone ends the answer.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::ApiError;

const KEEP_ALIVE: Duration = Duration::from_secs(15);
const BUFFER: usize = 16;

/// The reader is gone.
pub(crate) struct Gone;

/// Where a stream's events are written.
#[derive(Clone)]
pub(crate) struct Writer(mpsc::Sender<Result<Event, Infallible>>);

impl Writer {
    pub(crate) async fn json(&self, value: &impl Serialize) -> Result<(), Gone> {
        self.data(serde_json::to_string(value).map_err(|_| Gone)?).await
    }

    /// The last event.
    pub(crate) async fn done(&self) -> Result<(), Gone> {
        self.data("[DONE]".to_owned()).await
    }

    /// An error in the middle: its status has long been sent.
    pub(crate) async fn fail(&self, error: &ApiError) -> Result<(), Gone> {
        if let ApiError::Internal(source) = error {
            tracing::error!(error = %source, "a streamed answer failed");
        }
        self.json(&error.envelope()).await
    }

    async fn data(&self, data: String) -> Result<(), Gone> {
        self.0.send(Ok(Event::default().data(data))).await.map_err(|_| Gone)
    }
}

/// A response whose events `write` writes, until the client leaves.
pub(crate) fn respond<F, W>(write: F) -> Response
where
    F: FnOnce(Writer) -> W,
    W: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BUFFER);
    let writing = write(Writer(sender.clone()));
    tokio::spawn(async move {
        // The client's leaving must end the wait for the next token, not only the next write.
        tokio::select! {
            () = sender.closed() => {}
            written = writing => {
                if let Err(Gone) = written {
                    tracing::debug!("the client left in the middle of a stream");
                }
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    Sse::new(ReceiverStream::new(receiver)).keep_alive(keep_alive).into_response()
}
