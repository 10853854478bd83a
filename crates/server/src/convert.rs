//! Rows → wire objects, and the store's errors → the API's. The only file that knows both sides.

use domain::hyperparameters::Tuning;
use domain::plan::ResolvedHyperparameters;
use domain::{Auto, Hyperparameters, LossType};
use serde_json::json;
use store::checkpoints::CheckpointRow;
use store::events::{EventRow, EventType};
use store::files::FileRow;
use store::jobs::JobRow;
use store::models::{ModelKind, ModelRow};
use store::permissions::PermissionRow;
use store::uploads::{PartRow, UploadRow};
use store::{Conflict, Order, PageQuery};
use time::OffsetDateTime;

use crate::error::{ApiError, ApiResult};
use crate::extract::Page;
use crate::internal::InternalApiError;
use crate::outlook::Outlook;
use crate::preference;
use crate::wire::event::{Checkpoint, CheckpointMetrics, Event};
use crate::wire::file::File;
use crate::wire::job::{Job, JobError, Ours, Resolved};
use crate::wire::list::{Identified, List};
use crate::wire::model::{Capabilities, Model};
use crate::wire::permission::Permission;
use crate::wire::upload::{Upload, UploadPart};

const RETRY_AFTER_SECONDS: u64 = 1;

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        use store::Error as E;
        match error {
            E::Conflict(conflict @ Conflict::NotOwner(_)) => Self::Forbidden(conflict.to_string()),
            E::Conflict(Conflict::Upload(refusal)) => match refusal.param() {
                Some(param) => Self::invalid_value(param, refusal.to_string()),
                None => Self::BadRequest(refusal.to_string()),
            },
            E::Conflict(conflict) => Self::BadRequest(conflict.to_string()),
            E::TooLarge { .. } => Self::PayloadTooLarge(error.to_string()),
            E::Body(_) => Self::BadRequest(error.to_string()),
            E::Unavailable(_) => {
                let text = crate::error::ErrorChain(&error).to_string();
                tracing::warn!(error = text, "the store is not available");
                Self::Unavailable {
                    message: "The server cannot reach its storage at the moment; please try again."
                        .to_owned(),
                    retry_after_seconds: RETRY_AFTER_SECONDS,
                }
            }
            other => Self::internal(other),
        }
    }
}

impl From<store::Error> for InternalApiError {
    fn from(error: store::Error) -> Self {
        use store::Error as E;
        match error {
            E::LeaseLost => Self::LeaseLost,
            E::NotFound(_) => Self::NotFound(error.to_string()),
            E::HashMismatch { .. } => Self::HashMismatch(error.to_string()),
            E::Conflict(_) | E::TooLarge { .. } | E::Body(_) => {
                Self::InvalidRequest(error.to_string())
            }
            other => Self::Unavailable(Box::new(other)),
        }
    }
}

/// Gives "not found" its name in the API.
pub(crate) trait OrNotFound<T> {
    fn or_not_found(self, not_found: impl FnOnce() -> ApiError) -> ApiResult<T>;
}

impl<T> OrNotFound<T> for store::Result<T> {
    fn or_not_found(self, not_found: impl FnOnce() -> ApiError) -> ApiResult<T> {
        self.map_err(|error| match error {
            store::Error::NotFound(_) => not_found(),
            other => other.into(),
        })
    }
}

/// A page as asked for; `sizes` are the default and the maximum.
pub(crate) fn page_query(page: &Page, sizes: (u32, u32)) -> PageQuery {
    PageQuery {
        after: page.after.clone(),
        limit: page.limit(sizes.0, sizes.1),
        order: if page.ascending { Order::Oldest } else { Order::Newest },
    }
}

pub(crate) fn list<R, T: Identified>(page: store::Page<R>, convert: impl FnMut(R) -> T) -> List<T> {
    List::new(page.data.into_iter().map(convert).collect(), page.has_more)
}

