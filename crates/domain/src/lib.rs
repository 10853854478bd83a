//! The vocabulary of finetuned: ids, job states and their transitions, hyperparameters, the plan that an
//! engine receives and the reports that it sends back, and the messages between worker and server.
//!
//! Pure data. Nothing here knows HTTP, SQL, tensors or an asynchronous run-time.

pub mod engine;
pub mod hyperparameters;
pub mod id;
pub mod internal;
pub mod job;
pub mod memory;
pub mod plan;
pub mod preference;
pub mod report;

pub use hyperparameters::{Auto, Hyperparameters, LoraRequest, TrainingOptions};
pub use id::{
    ApiKeyId, CheckpointId, EvalId, EvalRunId, EventId, FileId, JobId, ModelId, OrganizationId,
    OutputItemId, PartId, PermissionId, ProjectId, RequestId, UploadId, WebhookDeliveryId,
    WebhookEndpointId, WebhookEventId,
};
pub use job::{JobStatus, MethodType};
pub use plan::TrainingPlan;
pub use preference::{LossType, Preference, PreferenceRequest};
pub use report::RunReport;
