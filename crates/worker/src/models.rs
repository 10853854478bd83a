//! The cache of base models and of adapters (or whole tuned models) on this machine's disk, by content.
//!
//! A folder under its final name is complete: files are fetched into a temporary folder, checked
//! one by one, and the folder is renamed as the last act. Several tasks may want the same folder;
//! one fetches it. It does not decide which models are loaded: that is the engine host's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use domain::internal::{AdapterRef, BaseModel, ManifestFile, model_files};
use reqwest::Response;
use sha2::{Digest, Sha256};

use crate::client::{CallError, Client};
use crate::retry::Backoff;
use crate::transfer::{TransferError, fetch, hex, plain_name};

pub struct ModelCache {
    work_dir: PathBuf,
    adapters_kept: usize,
    backoff: Backoff,
    fetching: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl ModelCache {
    /// Opens the cache below `work_dir` and removes what an interrupted process left half done.
    pub fn open(
        work_dir: &Path,
        adapters_kept: usize,
        backoff: Backoff,
    ) -> Result<Self, TransferError> {
        let partial = work_dir.join("partial");
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(TransferError::io(&partial))?;
        }
        for folder in [&partial, &work_dir.join("models"), &work_dir.join("adapters")] {
            std::fs::create_dir_all(folder).map_err(TransferError::io(folder))?;
        }
        let work_dir = work_dir.to_owned();
        Ok(Self { work_dir, adapters_kept, backoff, fetching: Mutex::default() })
    }

    /// The folder of a base model, downloaded when it is not there yet.
    pub async fn base_model(
        &self,
        client: &Client,
        model: &BaseModel,
    ) -> Result<PathBuf, TransferError> {
        let folder = self.work_dir.join("models").join(plain_name(&model.digest)?);
        let files: Vec<&ManifestFile> = model.files.iter().collect();
        self.ensure(folder, &files, |entry| client.model_file(&model.id, &entry.name)).await
    }

    /// The folder of an adapter, downloaded when it is not there yet.
    pub async fn adapter(
        &self,
        client: &Client,
        adapter: &AdapterRef,
    ) -> Result<PathBuf, TransferError> {
        let files = model_files(&adapter.files);
        let folder = self.adapter_folder(&files);
        let folder =
            self.ensure(folder, &files, |entry| client.adapter_file(adapter, &entry.name)).await?;
        touch(&folder);
        Ok(folder)
    }

    /// Keeps the adapter that this worker has just trained, so that its first chat downloads
    /// nothing.
    pub async fn keep_adapter(
        &self,
        manifest: &[ManifestFile],
        checkpoint: &Path,
    ) -> Result<(), TransferError> {
        let files = model_files(manifest);
        let folder = self.adapter_folder(&files);
        if files.is_empty() || is_complete(&folder, &files) {
            return Ok(());
        }
        let partial = self.partial_folder()?;
        for entry in &files {
            let (from, to) = (checkpoint.join(&entry.name), partial.0.join(&entry.name));
            // The checkpoint is about to be removed, and nobody writes to it: a second name will do.
            if tokio::fs::hard_link(&from, &to).await.is_err() {
                tokio::fs::copy(&from, &to).await.map_err(TransferError::io(&to))?;
            }
        }
        self.put_in_place(&partial, &folder)
    }

