//! The blob store: the same tests against a folder and against an S3 server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use domain::{FileId, ProjectId};
use futures::{Stream, StreamExt, TryStreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use store::blob::{Blobs, Expected};
use store::{BlobKey, Error, StorageConfig};

use crate::common::hex;

const ANY: u64 = u64::MAX;

/// A real S3 server in this process, over a folder; its address.
async fn s3_server(folder: &std::path::Path) -> String {
    std::fs::create_dir(folder.join("bucket")).unwrap();
    let files = s3s_fs::FileSystem::new(folder).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(files);
    builder.set_auth(s3s::auth::SimpleAuth::from_single("access", "secret"));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let service = service.clone();
            tokio::spawn(async move {
                auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service)
                    .await
                    .ok();
            });
        }
    });
    format!("http://{address}")
}

pub struct Place {
    pub name: &'static str,
    pub blobs: Blobs,
    pub folder: tempfile::TempDir,
}

/// A folder, and an S3 bucket with a prefix.
pub async fn places() -> [Place; 2] {
    rustls::crypto::ring::default_provider().install_default().ok();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().join("blobs").display());
    let local = StorageConfig { url: Some(url), ..StorageConfig::default() };
    let blobs = Blobs::open(&local).await.unwrap();
    let local = Place { name: "folder", blobs, folder };
    let folder = tempfile::tempdir().unwrap();
    let config = StorageConfig {
        url: Some("s3://bucket/some/prefix".to_owned()),
        endpoint: Some(s3_server(folder.path()).await),
        region: Some("us-east-1".to_owned()),
        access_key_id: Some("access".to_owned().into()),
        secret_access_key: Some("secret".to_owned().into()),
        allow_http: true,
    };
    let blobs = Blobs::open(&config).await.unwrap();
    [local, Place { name: "s3", blobs, folder }]
}

fn key() -> BlobKey {
    BlobKey::File { project: ProjectId::from("proj_default"), file: FileId::new() }
}

/// Bytes that differ everywhere, in chunks of an odd size.
fn chunks(length: usize) -> (Vec<u8>, impl Stream<Item = Result<Bytes, std::io::Error>> + Unpin) {
    let content: Vec<u8> = (0..length).map(|n| (n * 31 + n / 251) as u8).collect();
    let chunks: Vec<_> = content.chunks(700_001).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    (content, futures::stream::iter(chunks))
}

async fn read(blobs: &Blobs, key: &BlobKey, range: Option<std::ops::Range<u64>>) -> Vec<u8> {
    let reader = blobs.get(key, range.clone()).await.unwrap();
    let whole = range.unwrap_or(0..reader.bytes);
    assert_eq!(reader.range, whole);
    reader.stream.try_collect::<Vec<_>>().await.unwrap().concat()
}

/// Every file below a folder: objects, parts and leftovers.
pub fn files_below(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn content_comes_back_whatever_its_size() {
    for Place { name, blobs, .. } in places().await {
        let part = 8 * 1024 * 1024;
        for length in [0, 1, 700_001, part - 1, part, part + 1, 2 * part, 3 * part + 12_345] {
            let (key, (content, body)) = (key(), chunks(length));
            let stored = blobs.put_stream(&key, body, ANY, None).await.unwrap();
            assert_eq!(stored.bytes, length as u64, "{name}");
            assert_eq!(stored.sha256, hex(&content), "{name} {length}");
            assert_eq!(blobs.head(&key).await.unwrap(), Some(length as u64), "{name}");
            assert!(read(&blobs, &key, None).await == content, "{name} {length}");
            blobs.delete(&key).await.unwrap();
            assert_eq!(blobs.head(&key).await.unwrap(), None, "{name}");
        }
    }
}

#[tokio::test]
async fn a_range_gives_its_part() {
    for Place { name, blobs, .. } in places().await {
        let (key, (content, body)) = (key(), chunks(9_000_000));
        blobs.put_stream(&key, body, ANY, None).await.unwrap();
        for range in [0..1, 5..5_000_000, 8_388_600..8_388_616, 8_999_999..9_000_000] {
            let part = read(&blobs, &key, Some(range.clone())).await;
            let expected = &content[range.start as usize..range.end as usize];
            assert!(part == expected, "{name} {range:?}");
        }
        let whole = blobs.get_bytes(&key, 9_000_000).await.unwrap();
        assert!(whole == content, "{name}");
        let refused = blobs.get_bytes(&key, 8_999_999).await;
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "{name}");
    }
}

#[tokio::test]
async fn what_is_absent_is_not_found() {
    for Place { name, blobs, .. } in places().await {
        let key = key();
        let absent = blobs.get(&key, None).await.map(|_| ());
        assert!(matches!(absent, Err(Error::NotFound("blob"))), "{name}: {absent:?}");
        assert_eq!(blobs.head(&key).await.unwrap(), None, "{name}");
        blobs.delete(&key).await.unwrap();
    }
}

