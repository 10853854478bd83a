//! Checkpoint folders: everything that a run needs to go on as if it had never stopped.
//!
//! | file | content |
//! |---|---|
//! | `adapter_model.safetensors`, `adapter_config.json` | the adapter, in PEFT's format |
//! | `model.safetensors`, `config.json`, tokenizer, … | instead, where every weight is trained: a whole model |
//! | `optimizer.safetensors` | both moments, in the order of the adapter's flat values |
//! | `best_adapter.safetensors` | with early stopping: the values of the best evaluation so far |
//! | `state.json` | [`State`] |
//!
//! The final checkpoint of a whole model has no moments: no step follows it, and they would be most of it.
//!
//! A folder is written under a temporary name, synced, and renamed: one that exists is complete.
//! Folders that are complete are the worker's to upload and to remove; this module removes none of
//! them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dataset::Cursor;
use domain::hyperparameters::OptimizerKind;
use domain::plan::TrainingPlan;
use domain::report::{CheckpointKind, RunFailure, StepMetrics};
use model::{Adapter, Decoder};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::best::{self, Best};
use super::optimizer::{Optimizer, OptimizerError};
use super::signs::Signs;
use crate::failure::permanent;

const STATE_FILE: &str = "state.json";
/// Raised when an older engine could not read what a newer one writes, or the reverse.
const FORMAT: u32 = 1;

/// The run's state beside the tensors. No state of a random generator is among it: every seed is
/// computed from the plan's seed and the numbers here (see `seed`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub format: u32,
    /// The engine's version, for the reader of a strange difference.
    pub engine: String,
    pub job_id: String,
    pub fence: i64,
    /// Steps done.
    pub step: u64,
    /// Steps that updated the adapter; the others were skipped as not finite.
    pub updates: u64,
    pub skipped_in_a_row: u32,
    pub cursor: Cursor,
    pub trained_tokens: u64,
    /// Of the last step.
    pub metrics: StepMetrics,
    pub best: Option<Best>,
    #[serde(default)]
    pub signs: Signs,
    pub seed: u64,
    /// No step follows.
    #[serde(default)]
    pub is_final: bool,
    pub fingerprint: Fingerprint,
}

/// All that a checkpoint holds.
#[derive(Debug)]
pub struct Restored {
    pub state: State,
    pub adapter: Adapter,
    pub optimizer: Optimizer,
    pub best_values: Option<Tensor>,
}

/// What a run's result depends on, field by field, as text: a run resumes only under an equal one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, String>);

/// Why a checkpoint could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error(
        "the checkpoint was made with another '{field}' ({saved}) than the job now has \
         ({planned}); start a new job instead of resuming this one"
    )]
    Mismatch { field: String, saved: String, planned: String },
}

/// Why a run cannot resume.
impl From<CheckpointError> for RunFailure {
    fn from(error: CheckpointError) -> Self {
        match &error {
            CheckpointError::Mismatch { field, .. } => {
                permanent("checkpoint_mismatch", Some(field), error.to_string())
            }
            _ => permanent("invalid_checkpoint", None, error.to_string()),
        }
    }
}

impl CheckpointError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    fn invalid(path: &Path, reason: impl ToString) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.to_string() }
    }
}

impl Fingerprint {
    /// Of a plan and the hashes of its files.
    pub fn new(
        plan: &TrainingPlan,
        training_sha256: &str,
        validation_sha256: Option<&str>,
    ) -> Self {
        // These change memory, time and safety, not results.
        const FREE: [&str; 3] =
            ["micro_batch_tokens", "checkpoint_steps", "gradient_checkpointing"];
        let mut fields = BTreeMap::from([
            ("base_model".to_owned(), plan.base_model.clone()),
            ("method".to_owned(), plan.method.as_str().to_owned()),
            ("training_file".to_owned(), training_sha256.to_owned()),
            ("validation_file".to_owned(), validation_sha256.unwrap_or("none").to_owned()),
        ]);
        if let Some(start) = &plan.start_from {
            fields.insert("start_from".to_owned(), start.digest.clone());
        }
        let hyperparameters = serde_json::to_value(&plan.hyperparameters)
            .expect("hyperparameters are plain data with text keys");
        for (name, value) in hyperparameters.as_object().into_iter().flatten() {
            match value.as_object() {
                // Text, because a float that is printed and parsed again may differ in its last
                // bit.
                Some(inner) => fields
                    .extend(inner.iter().map(|(key, v)| (format!("{name}.{key}"), v.to_string()))),
                None if FREE.contains(&name.as_str()) => {}
                None => drop(fields.insert(name.clone(), value.to_string())),
            }
        }
        Self(fields)
    }

    /// # Errors
    /// [`CheckpointError::Mismatch`] names the first field that differs.
    fn check(&self, planned: &Self) -> Result<(), CheckpointError> {
        let absent = "absent".to_owned();
        for field in self.0.keys().chain(planned.0.keys()) {
            let (saved, planned) = (self.0.get(field), planned.0.get(field));
            if saved != planned {
                return Err(CheckpointError::Mismatch {
                    field: field.clone(),
                    saved: saved.unwrap_or(&absent).clone(),
                    planned: planned.unwrap_or(&absent).clone(),
                });
            }
        }
        Ok(())
    }
}