pub(crate) fn file(row: FileRow) -> File {
    File {
        id: row.id.to_string(),
        object: "file",
        bytes: row.bytes,
        created_at: row.created_at.unix_timestamp(),
        expires_at: row.expires_at.map(OffsetDateTime::unix_timestamp),
        filename: row.filename,
        purpose: shown_purpose(row.purpose),
        status: match row.status.as_str() {
            "uploaded" => "uploaded",
            "error" => "error",
            _ => "processed",
        },
        status_details: row.status_details,
    }
}

/// Clients send the purpose `evals`, but their types do not let it come back.
fn shown_purpose(purpose: String) -> String {
    if purpose == "evals" { "user_data".to_owned() } else { purpose }
}

pub(crate) fn upload(row: UploadRow, parts: Option<Vec<PartRow>>) -> Upload {
    Upload {
        id: row.id.to_string(),
        object: "upload",
        bytes: row.bytes,
        created_at: row.created_at.unix_timestamp(),
        expires_at: row.expires_at.unix_timestamp(),
        filename: row.filename,
        purpose: shown_purpose(row.purpose),
        status: row.status.as_str(),
        file: row.file.map(file),
        parts: parts.map(|parts| parts.into_iter().map(part).collect()),
    }
}

pub(crate) fn part(row: PartRow) -> UploadPart {
    UploadPart {
        id: row.id.to_string(),
        object: "upload.part",
        created_at: row.created_at.unix_timestamp(),
        upload_id: row.upload_id.to_string(),
        bytes: row.bytes,
        sha256: row.sha256,
    }
}

/// A job, and what is said of its waiting.
pub(crate) fn job(row: JobRow, outlook: Outlook) -> Job {
    let hyperparameters = shown_hyperparameters(&row);
    let method = json!({
        "type": row.method.as_str(),
        row.method.as_str(): { "hyperparameters": preference::shown(&row, &hyperparameters) },
    });
    let dataset = row.dataset;
    let resolved = row.resolved.map(|found| Resolved { dataset, ..resolved(found) });
    let Outlook { queue_position, wait_reason, estimated_finish } = outlook;
    let ours = Ours { resolved, queue_position, wait_reason };
    Job {
        id: row.id.to_string(),
        object: "fine_tuning.job",
        // As it was asked for.
        model: row.start.map_or(row.base_model, |start| start.model).to_string(),
        created_at: row.created_at.unix_timestamp(),
        finished_at: row.finished_at.map(OffsetDateTime::unix_timestamp),
        fine_tuned_model: row.fine_tuned_model.map(|model| model.to_string()),
        organization_id: row.organization_id.to_string(),
        result_files: row.result_files.iter().map(ToString::to_string).collect(),
        status: row.status.as_str(),
        validation_file: row.validation_file.map(|file| file.to_string()),
        training_file: row.training_file.to_string(),
        hyperparameters,
        trained_tokens: row.trained_tokens,
        error: row.error.map(|error| JobError {
            code: error.code,
            message: error.message,
            param: error.param,
        }),
        user_provided_suffix: row.suffix,
        seed: i64::from(row.seed),
        estimated_finish,
        integrations: row.integrations,
        metadata: row.metadata.map(|metadata| json!(metadata)),
        usage_metrics: None,
        shared_with_openai: false,
        method,
        finetuned: Some(ours).filter(|ours| ours.resolved.is_some() || ours.wait_reason.is_some()),
    }
}

/// Every option as a value.
pub(crate) fn resolved(resolved: ResolvedHyperparameters) -> Resolved {
    Resolved {
        learning_rate: resolved.learning_rate,
        schedule: resolved.schedule,
        warmup_steps: resolved.warmup_steps,
        weight_decay: resolved.weight_decay,
        optimizer: resolved.optimizer,
        max_grad_norm: resolved.max_grad_norm,
        max_seq_len: resolved.max_seq_len,
        micro_batch_tokens: resolved.micro_batch_tokens,
        checkpoint_steps: resolved.checkpoint_steps,
        gradient_checkpointing: resolved.gradient_checkpointing,
        early_stopping: resolved.early_stopping,
        quantization: resolved.quantization,
        precision: resolved.precision,
        tuning: resolved.tuning,
        lora: Some(resolved.lora).filter(|_| resolved.tuning == Tuning::Lora),
        virtual_tokens: resolved.virtual_tokens,
        dataset: None,
    }
}