#[tokio::test]
async fn a_put_that_fails_leaves_nothing() {
    for Place { name, blobs, folder } in places().await {
        let before = files_below(folder.path()).len();
        for length in [1000, 20_000_000] {
            let expected = |bytes: u64, sha256: String| Expected { bytes, sha256 };
            let (content, body) = chunks(length);
            let wrong = expected(length as u64, hex(b"other"));
            let put = blobs.put_stream(&key(), body, ANY, Some(&wrong)).await;
            assert!(matches!(put, Err(Error::HashMismatch { .. })), "{name}: {put:?}");
            let short = expected(length as u64 - 1, hex(&content));
            let put = blobs.put_stream(&key(), chunks(length).1, ANY, Some(&short)).await;
            assert!(matches!(put, Err(Error::HashMismatch { .. })), "{name}: {put:?}");
            let put = blobs.put_stream(&key(), chunks(length).1, length as u64 - 1, None).await;
            assert!(matches!(put, Err(Error::TooLarge { .. })), "{name}: {put:?}");
            let broken =
                chunks(length).1.chain(futures::stream::iter([Err(std::io::Error::other("gone"))]));
            let put = blobs.put_stream(&key(), broken, ANY, None).await;
            assert!(matches!(put, Err(Error::Body(_))), "{name}: {put:?}");
        }
        // Broken-off parts are removed in the background.
        let start = Instant::now();
        while files_below(folder.path()).len() > before {
            let left = files_below(folder.path());
            assert!(start.elapsed() < Duration::from_secs(20), "{name}: {left:?}");
            blobs.head(&key()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_same_content_again_is_harmless_and_other_content_refused() {
    for Place { name, blobs, .. } in places().await {
        let (key, (content, body)) = (key(), chunks(1000));
        blobs.put_stream(&key, body, ANY, None).await.unwrap();
        blobs.put_stream(&key, chunks(1000).1, ANY, None).await.unwrap();
        assert!(read(&blobs, &key, None).await == content, "{name}");
        if name == "folder" {
            let other = blobs.put_stream(&key, chunks(999).1, ANY, None).await;
            assert!(matches!(other, Err(Error::Conflict(_))), "{other:?}");
            assert!(read(&blobs, &key, None).await == content);
        }
    }
}

#[tokio::test]
async fn uploads_hold_a_few_parts_in_memory_and_no_more() {
    for Place { name, blobs, .. } in places().await {
        // Chunks that count themselves: how many bytes are alive at a time?
        let (chunk, count) = (1024 * 1024, 64);
        let alive = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let peak = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counted, highest) = (alive.clone(), peak.clone());
        let body = futures::stream::iter(0..count).map(move |_| {
            Ok::<_, std::io::Error>(Counted::bytes(chunk, counted.clone(), highest.clone()))
        });
        let stored = blobs.put_stream(&key(), body, ANY, None).await.unwrap();
        assert_eq!(stored.bytes, (chunk * count) as u64);
        let peak = peak.load(std::sync::atomic::Ordering::SeqCst);
        // Nothing is copied: chunks live as long as their part, of which one is filled and two are under way.
        let parts = 3 * 8 * 1024 * 1024;
        assert!(peak <= parts + 2 * chunk, "{name}: {peak} bytes of chunks were alive at once");
    }
}

/// Bytes that are counted while they live.
struct Counted {
    content: Vec<u8>,
    alive: Arc<std::sync::atomic::AtomicUsize>,
}

impl Counted {
    fn bytes(
        length: usize,
        alive: Arc<std::sync::atomic::AtomicUsize>,
        peak: Arc<std::sync::atomic::AtomicUsize>,
    ) -> Bytes {
        let now = alive.fetch_add(length, std::sync::atomic::Ordering::SeqCst) + length;
        peak.fetch_max(now, std::sync::atomic::Ordering::SeqCst);
        Bytes::from_owner(Self { content: vec![7; length], alive })
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.content.len(), std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_wrong_storage_url_is_named() {
    for (url, problem) in [
        (None, "storage.url is not set"),
        (Some("ftp://host"), "must begin with"),
        (Some("file://relative/folder"), "not an absolute path"),
    ] {
        let config = StorageConfig { url: url.map(str::to_owned), ..StorageConfig::default() };
        let refused = Blobs::open(&config).await.expect_err("a wrong URL");
        assert!(refused.to_string().contains(problem), "{refused}");
    }
}

#[test]
fn paths_hold_generated_ids_only() {
    let project = ProjectId::from("proj_a");
    for (key, path) in [
        (
            BlobKey::File { project: project.clone(), file: "file-1".into() },
            "projects/proj_a/files/file-1",
        ),
        (
            BlobKey::BaseModelFile {
                project: project.clone(),
                upload: "u1".to_owned(),
                name: "config.json".to_owned(),
            },
            "projects/proj_a/base-models/u1/config.json",
        ),
        (
            BlobKey::CheckpointFile {
                project,
                job: "ftjob-1".into(),
                checkpoint: "ftckpt_1".into(),
                name: "state.json".to_owned(),
            },
            "projects/proj_a/jobs/ftjob-1/checkpoints/ftckpt_1/state.json",
        ),
    ] {
        assert_eq!(key.path(), path);
    }
}
