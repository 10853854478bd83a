//! A lease: the right to act for one run, and every call that needs it.
//!
//! A single call makes one attempt. [`Lease::persist`] repeats it until the server has answered,
//! for as long as the lease is not known to be gone: an unreachable server is no reason to give
//! work up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::internal::{
    BeginCheckpoint, CheckpointBegun, FENCE_HEADER, FinishRun, Heartbeat, HeartbeatReply,
    LEASE_HEADER, ManifestFile, ReportBatch, RunFinished,
};
use domain::report::RunFailure;
use domain::{CheckpointId, FileId, JobId};
use reqwest::header::{CONTENT_LENGTH, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::{CallError, Client, SHORT_CALL, read_json, segment};
use crate::retry::Backoff;

/// Cheap to clone. Has no `Debug`: it holds a secret.
#[derive(Clone)]
pub struct Lease {
    client: Client,
    job_id: JobId,
    fence: i64,
    token: HeaderValue,
    /// When the server last answered.
    contact: Arc<watch::Sender<Instant>>,
    backoff: Backoff,
}

impl Lease {
    /// Errors: a token that no header can carry.
    pub fn new(
        client: &Client,
        run: &domain::internal::ClaimedRun,
        backoff: Backoff,
    ) -> Result<Self, CallError> {
        let mut token =
            HeaderValue::from_str(&run.lease_token).map_err(|_| CallError::Refused {
                call: "runs/claim".to_owned(),
                status: 200,
                code: "unreadable_answer".to_owned(),
                message: "the lease token is not plain text".to_owned(),
            })?;
        token.set_sensitive(true);
        Ok(Self {
            client: client.detached(),
            job_id: run.job_id.clone(),
            fence: run.fence,
            token,
            contact: Arc::new(watch::Sender::new(Instant::now())),
            backoff,
        })
    }

    pub fn last_contact(&self) -> Instant {
        *self.contact.borrow()
    }

    /// Repeats a call until it is answered: done, refused, or the lease lost.
    pub async fn persist<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut backoff = self.backoff.clone();
        loop {
            match call().await {
                Err(CallError::Unreachable(why)) => {
                    // The first failure is news; the rest of an outage is one line now and then.
                    if backoff.attempts().is_power_of_two() || backoff.attempts() == 0 {
                        tracing::warn!(job = %self.job_id, "cannot {what} yet, will repeat: {why}");
                    }
                    backoff.pause().await;
                }
                answer => {
                    if backoff.attempts() > 0 && answer.is_ok() {
                        tracing::info!(job = %self.job_id, "could {what} after all");
                    }
                    return answer;
                }
            }
        }
    }

    pub async fn heartbeat(
        &self,
        beat: &Heartbeat,
        limit: Duration,
    ) -> Result<HeartbeatReply, CallError> {
        let call = self.call(Method::POST, "heartbeat").json(beat).timeout(limit);
        read_json("heartbeat", self.send("heartbeat", call).await?).await
    }

    pub async fn report(&self, batch: &ReportBatch) -> Result<(), CallError> {
        let call = self.call(Method::POST, "reports").json(batch).timeout(SHORT_CALL);
        self.send("reports", call).await.map(drop)
    }

    pub async fn file(&self, id: &FileId) -> Result<Response, CallError> {
        let path = format!("files/{}", segment(id.as_str()));
        self.send(&path, self.call(Method::GET, &path)).await
    }

    pub async fn checkpoint_file(
        &self,
        id: &CheckpointId,
        name: &str,
    ) -> Result<Response, CallError> {
        let path = format!("checkpoints/{}/files/{}", segment(id.as_str()), segment(name));
        self.send(&path, self.call(Method::GET, &path)).await
    }

    pub async fn begin_checkpoint(
        &self,
        begin: &BeginCheckpoint,
    ) -> Result<CheckpointBegun, CallError> {
        let call = self.call(Method::POST, "checkpoints").json(begin).timeout(SHORT_CALL);
        read_json("checkpoints", self.send("checkpoints", call).await?).await
    }

    /// Uploads one file of a checkpoint. The server checks its size and hash.
    pub async fn put_checkpoint_file(
        &self,
        id: &CheckpointId,
        entry: &ManifestFile,
        path: &Path,
    ) -> Result<(), CallError> {
        let name = &entry.name;
        let target = format!("checkpoints/{}/files/{}", segment(id.as_str()), segment(name));
        let file = tokio::fs::File::open(path).await.map_err(|e| CallError::Refused {
            call: target.clone(),
            status: 0,
            code: "unreadable_file".to_owned(),
            message: format!("{}: {e}", path.display()),
        })?;
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(file));
        // A link slower than 100 kB/s would not keep up with a run's checkpoints anyway.
        let limit = SHORT_CALL * 2 + Duration::from_secs(entry.bytes / 100_000);
        let call = self.call(Method::PUT, &target).header(CONTENT_LENGTH, entry.bytes);
        self.send(&target, call.body(body).timeout(limit)).await.map(drop)
    }

    pub async fn commit_checkpoint(&self, id: &CheckpointId) -> Result<(), CallError> {
        let path = format!("checkpoints/{}/commit", segment(id.as_str()));
        // The server checks what is stored before it answers.
        let call = self.call(Method::POST, &path).timeout(SHORT_CALL * 2);
        self.send(&path, call).await.map(drop)
    }

    pub async fn finish(&self, finish: &FinishRun) -> Result<RunFinished, CallError> {
        let call = self.call(Method::POST, "finish").json(finish).timeout(SHORT_CALL * 2);
        read_json("finish", self.send("finish", call).await?).await
    }

    pub async fn fail(&self, failure: &RunFailure) -> Result<(), CallError> {
        let call = self.call(Method::POST, "fail").json(failure).timeout(SHORT_CALL);
        self.send("fail", call).await.map(drop)
    }

    pub async fn release(&self) -> Result<(), CallError> {
        let call = self.call(Method::POST, "release").timeout(SHORT_CALL);
        self.send("release", call).await.map(drop)
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let path = format!("runs/{}/{path}", segment(self.job_id.as_str()));
        self.client
            .request(method, &path)
            .header(FENCE_HEADER, self.fence)
            .header(LEASE_HEADER, self.token.clone())
    }

    async fn send(&self, call: &str, request: RequestBuilder) -> Result<Response, CallError> {
        let answer = self.client.send(call, request).await;
        if !matches!(answer, Err(CallError::Unreachable(_))) {
            self.contact.send_replace(Instant::now());
        }
        answer
    }
}
