//! What can go wrong below the API: one enum, and the only place where the database's own errors are read.

use domain::{JobId, JobStatus};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The project has no such object.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// The lease is not valid any more: the run belongs to somebody else, or has ended.
    #[error("the lease is lost")]
    LeaseLost,
    /// The object's present state forbids the call.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Bytes that arrived are not those that were announced.
    #[error("{name}: {problem}")]
    HashMismatch { name: String, problem: String },
    /// The body is longer than allowed.
    #[error("the content is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    /// The sender of a body broke off.
    #[error("the content could not be read: {0}")]
    Body(String),
    /// The database or the object storage cannot be reached at the moment; the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    #[error("database: {0}")]
    Database(#[source] sqlx::Error),
    #[error("object storage: {0}")]
    Blob(#[source] object_store::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("migrations: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The configuration cannot be used; the text names the key.
    #[error("{0}")]
    Config(String),
    /// Stored data contradict themselves: a defect of ours, or a database that was edited by hand.
    #[error("inconsistent data: {0}")]
    Inconsistent(String),
}

impl Error {
    /// Whether the same call may succeed later without anything changed: answer 503, try again.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Why an object's present state forbids a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error("Job {job} has already ended with the status '{status}'.")]
    JobEnded { job: JobId, status: JobStatus },
    #[error("Job {job} has the status '{status}' and cannot be {wanted}.")]
    JobState { job: JobId, status: JobStatus, wanted: &'static str },
    #[error("File is used by fine-tuning job {0}, which has not ended.")]
    FileInUse(JobId),
    #[error("Model is used by fine-tuning job {0}, which has not ended.")]
    ModelInUse(JobId),
    #[error("{0} is a base model and cannot be deleted.")]
    BaseModel(String),
    #[error("{0} already exists with different content.")]
    Exists(String),
    #[error("reports from number {expected} on are expected, got {got}")]
    ReportGap { expected: u64, got: u64 },
    #[error("{0}")]
    Checkpoint(String),
}