/// As requested until the files are validated, then as resolved.
fn shown_hyperparameters(row: &JobRow) -> Hyperparameters {
    match &row.resolved {
        None => Hyperparameters { preference: None, ..row.hyperparameters },
        Some(resolved) => openais(resolved),
    }
}

/// OpenAI's three.
pub(crate) fn openais(resolved: &ResolvedHyperparameters) -> Hyperparameters {
    Hyperparameters {
        n_epochs: Auto::Value(resolved.n_epochs),
        batch_size: Auto::Value(resolved.batch_size),
        learning_rate_multiplier: Auto::Value(resolved.learning_rate_multiplier),
        preference: None,
    }
}

pub(crate) fn event(row: EventRow) -> Event {
    Event {
        object: "fine_tuning.job.event",
        id: row.id.to_string(),
        created_at: row.created_at.unix_timestamp(),
        level: row.level.as_str(),
        message: row.message,
        r#type: match row.kind {
            EventType::Message => "message",
            EventType::Metrics => "metrics",
        },
        data: row.data,
    }
}

pub(crate) fn checkpoint(row: CheckpointRow) -> Checkpoint {
    let metrics = row.metrics;
    Checkpoint {
        object: "fine_tuning.job.checkpoint",
        id: row.id.to_string(),
        created_at: row.created_at.unix_timestamp(),
        fine_tuned_model_checkpoint: row.model.to_string(),
        fine_tuning_job_id: row.job_id.to_string(),
        metrics: CheckpointMetrics {
            step: metrics.step,
            train_loss: metrics.train_loss,
            train_mean_token_accuracy: metrics.train_mean_token_accuracy,
            valid_loss: metrics.valid_loss,
            valid_mean_token_accuracy: metrics.valid_mean_token_accuracy,
            full_valid_loss: metrics.full_valid_loss,
            full_valid_mean_token_accuracy: metrics.full_valid_mean_token_accuracy,
            rewards: *metrics.rewards,
        },
        step_number: row.step,
    }
}

pub(crate) fn model(row: ModelRow) -> Model {
    let is_base = row.kind == ModelKind::Base;
    let trained = row.trained_with.as_ref();
    let preference = trained.and_then(|trained| trained.preference.as_deref());
    let is_reward = preference.is_some_and(|options| options.loss_type == LossType::Reward);
    let has_virtual = trained.is_some_and(|trained| trained.tuning.has_virtual_tokens());
    let virtual_tokens = trained.map_or(0, |trained| u64::from(trained.virtual_positions()));
    Model {
        id: row.id.to_string(),
        object: "model",
        created: row.created_at.unix_timestamp(),
        owned_by: row.owner.unwrap_or_else(|| "system".to_owned()),
        root: row.base_model.to_string(),
        parent: row.parent.map(|parent| parent.to_string()),
        fine_tuning_job_id: row.job_id.map(|job| job.to_string()),
        step_number: row.step,
        tuning: trained.map(|trained| trained.tuning),
        max_model_len: row.context_length.map(|tokens| tokens.saturating_sub(virtual_tokens)),
        capabilities: Capabilities {
            chat: !is_reward,
            score: is_reward,
            fine_tune: is_base || trained.is_some(),
            merge: !is_reward && !has_virtual,
        },
    }
}

pub(crate) fn permission(row: PermissionRow) -> Permission {
    Permission {
        id: row.id.to_string(),
        created_at: row.created_at.unix_timestamp(),
        project_id: row.grantee.to_string(),
        object: "checkpoint.permission",
    }
}
