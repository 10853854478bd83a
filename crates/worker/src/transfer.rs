//! Downloads: a named file of known size and hash, written, checked, synced, renamed into place.
//!
//! A file that differs from its manifest never gets its final name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use domain::internal::ManifestFile;
use domain::report::RunFailure;
use futures::StreamExt;
use reqwest::Response;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::client::{CallError, chain};
use crate::retry::Backoff;

/// A transfer that moves nothing for this long is broken.
const SILENCE: Duration = Duration::from_secs(60);
/// Downloads of one file that may differ from the manifest before that is the server's fault.
const MISMATCHES: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{name}: the download has {found}, the manifest says {expected}; refused")]
    Mismatch { name: String, expected: String, found: String },
    #[error("cannot write {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("'{0}' is not a plain file name; refused")]
    Name(String),
}

impl TransferError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// What a run ends with that cannot be staged. Lost leases are handled before.
    pub fn as_failure(&self) -> RunFailure {
        let (code, retryable) = match self {
            Self::Call(CallError::Refused { status: 404, .. }) => ("file_not_found", false),
            Self::Call(_) => ("staging_failed", true),
            Self::Mismatch { .. } | Self::Name(_) => ("hash_mismatch", true),
            Self::Io { source, .. } => (io_code(source), true),
        };
        RunFailure { code: code.to_owned(), param: None, message: self.to_string(), retryable }
    }
}

/// The stable word for a failed write on the worker's disk.
pub(crate) fn io_code(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "disk_full",
        _ => "io_error",
    }
}

/// A name that stays inside its folder.
pub fn plain_name(name: &str) -> Result<&str, TransferError> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0']);
    if plain { Ok(name) } else { Err(TransferError::Name(name.to_owned())) }
}

/// Fetches `entry` into `folder`, repeating while the server cannot be reached.
pub async fn fetch<F>(
    entry: &ManifestFile,
    folder: &Path,
    mut backoff: Backoff,
    open: impl Fn() -> F,
) -> Result<PathBuf, TransferError>
where
    F: Future<Output = Result<Response, CallError>>,
{
    let path = folder.join(plain_name(&entry.name)?);
    let mut mismatches = 0;
    loop {
        let attempt = async { save(open().await?, entry, &path).await };
        match attempt.await {
            Ok(()) => return Ok(path),
            Err(TransferError::Call(CallError::Unreachable(why))) => {
                if backoff.attempts() == 0 {
                    tracing::warn!("cannot fetch {} yet, will repeat: {why}", entry.name);
                }
            }
            Err(error @ TransferError::Mismatch { .. }) => {
                mismatches += 1;
                if mismatches == MISMATCHES {
                    return Err(error);
                }
                tracing::warn!("{error}; fetching it again");
            }
            Err(error) => return Err(error),
        }
        backoff.pause().await;
    }
}

async fn save(response: Response, entry: &ManifestFile, path: &Path) -> Result<(), TransferError> {
    let partial = path.with_added_extension("part");
    let outcome = save_as(response, entry, &partial).await;
    match outcome {
        Ok(()) => tokio::fs::rename(&partial, path).await.map_err(TransferError::io(path)),
        Err(error) => {
            let _ = tokio::fs::remove_file(&partial).await;
            Err(error)
        }
    }
}

async fn save_as(
    response: Response,
    entry: &ManifestFile,
    partial: &Path,
) -> Result<(), TransferError> {
    let mut file = tokio::fs::File::create(partial).await.map_err(TransferError::io(partial))?;
    let mut hash = Sha256::new();
    let mut bytes = 0u64;
    let mut body = response.bytes_stream();
    loop {
        let next = tokio::time::timeout(SILENCE, body.next());
        let chunk = match next.await {
            Ok(None) => break,
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(e))) => return Err(broken(entry, &chain(&e))),
            Err(_) => return Err(broken(entry, "nothing came for a minute")),
        };
        bytes += chunk.len() as u64;
        if bytes > entry.bytes {
            break; // Too long already: no reason to fill the disk with the rest.
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(TransferError::io(partial))?;
    }
    if bytes != entry.bytes {
        let more = if bytes > entry.bytes { "at least " } else { "" };
        return Err(mismatch(entry, format!("{} bytes", entry.bytes), format!("{more}{bytes}")));
    }
    let found = hex(&hash.finalize());
    if !found.eq_ignore_ascii_case(&entry.sha256) {
        return Err(mismatch(entry, format!("SHA-256 {}", entry.sha256), found));
    }
    file.sync_all().await.map_err(TransferError::io(partial))
}

fn broken(entry: &ManifestFile, why: &str) -> TransferError {
    CallError::Unreachable(format!("the transfer of {} broke off: {why}", entry.name)).into()
}

fn mismatch(entry: &ManifestFile, expected: String, found: String) -> TransferError {
    TransferError::Mismatch { name: entry.name.clone(), expected, found }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a String takes all text");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", ".hidden"] {
            assert!(plain_name(name).is_err(), "{name:?}");
        }
        assert!(plain_name("adapter_model.safetensors").is_ok());
    }

    #[test]
    fn a_full_disk_is_called_by_its_name() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failure = TransferError::io(Path::new("/x/train.jsonl"))(full).as_failure();
        assert_eq!((failure.code.as_str(), failure.retryable), ("disk_full", true));
        assert!(failure.message.contains("/x/train.jsonl"), "{}", failure.message);
    }
}
