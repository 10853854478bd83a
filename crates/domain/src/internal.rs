//! Messages of the internal API, `/internal/v1`: the worker's side and the server's side share these types.
//!
//! Every call carries `Authorization: Bearer <worker token>`. Calls about a run carry the lease in the headers
//! [`FENCE_HEADER`] and [`LEASE_HEADER`]; a call whose lease is gone is answered with status 409 and
//! the error code `lease_lost`, and means: stop this run at once, it is somebody else's now.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST runs/claim` | [`ClaimRequest`] | 200 [`ClaimedRun`], or 204 when none came within `wait_seconds` |
//! | `POST runs/{job}/heartbeat` | [`Heartbeat`] | [`HeartbeatReply`] |
//! | `POST runs/{job}/reports` | [`ReportBatch`] | 204 |
//! | `GET runs/{job}/files/{file}` | – | the file's bytes |
//! | `POST runs/{job}/checkpoints` | [`BeginCheckpoint`] | [`CheckpointBegun`] |
//! | `PUT runs/{job}/checkpoints/{id}/files/{name}` | bytes | 204; 422 when size or hash differ |
//! | `POST runs/{job}/checkpoints/{id}/commit` | – | 204 |
//! | `GET runs/{job}/checkpoints/{id}/files/{name}` | – | the file's bytes |
//! | `POST runs/{job}/finish` | [`FinishRun`] | [`RunFinished`] |
//! | `POST runs/{job}/fail` | [`crate::report::RunFailure`] | 204 |
//! | `POST runs/{job}/release` | – | 204; the job goes back to the queue, and it counts as no crash |
//! | `GET models/{model}` | – | [`BaseModel`] |
//! | `GET models/{model}/files/{name}` | – | the file's bytes |
//! | `GET models` | – | `Vec<BaseModel>` |
//! | `GET adapters/{model}/files/{name}` | – | the file's bytes |
//! | `POST inference/next` | [`NextInference`] | 200 [`InferenceTask`], or 204 |
//! | `POST inference/{id}/events` | newline-delimited [`crate::engine::GenerationEvent`]s, streamed | 204; the connection closes early when the client has gone |

use serde::{Deserialize, Serialize};

use crate::engine::Question;
use crate::hyperparameters::{Precision, Quantization};
use crate::id::{CheckpointId, FileId, JobId, ModelId};
use crate::job::MethodType;
use crate::plan::ResolvedHyperparameters;
use crate::report::{CheckpointKind, RunReport, StepMetrics};

/// The lease's order number.
pub const FENCE_HEADER: &str = "x-finetuned-fence";
/// The lease's secret.
pub const LEASE_HEADER: &str = "x-finetuned-lease";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// Unique per worker process and slot.
    pub worker_id: String,
    /// The [variant](BaseModel::variant) that the slot has warm, preferred among equals.
    pub warm_model: Option<String>,
    /// What `auto` means on the slot's device.
    #[serde(default)]
    pub precision: Precision,
    /// How long the server may hold the call open, at most 30.
    pub wait_seconds: u64,
}

/// A run that the caller holds the lease of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimedRun {
    pub job_id: JobId,
    pub fence: i64,
    /// Secret; never logged.
    pub lease_token: String,
    pub lease_seconds: f64,
    pub heartbeat_seconds: f64,
    pub method: MethodType,
    pub base_model: BaseModel,
    pub training_file: StagedFile,
    pub validation_file: Option<StagedFile>,
    pub hyperparameters: ResolvedHyperparameters,
    /// The tuned model to go on from; none starts from the base model.
    #[serde(default)]
    pub start_from: Option<AdapterRef>,
    /// The last committed checkpoint of an earlier attempt.
    pub resume_from: Option<CheckpointManifest>,
}

/// A file of the user's, to be downloaded and checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StagedFile {
    pub file_id: FileId,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// A named file with its size and hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// A plain file name without folders.
    pub name: String,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// A base model: a folder in Hugging Face's layout, file by file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    pub id: ModelId,
    /// Hash over the manifest: the key of the worker's cache.
    pub digest: String,
    pub files: Vec<ManifestFile>,
    /// How an engine shall hold it; not a property of the stored files.
    #[serde(default)]
    pub quantization: Quantization,
    /// `auto` leaves it to the device.
    #[serde(default)]
    pub precision: Precision,
}

