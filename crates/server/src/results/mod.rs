//! What a job leaves behind when it succeeds: a verified model, and the tables of its metrics.

mod csv;

use domain::CheckpointId;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use store::blob::BlobKey;
use store::files::NewFile;
use store::queue::{self, Lease};
use store::{Project, Store, Uploaded, events, files};

use crate::internal::InternalApiError;

/// Name of the file with OpenAI's columns; the API serves its content in base64 by default.
pub(crate) const STEP_METRICS: &str = "step_metrics.csv";
/// Name of the richer file, always served plain.
const ALL_METRICS: &str = "all_metrics.csv";
const PURPOSE: &str = "fine-tune-results";

/// The result files, once the model has proved to be what was announced.
pub(crate) async fn prepare(
    store: &Store,
    lease: &Lease,
    checkpoint: &CheckpointId,
) -> Result<Vec<(Uploaded, NewFile)>, InternalApiError> {
    verify_model(store, lease, checkpoint).await?;
    upload(store, lease).await
}

/// Reads the model's blobs back and compares them with the checkpoint's manifest.
async fn verify_model(
    store: &Store,
    lease: &Lease,
    checkpoint: &CheckpointId,
) -> Result<(), InternalApiError> {
    for (key, expected) in queue::leased_model_files(&store.db, lease, checkpoint).await? {
        let name = &expected.name;
        let (bytes, sha256) = read_back(store, &key).await?;
        if (bytes, sha256.as_str()) != (expected.bytes, expected.sha256.as_str()) {
            return Err(InternalApiError::HashMismatch(format!(
                "{name} of checkpoint {checkpoint} is stored with {bytes} bytes and the hash \
                 {sha256}, but was announced with {} bytes and the hash {}",
                expected.bytes, expected.sha256
            )));
        }
    }
    Ok(())
}

async fn read_back(store: &Store, key: &BlobKey) -> store::Result<(u64, String)> {
    let mut reader = store.blobs.get(key, None).await?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    while let Some(chunk) = reader.stream.try_next().await? {
        bytes += chunk.len() as u64;
        hash.update(&chunk);
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((bytes, sha256))
}

/// The result files, stored and not yet visible.
async fn upload(
    store: &Store,
    lease: &Lease,
) -> Result<Vec<(Uploaded, NewFile)>, InternalApiError> {
    let job = queue::leased_job(&store.db, lease).await?;
    let steps = events::step_metrics(&store.db, &job.id).await?;
    let project = Project {
        id: job.project_id,
        organization: job.organization_id,
        // Only names of models carry it.
        organization_slug: String::new(),
    };
    let tables =
        [(STEP_METRICS, csv::step_metrics(&steps)), (ALL_METRICS, csv::all_metrics(&steps))];
    let mut results = Vec::new();
    for (filename, table) in tables {
        let uploaded = files::upload_bytes(store, &project, table.into()).await?;
        let new = NewFile {
            filename: filename.to_owned(),
            purpose: PURPOSE.to_owned(),
            expires_after: None,
        };
        results.push((uploaded, new));
    }
    Ok(results)
}
