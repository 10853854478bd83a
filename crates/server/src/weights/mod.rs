//! The files of a model on their way out: as they are stored, or merged into one whole model.
//!
//! What will be sent is known before the first byte is: names and sizes of all files. The bytes then come from the
//! storage part by part; of a merged model one matrix at a time is computed. The public API sends them as one tar
//! stream, the command line writes them into a folder.

mod merged;
mod tar;

use std::sync::Arc;

use bytes::Bytes;
use domain::ModelId;
use domain::internal::{ManifestFile, required_files};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use store::blob::BlobKey;
use store::models::{self, StoredModel};
use store::{Blobs, Project, Store};

use self::merged::Merged;
pub(crate) use self::tar::{tar, tar_bytes};

const WEIGHTS: &str = "model.safetensors";

/// Why a model's files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{0}")]
    CannotMerge(String),
    #[error("Too many merged models are being downloaded; please try again later.")]
    Busy,
}

/// The files of a model.
pub struct ModelFiles {
    blobs: Blobs,
    pub files: Vec<ModelFile>,
    /// Unix seconds.
    pub created_at: i64,
}

/// One of them.
pub struct ModelFile {
    pub name: String,
    pub bytes: u64,
    content: Content,
}

enum Content {
    Stored(BlobKey),
    Merged(Arc<Merged>),
}

impl ModelFiles {
    /// Those of a model that the project may use. Merged, an adapter becomes a whole model; whole models are that
    /// already.
    ///
    /// # Errors
    /// `NotFound`, and adapters that have no place in a whole model.
    pub async fn of(
        store: &Store,
        project: &Project,
        id: &ModelId,
        is_merged: bool,
    ) -> Result<Self, WeightsError> {
        let StoredModel { base, tuned, created_at } =
            models::stored(&store.db, project, id).await?;
        let mut own: Vec<(BlobKey, ManifestFile)> = Vec::new();
        for file in &base.files {
            own.push((base.blob_key(&file.name)?.0, file.clone()));
        }
        let files = match tuned {
            None => stored(own),
            Some(tuned) if is_merged && is_adapter(&tuned) => {
                let (weights, others): (Vec<_>, Vec<_>) =
                    own.into_iter().partition(|(_, file)| is_weights(&file.name));
                let merged = Merged::plan(&store.blobs, id, weights, &tuned).await?;
                let bytes = merged.bytes();
                let content = Content::Merged(Arc::new(merged));
                let mut files = stored(others);
                files.push(ModelFile { name: WEIGHTS.to_owned(), bytes, content });
                files
            }
            Some(tuned) => stored(tuned),
        };
        let blobs = store.blobs.clone();
        Ok(Self { blobs, files, created_at: created_at.unix_timestamp() })
    }

    /// The bytes of a file; exactly as many as it says, or an error.
    pub fn read(&self, file: &ModelFile) -> BoxStream<'static, store::Result<Bytes>> {
        let (blobs, bytes) = (self.blobs.clone(), file.bytes);
        match &file.content {
            Content::Merged(merged) => merged.clone().read(blobs),
            Content::Stored(key) => {
                let key = key.clone();
                let open = async move {
                    let reader = blobs.get(&key, None).await?;
                    if reader.bytes != bytes {
                        let problem =
                            format!("{} has {} bytes of {bytes}", key.path(), reader.bytes);
                        return Err(store::Error::Inconsistent(problem));
                    }
                    Ok(reader.stream)
                };
                stream::once(open).try_flatten().boxed()
            }
        }
    }
}

fn stored(files: Vec<(BlobKey, ManifestFile)>) -> Vec<ModelFile> {
    let file = |(key, file): (BlobKey, ManifestFile)| ModelFile {
        name: file.name,
        bytes: file.bytes,
        content: Content::Stored(key),
    };
    files.into_iter().map(file).collect()
}

fn is_adapter(files: &[(BlobKey, ManifestFile)]) -> bool {
    let files: Vec<ManifestFile> = files.iter().map(|(_, file)| file.clone()).collect();
    required_files(&files)[0] != WEIGHTS
}

/// Weights, or the index of several files of them.
fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}