impl BaseModel {
    /// The name of what an engine holds: a model that is quantised, or computes in bf16, is another one
    /// than the same model that does not.
    pub fn variant(&self) -> ModelId {
        variant(&self.id, self.quantization, self.precision)
    }
}

/// `model`, `model@nf4`, `model@bf16`, `model@nf4@bf16`; or `model@auto`, which any of its precisions is.
pub fn variant(model: &ModelId, quantization: Quantization, precision: Precision) -> ModelId {
    let quantization = match quantization {
        Quantization::None => String::new(),
        other => format!("@{}", other.as_str()),
    };
    let precision = match precision {
        Precision::Fp32 => String::new(),
        other => format!("@{}", other.as_str()),
    };
    format!("{model}{quantization}{precision}").into()
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointManifest {
    pub checkpoint_id: CheckpointId,
    pub step: u64,
    pub files: Vec<ManifestFile>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The engine's step counter, to tell a hang from work.
    pub step: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeartbeatReply {
    pub directive: Directive,
    pub lease_seconds: f64,
}

/// What the server wants of a run that is still ours. (A cancelled one is not: it answers `lease_lost`.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    Continue,
    /// Write a checkpoint, commit it, release the run.
    Pause,
}

/// Reports in order. A batch is sent again until it is acknowledged; `first_seq` makes that harmless.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportBatch {
    /// The number of the first report of this batch within the lease, from 0.
    pub first_seq: u64,
    pub reports: Vec<RunReport>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BeginCheckpoint {
    pub step: u64,
    pub kind: CheckpointKind,
    pub files: Vec<ManifestFile>,
    /// Tokens since the start of the job.
    pub trained_tokens: u64,
    pub metrics: StepMetrics,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointBegun {
    pub checkpoint_id: CheckpointId,
}

/// The final checkpoint, committed before, becomes the tuned model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FinishRun {
    pub checkpoint_id: CheckpointId,
    pub trained_tokens: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunFinished {
    pub fine_tuned_model: ModelId,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NextInference {
    pub worker_id: String,
    /// [Variants](BaseModel::variant) of base models that this worker can answer with; the warm one first.
    pub base_models: Vec<ModelId>,
    pub wait_seconds: u64,
}

/// A request for a worker to answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InferenceTask {
    pub id: String,
    pub base_model: BaseModel,
    /// None asks for the base model itself.
    pub adapter: Option<AdapterRef>,
    pub question: Question,
}

/// Files of a checkpoint that only a resumed run needs.
const RESUME_FILES: [&str; 3] = ["best_adapter.safetensors", "optimizer.safetensors", "state.json"];

/// The files of a checkpoint that make a model, by name: an adapter's, or those of a whole model.
pub fn model_files(files: &[ManifestFile]) -> Vec<&ManifestFile> {
    let is_part = |file: &&ManifestFile| !RESUME_FILES.contains(&file.name.as_str());
    let mut files: Vec<_> = files.iter().filter(is_part).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// The files without which these are no model that can answer: weights and their configuration.
pub fn required_files(files: &[ManifestFile]) -> [&'static str; 2] {
    const WHOLE: [&str; 2] = ["model.safetensors", "config.json"];
    if files.iter().any(|file| file.name == WHOLE[0]) {
        return WHOLE;
    }
    ["adapter_model.safetensors", "adapter_config.json"]
}

/// A stored adapter, or a whole tuned model: fetched once from `adapters/{model_id}/files/{name}`, then
/// cached by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterRef {
    pub model_id: ModelId,
    pub digest: String,
    pub files: Vec<ManifestFile>,
}

/// An error of the internal API.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InternalError {
    /// `lease_lost`, `not_found`, `hash_mismatch`, `unauthorized`, `unavailable`, `invalid_request`.
    pub code: String,
    pub message: String,
}
