//! Writing one blob: hashed on the way, in one request when small, in parts when large.
//!
//! Receiving, hashing and storing go on at the same time, each with a part of its own.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, JoinSet};

use super::{BlobKey, Stored};
use crate::error::{Conflict, Error, Result};

/// Content up to this size goes in one request, larger content in parts of this size.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts under way at a time; with the one being filled this bounds the memory of an upload.
const PARTS_IN_FLIGHT: usize = 2;

/// A blob under construction. Dropped before `finish`, it leaves nothing behind.
pub(super) struct BlobWriter {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// The beginning of the next part.
    buffer: BytesMut,
    upload: Option<Upload>,
    hash: Hash,
    bytes: u64,
}

/// A hash under way: it goes to a blocking thread and back with each part, so that none is held while the
/// sender is slow.
enum Hash {
    Idle(Sha256),
    Busy(JoinHandle<Sha256>),
}

/// What has been written, before it is stored whole.
pub(super) struct Sealed {
    pub stored: Stored,
    last: Bytes,
}

/// The parts of a large blob. `inner` is taken out when the upload is complete; until then `Drop` aborts it.
struct Upload {
    inner: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
}

impl BlobWriter {
    pub(super) fn new(store: Arc<dyn ObjectStore>, path: Path) -> Self {
        let (buffer, upload, hash) = (BytesMut::new(), None, Hash::Idle(Sha256::new()));
        Self { store, path, buffer, upload, hash, bytes: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes += chunk.len() as u64;
        let mut rest = &chunk[..];
        while self.buffer.len() + rest.len() > PART_BYTES {
            let (head, tail) = rest.split_at(PART_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(head);
            rest = tail;
            // Whoever has filled one part will fill most of the next: room for all of it at once.
            let next = BytesMut::with_capacity(PART_BYTES);
            let part = std::mem::replace(&mut self.buffer, next).freeze();
            self.hash.update(part.clone()).await?;
            self.send_part(part).await?;
        }
        self.buffer.extend_from_slice(rest);
        Ok(())
    }

    async fn send_part(&mut self, part: Bytes) -> Result<()> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => {
                let inner = self.store.put_multipart(&self.path).await?;
                none.insert(Upload { inner: Some(inner), parts: JoinSet::new() })
            }
        };
        while upload.parts.len() >= PARTS_IN_FLIGHT {
            upload.part_done().await?;
        }
        if let Some(inner) = &mut upload.inner {
            upload.parts.spawn(inner.put_part(PutPayload::from(part)));
        }
        Ok(())
    }

    /// Size and hash of all that was written; nothing can be written after this.
    pub(super) async fn seal(&mut self) -> Result<Sealed> {
        let last = std::mem::take(&mut self.buffer).freeze();
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
            self.store.put_opts(&self.path, PutPayload::from(last), create).await.map(|_| ())
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

impl Hash {
    async fn update(&mut self, part: Bytes) -> Result<()> {
        let mut sha256 = self.take().await?;
        *self = Self::Busy(tokio::task::spawn_blocking(move || {
            sha256.update(&part);
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
