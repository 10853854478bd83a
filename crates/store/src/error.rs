//! What can go wrong below the API: one enum, and the only place where the database's own errors are read.

use std::fmt;

use domain::{EvalRunId, JobId, JobStatus, WebhookEndpointId};

use crate::uploads::UploadRefusal;

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

    /// Whether a transaction lost to a concurrent one and may simply run again.
    pub(crate) fn is_lost_race(&self) -> bool {
        matches!(self, Self::Database(error) if matches!(code(error).as_deref(), Some("40P01" | "40001")))
    }

    /// A stored value that its own type refuses.
    pub(crate) fn inconsistent(table: &str, id: &str, problem: impl fmt::Display) -> Self {
        Self::Inconsistent(format!("{table} {id}: {problem}"))
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned())
}

/// Postgres cannot serve right now: connection trouble, shutdown, start-up, failover (read-only), too many
/// connections, a full disk, a statement over its time.
fn is_passing(code: &str) -> bool {
    code.starts_with("08")
        || matches!(
            code,
            "57P01" | "57P02" | "57P03" | "57014" | "25006" | "53100" | "53200" | "53300"
        )
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        if let E::ColumnDecode { .. } = &error {
            return Self::Inconsistent(error.to_string());
        }
        let passing = match &error {
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
            E::Database(_) => code(&error).is_some_and(|code| is_passing(&code)),
            _ => false,
        };
        // Text that Postgres cannot hold (a zero byte) is no object's id.
        if code(&error).as_deref() == Some("22021") {
            return Self::NotFound("object");
        }
        if passing {
            Self::Unavailable(format!("database: {error}"))
        } else {
            Self::Database(error)
        }
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound("blob"),
            // Whatever is left after the client's own retries: network, 5xx, a full disk.
            object_store::Error::Generic { .. } | object_store::Error::JoinError { .. } => {
                Self::Unavailable(format!("object storage: {error}"))
            }
            other => Self::Blob(other),
        }
    }
}

/// Why an object's present state forbids a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error("Job {job} has already ended with the status '{status}'.")]
    JobEnded { job: JobId, status: JobStatus },
    #[error("Job {job} has the status '{status}' and cannot be {wanted}.")]
    JobState { job: JobId, status: JobStatus, wanted: &'static str },
    #[error("Eval run {run} has already ended with the status '{status}'.")]
    EvalRunEnded { run: EvalRunId, status: &'static str },
    #[error("File is used by eval run {0}, which has not ended.")]
    FileInEvalRun(EvalRunId),
    #[error("Job {job} has the status '{status}'. Cancel it first; then it can be deleted.")]
    JobAlive { job: JobId, status: JobStatus },
    #[error("The Idempotency-Key was used before, with other parameters, for {0}.")]
    KeyReused(String),
    #[error("File is used by fine-tuning job {0}, which has not ended.")]
    FileInUse(JobId),
    #[error("Model is used by fine-tuning job {0}, which has not ended; cancel the job, or wait.")]
    ModelInUse(JobId),
    #[error("{0} is a base model and cannot be deleted.")]
    BaseModel(String),
    #[error("{0} is another project's model; only the project that owns it may do this.")]
    NotOwner(String),
    #[error("{0} is a base model, which every project may use already.")]
    BaseIsShared(String),
    #[error("{0} already exists with different content.")]
    Exists(String),
    #[error(
        "The project has {0} webhook endpoints, which is the most that it may have. Delete one first."
    )]
    TooManyWebhookEndpoints(u32),
    #[error("Webhook endpoint {endpoint} is disabled: {reason} Set its url to enable it again.")]
    WebhookDisabled { endpoint: WebhookEndpointId, reason: String },
    #[error("reports from number {expected} on are expected, got {got}")]
    ReportGap { expected: u64, got: u64 },
    #[error("{0}")]
    Checkpoint(String),
    #[error(transparent)]
    Upload(#[from] UploadRefusal),
}
