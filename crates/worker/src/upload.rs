//! Checkpoints on their way to the server: hashed, begun, put file by file, committed.
//!
//! One at a time and in order. A checkpoint is committed only after the server has every report
//! before it: whoever resumes from it finds the metrics of all its steps. The newest folder stays
//! on this disk until the next is committed, so that an engine that dies can go on without a
//! download. A checkpoint that cannot be stored costs a warning; only the final one is worth
//! failing for.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use domain::CheckpointId;
use domain::RunReport;
use domain::internal::{BeginCheckpoint, ManifestFile};
use domain::report::{CheckpointKind, CheckpointReport, Level, RunFailure};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::client::CallError;
use crate::lease::Lease;
use crate::reports::Mark;
use crate::signals::{Abort, Signals};
use crate::transfer::{hex, io_code, plain_name};

/// A final checkpoint that the server has committed.
#[derive(Debug, Clone)]
pub struct StoredFinal {
    pub checkpoint_id: CheckpointId,
    pub trained_tokens: u64,
    pub files: Vec<ManifestFile>,
    pub dir: PathBuf,
}

struct Pending {
    checkpoint: CheckpointReport,
    reports_before: Mark,
}

/// The way in. Uploading stops when it is dropped.
pub struct Uploader {
    queue: mpsc::UnboundedSender<Pending>,
    task: AbortOnDropHandle<Option<Result<StoredFinal, RunFailure>>>,
}

impl Uploader {
    pub fn start(lease: Lease, signals: Signals) -> Self {
        // Unbounded, but what waits is folders on disk, and superseded ones are skipped.
        let (queue, pending) = mpsc::unbounded_channel();
        let task = AbortOnDropHandle::new(tokio::spawn(upload_all(pending, lease, signals)));
        Self { queue, task }
    }

    pub fn push(&self, checkpoint: CheckpointReport, reports_before: Mark) {
        // The task ends early only after an abort, which ends the run as well.
        let _ = self.queue.send(Pending { checkpoint, reports_before });
    }

    /// Waits until everything is stored. None if no final checkpoint was among it.
    pub async fn drain(self) -> Option<Result<StoredFinal, RunFailure>> {
        drop(self.queue);
        self.task.await.unwrap_or_else(|error| Some(Err(failure("internal_error", error))))
    }
}

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

async fn upload_all(
    mut queue: mpsc::UnboundedReceiver<Pending>,
    lease: Lease,
    signals: Signals,
) -> Option<Result<StoredFinal, RunFailure>> {
    let mut waiting = VecDeque::new();
    let mut newest_committed: Option<PathBuf> = None;
    let mut last_final = None;
    loop {
        while let Ok(pending) = queue.try_recv() {
            waiting.push_back(pending);
        }
        let next = match waiting.pop_front() {
            Some(pending) => Some(pending),
            None => queue.recv().await,
        };
        let Some(Pending { checkpoint, reports_before }) = next else { return last_final };
        if checkpoint.kind == CheckpointKind::Resume && !waiting.is_empty() {
            remove(&checkpoint.dir).await; // A newer one makes it worthless.
            continue;
        }
        reports_before.acknowledged().await;
        let stored = store(&lease, &checkpoint).await;
        let is_final = checkpoint.kind == CheckpointKind::Final;
        match stored {
            Ok(stored) => {
                if let Some(old) = newest_committed.replace(checkpoint.dir) {
                    remove(&old).await;
                }
                if is_final {
                    last_final = Some(Ok(stored));
                }
            }
            Err(UploadError::Call(CallError::LeaseLost)) => {
                signals.abort(Abort::LeaseLost);
                return None;
            }
            Err(error) if is_final => last_final = Some(Err(as_failure(&error))),
            Err(error) => reports_before.push(not_stored(checkpoint.step, &error)),
        }
    }
}

