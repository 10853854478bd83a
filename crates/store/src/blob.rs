//! Blobs: uploads, base models and checkpoints, in a local folder (synced to disk) or in S3.
//!
//! A key is generated, never reused, and written once, so a blob that exists under a key with the right size
//! is the one that was meant, also after an answer that got lost. What must be atomic is in Postgres: nothing
//! here relies on listing, renaming or compare-and-swap. Blobs are removed by [`crate::garbage`].
//!
//! S3 keeps the parts of an upload whose process died; give the bucket a lifecycle rule for them
//! (`AbortIncompleteMultipartUpload`, one day).

mod early;
mod write;

use std::io::SeekFrom;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use domain::{CheckpointId, FileId, JobId, PartId, ProjectId, UploadId};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientOptions, GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt, RetryConfig,
};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::config::StorageConfig;
use crate::error::{Error, Result};

pub(crate) use write::hex;

/// Bytes read from a local file at a time.
const READ_SIZE: usize = 256 * 1024;

/// What a blob is. Paths hold generated ids and checked names only: a user's file name is metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobKey {
    File { project: ProjectId, file: FileId },
    UploadPart { project: ProjectId, upload: UploadId, part: PartId },
    BaseModelFile { project: ProjectId, upload: String, name: String },
    CheckpointFile { project: ProjectId, job: JobId, checkpoint: CheckpointId, name: String },
}

impl BlobKey {
    /// The path within the store.
    pub fn path(&self) -> String {
        match self {
            Self::File { project, file } => format!("projects/{project}/files/{file}"),
            Self::UploadPart { project, upload, part } => {
                format!("projects/{project}/uploads/{upload}/{part}")
            }
            Self::BaseModelFile { project, upload, name } => {
                format!("projects/{project}/base-models/{upload}/{name}")
            }
            Self::CheckpointFile { project, job, checkpoint, name } => {
                format!("projects/{project}/jobs/{job}/checkpoints/{checkpoint}/{name}")
            }
        }
    }
}

/// Whether a name may be the last part of a path: letters, digits, `.`, `_`, `-`; not hidden.
pub fn is_plain_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A completely stored blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// What a blob must turn out to be, else nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// A blob being read.
pub struct BlobReader {
    /// Of the whole blob.
    pub bytes: u64,
    /// The part that `stream` yields.
    pub range: Range<u64>,
    pub stream: BoxStream<'static, Result<Bytes>>,
}

/// The blob store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// The folder, if it is one: leftovers of killed uploads there are invisible to the store.
    folder: Option<Arc<PathBuf>>,
}

impl Blobs {
    /// Opens the store that the URL names; a local folder is created. S3 over TLS needs the process to have
    /// installed a rustls crypto provider.
    pub async fn open(config: &StorageConfig) -> Result<Self> {
        let url = config.url.as_deref().ok_or_else(|| {
            Error::Config("storage.url is not set; use file:///folder or s3://bucket".to_owned())
        })?;
        if let Some(folder) = url.strip_prefix("file://") {
            open_folder(PathBuf::from(folder)).await
        } else if let Some(bucket) = url.strip_prefix("s3://") {
            open_s3(bucket, config)
        } else {
            let problem = "must begin with file:// or s3://";
            Err(Error::Config(format!("storage.url '{url}' {problem}")))
        }
    }

