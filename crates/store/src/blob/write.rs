//! Writing one blob: hashed on the way, in one request when small, in parts when large.
//!
//! Receiving, hashing and storing go on at the same time, each with a part of its own.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, JoinSet};

use super::early::EarlySync;
use super::{BlobKey, Stored};
use crate::error::{Conflict, Error, Result};

/// Content up to this size goes in one request, larger content in parts of this size.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts under way at a time; with the one being filled this bounds the memory of an upload.
const PARTS_IN_FLIGHT: usize = 2;
/// Smaller chunks are copied together: kept one by one, they would take more memory than their bytes.
const SMALL_BYTES: usize = 16 * 1024;

/// A blob under construction. Dropped before `finish`, it leaves nothing behind.
pub(super) struct BlobWriter {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// The beginning of the next part.
    part: Part,
    upload: Option<Upload>,
    /// For a blob in a local folder.
    early: Option<EarlySync>,
    hash: Hash,
    bytes: u64,
}

/// A hash under way: it goes to a blocking thread and back with each part, so that none is held while the
/// sender is slow.
enum Hash {
    Idle(Sha256),
    Busy(JoinHandle<Sha256>),
}

/// Chunks as they came: large ones are kept, not copied.
#[derive(Default)]
struct Part {
    chunks: Vec<Bytes>,
    bytes: usize,
    /// Where small chunks are put together.
    small: BytesMut,
}

/// What has been written, before it is stored whole.
pub(super) struct Sealed {
    pub stored: Stored,
    last: PutPayload,
}

/// The parts of a large blob. `inner` is taken out when the upload is complete; until then `Drop` aborts it.
struct Upload {
    inner: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
}

impl BlobWriter {
    pub(super) fn new(store: Arc<dyn ObjectStore>, path: Path, early: Option<EarlySync>) -> Self {
        let (part, upload, hash) = (Part::default(), None, Hash::Idle(Sha256::new()));
        Self { store, path, part, upload, early, hash, bytes: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) async fn write(&mut self, mut chunk: Bytes) -> Result<()> {
        self.bytes += chunk.len() as u64;
        while self.part.bytes + chunk.len() > PART_BYTES {
            self.part.push(chunk.split_to(PART_BYTES - self.part.bytes));
            let part = std::mem::take(&mut self.part).into_payload();
            self.hash.update(part.clone()).await?;
            self.send_part(part).await?;
        }
        self.part.push(chunk);
        Ok(())
    }

    async fn send_part(&mut self, part: PutPayload) -> Result<()> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => {
                let inner = self.store.put_multipart(&self.path).await?;
                none.insert(Upload { inner: Some(inner), parts: JoinSet::new() })
            }
        };
        while upload.parts.len() >= PARTS_IN_FLIGHT {
            upload.part_done().await?;
            if let Some(early) = &mut self.early {
                early.written(PART_BYTES);
            }
        }
        if let Some(inner) = &mut upload.inner {
            upload.parts.spawn(inner.put_part(part));
        }
        Ok(())
    }

    /// Size and hash of all that was written; nothing can be written after this.
    pub(super) async fn seal(&mut self) -> Result<Sealed> {
        let last = std::mem::take(&mut self.part).into_payload();
        self.hash.update(last.clone()).await?;
        let sha256 = hex(&self.hash.take().await?.finalize());
        Ok(Sealed { stored: Stored { bytes: self.bytes, sha256 }, last })
    }

    pub(super) async fn finish(mut self, sealed: Sealed) -> Result<Stored> {
        let Sealed { stored, last } = sealed;
        let outcome = if self.upload.is_some() {
            self.send_part(last).await?;
            self.complete().await
        } else {
            let create = PutOptions::from(PutMode::Create);
            self.store.put_opts(&self.path, last, create).await.map(|_| ())
        };
        match outcome {
            Ok(()) => Ok(stored),
            Err(error) => self.reconcile(stored, error).await,
        }
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        while !upload.parts.is_empty() {
            upload.part_done().await?;
        }
        if let Some(inner) = &mut upload.inner {
            inner.complete().await?;
        }
        upload.inner = None;
        Ok(())
    }

    /// The answer to the last request may have been lost although it took effect, and its repetition is then
    /// refused. The path is this blob's alone, so the object's size tells what happened.
    async fn reconcile(mut self, stored: Stored, error: object_store::Error) -> Result<Stored> {
        let found = self.store.head(&self.path).await.ok().map(|meta| meta.size);
        if found == Some(stored.bytes) {
            if let Some(upload) = &mut self.upload {
                upload.inner = None;
            }
            return Ok(stored);
        }
        match error {
            object_store::Error::AlreadyExists { path, .. } => Err(Conflict::Exists(path).into()),
            error => Err(error.into()),
        }
    }
}

impl Part {
    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        if chunk.len() < SMALL_BYTES {
            self.small.extend_from_slice(&chunk);
            if self.small.len() >= SMALL_BYTES {
                self.gather();
            }
        } else {
            self.gather();
            self.chunks.push(chunk);
        }
    }

    fn gather(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
    }

    fn into_payload(mut self) -> PutPayload {
        self.gather();
        self.chunks.into_iter().collect()
    }
}

impl Hash {
    async fn update(&mut self, part: PutPayload) -> Result<()> {
        let mut sha256 = self.take().await?;
        *self = Self::Busy(tokio::task::spawn_blocking(move || {
            part.iter().for_each(|chunk| sha256.update(chunk));
            sha256
        }));
        Ok(())
    }

    /// The hash of all parts so far, once it is there.
    async fn take(&mut self) -> Result<Sha256> {
        match std::mem::replace(self, Self::Idle(Sha256::new())) {
            Self::Idle(sha256) => Ok(sha256),
            Self::Busy(hashing) => hashing
                .await
                .map_err(|_| Error::Unavailable("the server is shutting down".to_owned())),
        }
    }
}

impl Upload {
    async fn part_done(&mut self) -> object_store::Result<()> {
        match self.parts.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(source)) => Err(object_store::Error::JoinError { source }),
            None => Ok(()),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        let mut parts = std::mem::take(&mut self.parts);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // A part that is still under way could otherwise arrive after the abort.
                while parts.join_next().await.is_some() {}
                if let Err(error) = inner.abort().await {
                    tracing::warn!(%error, "a broken-off upload could not be removed");
                }
            });
        }
    }
}

pub(super) fn mismatch(key: &BlobKey, problem: &str) -> Error {
    let path = key.path();
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    Error::HashMismatch { name, problem: problem.to_owned() }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}
