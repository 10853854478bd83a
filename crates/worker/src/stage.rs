//! From a claimed run to files on this machine: the user's data, the tuned model to start from, the
//! checkpoint to go on from, the base model, and the plan that names them.
//!
//! Everything of a run lies below one scratch folder, which disappears with it.

use std::path::{Path, PathBuf};

use domain::TrainingPlan;
use domain::internal::{ClaimedRun, ManifestFile, StagedFile, model_files};
use domain::plan::StartWeights;

use crate::client::Client;
use crate::lease::Lease;
use crate::models::ModelCache;
use crate::retry::Backoff;
use crate::transfer::{TransferError, fetch};

/// A folder that is removed when its run is over.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn create(work_dir: &Path, run: &ClaimedRun) -> Result<Self, TransferError> {
        // The fence makes it this attempt's own; ids from the server are not trusted as folder
        // names.
        let job: String = run.job_id.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
        let dir = work_dir.join("runs").join(format!("{job}-{}", run.fence));
        let scratch = Self(dir);
        scratch.remove();
        let folders = [scratch.output_dir(), scratch.start_dir(), scratch.resume_dir()];
        for folder in folders {
            std::fs::create_dir_all(&folder).map_err(TransferError::io(&folder))?;
        }
        Ok(scratch)
    }

    pub fn output_dir(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    fn start_dir(&self) -> PathBuf {
        self.0.join("start")
    }

    fn resume_dir(&self) -> PathBuf {
        self.0.join("resume")
    }

    fn remove(&self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes what runs of an earlier process have left.
pub fn clean(work_dir: &Path) -> Result<(), TransferError> {
    let runs = work_dir.join("runs");
    if runs.exists() {
        std::fs::remove_dir_all(&runs).map_err(TransferError::io(&runs))?;
    }
    std::fs::create_dir_all(&runs).map_err(TransferError::io(&runs))
}

/// A run whose files are all here.
#[derive(Debug)]
pub struct Staged {
    pub plan: TrainingPlan,
    /// The base model's folder.
    pub model_dir: PathBuf,
}

/// Downloads and checks everything that the run needs; repeats for as long as the server is away.
pub async fn stage(
    run: &ClaimedRun,
    scratch: &Scratch,
    lease: &Lease,
    client: &Client,
    cache: &ModelCache,
    backoff: &Backoff,
) -> Result<Staged, TransferError> {
    let (model_dir, training_file, validation_file, start_from, resume_from) = tokio::try_join!(
        cache.base_model(client, &run.base_model),
        user_file(&run.training_file, "training.jsonl", scratch, lease, backoff),
        async {
            match &run.validation_file {
                Some(file) => {
                    user_file(file, "validation.jsonl", scratch, lease, backoff).await.map(Some)
                }
                None => Ok(None),
            }
        },
        start(run, scratch, client, backoff),
        checkpoint(run, scratch, lease, backoff),
    )?;
    let plan = TrainingPlan {
        job_id: run.job_id.clone(),
        fence: run.fence,
        method: run.method,
        base_model: run.base_model.id.to_string(),
        training_file,
        validation_file,
        hyperparameters: run.hyperparameters.clone(),
        start_from,
        resume_from,
        output_dir: scratch.output_dir(),
    };
    Ok(Staged { plan, model_dir })
}

async fn user_file(
    file: &StagedFile,
    name: &str,
    scratch: &Scratch,
    lease: &Lease,
    backoff: &Backoff,
) -> Result<PathBuf, TransferError> {
    let entry =
        ManifestFile { name: name.to_owned(), bytes: file.bytes, sha256: file.sha256.clone() };
    fetch(&entry, &scratch.0, backoff.clone(), || lease.file(&file.file_id)).await
}

/// The tuned model to go on from. In the run's own folder and not in the cache of adapters, whose folders go when
/// others come.
async fn start(
    run: &ClaimedRun,
    scratch: &Scratch,
    client: &Client,
    backoff: &Backoff,
) -> Result<Option<StartWeights>, TransferError> {
    let Some(model) = &run.start_from else { return Ok(None) };
    let dir = scratch.start_dir();
    for entry in model_files(&model.files) {
        fetch(entry, &dir, backoff.clone(), || client.adapter_file(model, &entry.name)).await?;
    }
    Ok(Some(StartWeights { dir, digest: model.digest.clone() }))
}

async fn checkpoint(
    run: &ClaimedRun,
    scratch: &Scratch,
    lease: &Lease,
    backoff: &Backoff,
) -> Result<Option<PathBuf>, TransferError> {
    let Some(manifest) = &run.resume_from else { return Ok(None) };
    let dir = scratch.resume_dir();
    for entry in &manifest.files {
        let open = || lease.checkpoint_file(&manifest.checkpoint_id, &entry.name);
        fetch(entry, &dir, backoff.clone(), open).await?;
    }
    Ok(Some(dir))
}