async fn store(lease: &Lease, checkpoint: &CheckpointReport) -> Result<StoredFinal, UploadError> {
    let dir = checkpoint.dir.clone();
    let files = tokio::task::spawn_blocking(move || manifest(&dir)).await.map_err(|error| {
        UploadError::Io { path: checkpoint.dir.clone(), source: std::io::Error::other(error) }
    })??;
    let begin = BeginCheckpoint {
        step: checkpoint.step,
        kind: checkpoint.kind,
        files,
        trained_tokens: checkpoint.trained_tokens,
        metrics: checkpoint.metrics.clone(),
    };
    let begun = lease.persist("begin a checkpoint", || lease.begin_checkpoint(&begin));
    let id = begun.await?.checkpoint_id;
    for entry in &begin.files {
        put(lease, &id, entry, &checkpoint.dir.join(&entry.name)).await?;
    }
    lease.persist("commit a checkpoint", || lease.commit_checkpoint(&id)).await?;
    Ok(StoredFinal {
        checkpoint_id: id,
        trained_tokens: begin.trained_tokens,
        files: begin.files,
        dir: checkpoint.dir.clone(),
    })
}

async fn put(
    lease: &Lease,
    id: &CheckpointId,
    entry: &ManifestFile,
    path: &Path,
) -> Result<(), CallError> {
    for _ in 0..2 {
        let put = || lease.put_checkpoint_file(id, entry, path);
        match lease.persist("upload a checkpoint's file", put).await {
            // Damaged on the way: worth another try, but not for ever.
            Err(CallError::Refused { status: 422, message, .. }) => {
                tracing::warn!("{}: {message}; sending it again", entry.name);
            }
            answer => return answer,
        }
    }
    let put = || lease.put_checkpoint_file(id, entry, path);
    lease.persist("upload a checkpoint's file", put).await
}

/// Every file of a folder with size and hash, by name.
fn manifest(dir: &Path) -> Result<Vec<ManifestFile>, UploadError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| UploadError::Io { path, source }
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut file = match plain_name(name) {
            Ok(_) if path.is_file() => File::open(&path).map_err(io(&path))?,
            _ => return Err(io(&path)(std::io::Error::other("not a plain file"))),
        };
        let mut hash = Sha256::new();
        let bytes = std::io::copy(&mut file, &mut hash).map_err(io(&path))?;
        files.push(ManifestFile { name: name.to_owned(), bytes, sha256: hex(&hash.finalize()) });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

async fn remove(dir: &Path) {
    if let Err(error) = tokio::fs::remove_dir_all(dir).await {
        tracing::warn!("cannot remove the checkpoint {}: {error}", dir.display());
    }
}

fn as_failure(error: &UploadError) -> RunFailure {
    let code = match error {
        UploadError::Call(_) => "internal_error",
        UploadError::Io { source, .. } => io_code(source),
    };
    failure(code, format!("The final checkpoint cannot be stored: {error}"))
}

fn failure(code: &str, message: impl ToString) -> RunFailure {
    let (code, message) = (code.to_owned(), message.to_string());
    RunFailure { code, param: None, message, retryable: true }
}

fn not_stored(step: u64, error: &UploadError) -> RunReport {
    tracing::warn!("the checkpoint of step {step} is not stored: {error}");
    let message = format!("The checkpoint of step {step} could not be stored: {error}");
    RunReport::Message { level: Level::Warn, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_lists_every_file_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state.json"), "{}").unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), "").unwrap();
        let files = manifest(dir.path()).unwrap();
        let found: Vec<_> = files.iter().map(|f| (f.name.as_str(), f.bytes)).collect();
        assert_eq!(found, [("adapter_config.json", 0), ("state.json", 2)]);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(files[0].sha256, empty, "the published hash of no bytes");
    }

    #[test]
    fn a_folder_inside_a_checkpoint_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nested")).unwrap();
        let error = manifest(dir.path()).unwrap_err().to_string();
        assert!(error.contains("nested"), "{error}");
    }
}