    async fn ensure<'a, F>(
        &self,
        folder: PathBuf,
        files: &[&'a ManifestFile],
        open: impl Fn(&'a ManifestFile) -> F,
    ) -> Result<PathBuf, TransferError>
    where
        F: Future<Output = Result<Response, CallError>>,
    {
        let turn = self.turn(&folder);
        let _mine = turn.lock().await;
        if is_complete(&folder, files) {
            return Ok(folder);
        }
        let partial = self.partial_folder()?;
        for &entry in files {
            fetch(entry, &partial.0, self.backoff.clone(), || open(entry)).await?;
        }
        self.put_in_place(&partial, &folder)?;
        Ok(folder)
    }

    fn turn(&self, folder: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.retain(|_, turn| Arc::strong_count(turn) > 1);
        fetching.entry(folder.to_owned()).or_default().clone()
    }

    fn partial_folder(&self) -> Result<Partial, TransferError> {
        let folder = self.work_dir.join("partial").join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir_all(&folder).map_err(TransferError::io(&folder))?;
        Ok(Partial(folder))
    }

    fn put_in_place(&self, partial: &Partial, folder: &Path) -> Result<(), TransferError> {
        if folder.exists() {
            // Only a damaged folder is fetched again.
            std::fs::remove_dir_all(folder).map_err(TransferError::io(folder))?;
        }
        std::fs::rename(&partial.0, folder).map_err(TransferError::io(folder))?;
        self.forget_old_adapters();
        Ok(())
    }

    /// By content and not by the server's digest: a worker knows its own adapter's files before the
    /// server has named the model.
    fn adapter_folder(&self, files: &[&ManifestFile]) -> PathBuf {
        let mut hash = Sha256::new();
        for entry in files {
            hash.update(format!("{} {}\n", entry.sha256.to_ascii_lowercase(), entry.name));
        }
        self.work_dir.join("adapters").join(hex(&hash.finalize()))
    }

    fn forget_old_adapters(&self) {
        let entries = std::fs::read_dir(self.work_dir.join("adapters")).into_iter().flatten();
        let mut folders: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        folders.sort();
        let surplus = folders.len().saturating_sub(self.adapters_kept.max(1));
        for (_, folder) in &folders[..surplus] {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                tracing::warn!("cannot remove the old adapter {}: {error}", folder.display());
            }
        }
    }
}

/// A folder that is being filled; removed when that is given up.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed into place, it is gone already.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether every file is there with its size. Content was checked before the folder got its name.
fn is_complete(folder: &Path, files: &[&ManifestFile]) -> bool {
    folder.is_dir()
        && files.iter().all(|entry| {
            let metadata = plain_name(&entry.name).map(|name| folder.join(name).metadata());
            matches!(metadata, Ok(Ok(found)) if found.len() == entry.bytes)
        })
}

/// Marks a folder as used now. Failing to only makes it look older.
fn touch(folder: &Path) {
    let _ = std::fs::File::open(folder).and_then(|f| f.set_modified(SystemTime::now()));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn manifest(name: &str, content: &str) -> ManifestFile {
        let sha256 = hex(&Sha256::digest(content));
        ManifestFile { name: name.to_owned(), bytes: content.len() as u64, sha256 }
    }

    fn cache(dir: &Path, adapters_kept: usize) -> ModelCache {
        let backoff = Backoff::new(Duration::ZERO, Duration::ZERO);
        ModelCache::open(dir, adapters_kept, backoff).unwrap()
    }

    async fn keep(cache: &ModelCache, dir: &Path, content: &str) -> PathBuf {
        std::fs::write(dir.join("adapter_model.safetensors"), content).unwrap();
        let files = [manifest("adapter_model.safetensors", content)];
        cache.keep_adapter(&files, dir).await.unwrap();
        cache.adapter_folder(&model_files(&files))
    }

    #[tokio::test]
    async fn the_least_recently_used_adapter_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 2);
        let first = keep(&cache, dir.path(), "one").await;
        let second = keep(&cache, dir.path(), "two").await;
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        std::fs::File::open(&second).unwrap().set_modified(long_ago).unwrap();
        let third = keep(&cache, dir.path(), "three").await;
        assert!(first.exists() && third.exists());
        assert!(!second.exists(), "the one that was used longest ago is gone");
    }

    #[test]
    fn what_an_interrupted_download_left_is_removed_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("partial/abc");
        std::fs::create_dir_all(&left).unwrap();
        cache(dir.path(), 2);
        assert!(!left.exists());
    }

    #[test]
    fn a_folder_with_a_short_file_is_not_complete() {
        let dir = tempfile::tempdir().unwrap();
        let entry = manifest("config.json", "{}");
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(!is_complete(dir.path(), &[&entry]));
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(is_complete(dir.path(), &[&entry]));
    }
}