    /// Stores a stream of bytes, at most `limit` of them, in constant memory. On any error, a mismatch
    /// with `expected` and a dropped future included, nothing is left behind. Does not replace a blob.
    pub async fn put_stream<E: std::fmt::Display>(
        &self,
        key: &BlobKey,
        mut body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
        limit: u64,
        expected: Option<&Expected>,
    ) -> Result<Stored> {
        let path = key.path();
        let limit = expected.map_or(limit, |expected| expected.bytes.min(limit));
        let early = self.folder.as_ref().map(|folder| early::EarlySync::new(folder, &path));
        let mut writer =
            write::BlobWriter::new(self.store.clone(), Path::from(path.as_str()), early);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| Error::Body(error.to_string()))?;
            if writer.bytes() + chunk.len() as u64 > limit {
                return Err(match expected {
                    Some(_) => write::mismatch(key, &format!("has more than {limit} bytes")),
                    None => Error::TooLarge { limit },
                });
            }
            writer.write(chunk).await?;
        }
        let sealed = writer.seal().await?;
        if let Some(expected) = expected {
            let (bytes, sha256) = (sealed.stored.bytes, sealed.stored.sha256.as_str());
            if bytes != expected.bytes || sha256 != expected.sha256 {
                let (want, wanted) = (expected.bytes, &expected.sha256);
                return Err(write::mismatch(
                    key,
                    &format!("has {bytes} bytes, SHA-256 {sha256}; announced: {want}, {wanted}"),
                ));
            }
        }
        writer.finish(sealed).await
    }

    /// Reads a blob, or the part of it within `range`. `NotFound` when there is none.
    pub async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobReader> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let result = self.store.get_opts(&Path::from(key.path()), options).await?;
        let (bytes, range) = (result.meta.size, result.range.clone());
        let stream = match result.payload {
            GetResultPayload::File(file, _) => read_file(file, range.clone()).await?.boxed(),
            GetResultPayload::Stream(stream) => stream.map_err(Error::from).boxed(),
        };
        Ok(BlobReader { bytes, range, stream })
    }

    /// A whole small blob; `TooLarge` above `limit` bytes.
    pub async fn get_bytes(&self, key: &BlobKey, limit: u64) -> Result<Bytes> {
        let mut reader = self.get(key, None).await?;
        if reader.bytes > limit {
            return Err(Error::TooLarge { limit });
        }
        let mut content = BytesMut::with_capacity(reader.bytes as usize);
        while let Some(chunk) = reader.stream.try_next().await? {
            content.extend_from_slice(&chunk);
        }
        Ok(content.freeze())
    }

    /// The size of a blob in bytes, if it exists.
    pub async fn head(&self, key: &BlobKey) -> Result<Option<u64>> {
        match self.store.head(&Path::from(key.path())).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a blob; one that does not exist is removed already.
    pub async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.delete_path(&key.path()).await
    }

    pub(crate) async fn delete_path(&self, path: &str) -> Result<()> {
        match self.store.delete(&Path::from(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match &self.folder {
            Some(folder) => Ok(remove_leftovers(folder.join(path)).await?),
            None => Ok(()),
        }
    }
}

/// What a killed process leaves of a local upload: `name#1`, `name#2`, … beside the blob.
async fn remove_leftovers(blob: PathBuf) -> std::io::Result<()> {
    let (Some(folder), Some(name)) = (blob.parent(), blob.file_name()) else {
        return Ok(());
    };
    let prefix = format!("{}#", name.to_string_lossy());
    let mut entries = match tokio::fs::read_dir(folder).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            match tokio::fs::remove_file(entry.path()).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                // Gone: removed here, or by the abort of the upload that wrote it.
                _ => {}
            }
        }
    }
    Ok(())
}

async fn open_folder(folder: PathBuf) -> Result<Blobs> {
    if !folder.is_absolute() {
        let shown = folder.display();
        return Err(Error::Config(format!("storage.url: '{shown}' is not an absolute path")));
    }
    tokio::fs::create_dir_all(&folder).await?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|error| Error::Config(format!("storage.url: {error}")))?
        .with_fsync(true)
        .with_automatic_cleanup(true);
    Ok(Blobs { store: Arc::new(store), folder: Some(Arc::new(folder)) })
}

fn open_s3(bucket_and_prefix: &str, config: &StorageConfig) -> Result<Blobs> {
    let (bucket, prefix) = bucket_and_prefix.split_once('/').unwrap_or((bucket_and_prefix, ""));
    // Bodies are long: only silence is limited, not the time of a whole transfer.
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(30))
        .with_allow_http(config.allow_http);
    let retry = RetryConfig {
        max_retries: 5,
        retry_timeout: Duration::from_secs(60),
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let Some(key) = &config.access_key_id {
        builder = builder.with_access_key_id(key.expose_secret());
    }
    if let Some(key) = &config.secret_access_key {
        builder = builder.with_secret_access_key(key.expose_secret());
    }
    let store = builder.build().map_err(|error| Error::Config(format!("storage: {error}")))?;
    let prefix = prefix.trim_matches('/');
    let store: Arc<dyn ObjectStore> =
        if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Blobs { store, folder: None })
}

/// A part of a local file as a stream.
async fn read_file(
    file: std::fs::File,
    range: Range<u64>,
) -> Result<impl Stream<Item = Result<Bytes>> + Send + 'static> {
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(READ_SIZE);
    file.seek(SeekFrom::Start(range.start)).await?;
    let left = range.end - range.start;
    Ok(futures::stream::try_unfold((file, left), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = BytesMut::with_capacity(READ_SIZE.min(left as usize));
        (&mut file).take(left).read_buf(&mut chunk).await?;
        if chunk.is_empty() {
            return Err(Error::Inconsistent("a blob ends before its size".to_owned()));
        }
        let left = left - chunk.len() as u64;
        Ok(Some((chunk.freeze(), (file, left))))
    }))
}