impl State {
    pub fn new(plan: &TrainingPlan, fingerprint: Fingerprint) -> Self {
        Self {
            format: FORMAT,
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            job_id: plan.job_id.to_string(),
            fence: plan.fence,
            step: 0,
            updates: 0,
            skipped_in_a_row: 0,
            cursor: Cursor::default(),
            trained_tokens: 0,
            metrics: StepMetrics::default(),
            best: None,
            signs: Signs::default(),
            seed: plan.hyperparameters.seed,
            is_final: false,
            fingerprint,
        }
    }
}

/// Writes a checkpoint folder below `output_dir` and returns its path.
///
/// # Errors
/// File errors; nothing but a temporary folder is left behind then, and earlier checkpoints stay.
pub fn write(
    plan: &TrainingPlan,
    kind: CheckpointKind,
    state: &State,
    tensors: (&Adapter, &Optimizer),
    best: Option<&Tensor>,
) -> Result<PathBuf, CheckpointError> {
    let name = format!("step-{:08}-{}", state.step, kind.as_str());
    let folder = plan.output_dir.join(&name);
    let temporary = plan.output_dir.join(format!(".{name}.tmp"));
    remove_temporary(&temporary)?;
    fs::create_dir_all(&temporary).map_err(CheckpointError::io(&temporary))?;
    let written = fill(&temporary, &plan.base_model, state, tensors, best)
        .and_then(|()| put_in_place(&temporary, &folder));
    if written.is_err() {
        // The error at hand is the one to report; the next attempt removes what is left.
        let _ = fs::remove_dir_all(&temporary);
    }
    written.map(|()| folder)
}

fn fill(
    folder: &Path,
    base_model: &str,
    state: &State,
    (adapter, optimizer): (&Adapter, &Optimizer),
    best: Option<&Tensor>,
) -> Result<(), CheckpointError> {
    adapter.save(folder, base_model).map_err(|error| CheckpointError::invalid(folder, error))?;
    if has_moments(state, adapter) {
        optimizer.save(folder).map_err(|error| CheckpointError::invalid(folder, error))?;
        if let Some(values) = best {
            best::save(folder, values).map_err(|error| CheckpointError::invalid(folder, error))?;
        }
    }
    let path = folder.join(STATE_FILE);
    let text = serde_json::to_vec_pretty(state).expect("the state is plain data with text keys");
    let mut file = File::create(&path).map_err(CheckpointError::io(&path))?;
    file.write_all(&text).map_err(CheckpointError::io(&path))?;
    for entry in fs::read_dir(folder).map_err(CheckpointError::io(folder))? {
        let path = entry.map_err(CheckpointError::io(folder))?.path();
        sync(&path)?;
    }
    sync(folder)
}

/// Whether a checkpoint holds what further steps need.
fn has_moments(state: &State, adapter: &Adapter) -> bool {
    !(state.is_final && adapter.is_full())
}

fn put_in_place(temporary: &Path, folder: &Path) -> Result<(), CheckpointError> {
    if folder.exists() {
        // Left by an attempt that died before the worker took it; this one is as good and complete.
        let old = temporary.with_extension("old");
        remove_temporary(&old)?;
        fs::rename(folder, &old).map_err(CheckpointError::io(folder))?;
        remove_temporary(&old)?;
    }
    fs::rename(temporary, folder).map_err(CheckpointError::io(folder))?;
    folder.parent().map_or(Ok(()), sync)
}

fn remove_temporary(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::io(folder)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a file's content, or a folder's list of names, survive a power cut.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(CheckpointError::io(path))
}

/// Reads a checkpoint folder back, for a run whose plan has this fingerprint.
///
/// # Errors
/// Files that are missing, damaged or of another format, and a fingerprint that differs.
pub fn read(
    folder: &Path,
    planned: &Fingerprint,
    decoder: &Decoder,
    kind: OptimizerKind,
) -> Result<Restored, CheckpointError> {
    let path = folder.join(STATE_FILE);
    let text = fs::read(&path).map_err(CheckpointError::io(&path))?;
    let state: State =
        serde_json::from_slice(&text).map_err(|error| CheckpointError::invalid(&path, error))?;
    if state.format != FORMAT {
        let reason = format!("format {} is not the engine's format {FORMAT}", state.format);
        return Err(CheckpointError::invalid(&path, reason));
    }
    state.fingerprint.check(planned)?;
    let adapter =
        Adapter::load(decoder, folder).map_err(|error| CheckpointError::invalid(folder, error))?;
    let mut optimizer = Optimizer::new(kind, &adapter, decoder.device());
    if has_moments(&state, &adapter) {
        optimizer = optimizer
            .load(folder, state.updates)
            .map_err(|error: OptimizerError| CheckpointError::invalid(folder, error))?;
    }
    let best_values = best::load(folder, adapter.len(), decoder.device())
        .map_err(|reason| CheckpointError::invalid(folder, reason))?;
    Ok(Restored { state, adapter, optimizer, best_values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(fields: &[(&str, &str)]) -> Fingerprint {
        Fingerprint(fields.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn a_differing_field_is_named() {
        let saved = fingerprint(&[("batch_size", "4"), ("seed", "1")]);
        assert!(saved.check(&saved.clone()).is_ok());
        let text =
            |planned: &[(&str, &str)]| saved.check(&fingerprint(planned)).unwrap_err().to_string();
        assert!(text(&[("batch_size", "8"), ("seed", "1")]).contains("'batch_size' (4)"));
        assert!(text(&[("batch_size", "4")]).contains("'seed' (1) than the job now has (absent)"));
    }
}
