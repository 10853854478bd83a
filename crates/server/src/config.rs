//! The `[server]`, `[limits]`, `[graders]` and `[webhooks]` sections of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use domain::TrainingOptions;
use serde::Deserialize;
use store::LeaseConfig;

use crate::costs::CostsConfig;

/// Limits and times of the server. Every field has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address to listen on. The caller of [`crate::serve`] binds it.
    pub listen: String,
    /// How clients reach this server, when it is not the address above (a proxy stands before it).
    pub public_url: Option<String>,
    /// Largest file that comes in one request.
    pub max_file_bytes: ByteSize,
    /// Largest file of purpose `batch`, however it comes.
    pub max_batch_file_bytes: ByteSize,
    /// Largest file that comes in parts.
    pub max_upload_bytes: ByteSize,
    /// Largest part.
    pub max_part_bytes: ByteSize,
    /// Most parts of one upload.
    pub max_upload_parts: u32,
    /// How long an upload takes parts.
    #[serde(with = "humantime_serde")]
    pub upload_lifetime: Duration,
    /// Largest JSON body of the public API.
    pub max_json_bytes: ByteSize,
    /// Longest line of a training file.
    pub max_line_bytes: ByteSize,
    /// Open connections, each reader of a job's events among them; more wait.
    pub max_connections: usize,
    /// For a request's headers, and for the next request on an idle connection.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// The longest pause in a request's body.
    #[serde(with = "humantime_serde")]
    pub body_idle_timeout: Duration,
    /// On shutdown: how long `/readyz` fails before no connection is accepted any more.
    #[serde(with = "humantime_serde")]
    pub drain_delay: Duration,
    /// On shutdown: how long open requests may take.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// How long a chat request waits for a worker to take it.
    #[serde(with = "humantime_serde")]
    pub inference_wait: Duration,
    /// The longest silence of a worker in the middle of an answer.
    #[serde(with = "humantime_serde")]
    pub inference_idle: Duration,
    /// Chat requests that may wait or run at once.
    pub max_inference_requests: usize,
    /// How long stored completions are kept.
    #[serde(with = "humantime_serde")]
    pub completion_retention: Duration,
    /// Training files that are checked at once.
    pub validations: usize,
    /// Runs of evaluations that are executed at once.
    pub eval_runs: usize,
    /// Rows of one such run that are judged at once.
    pub eval_items_at_once: usize,
    /// Memory of a worker's device, for the advice on methods; 0: not known.
    pub device_memory: ByteSize,
    /// The operator's defaults for jobs: the section `[training]`, put here by the program that
    /// reads the configuration.
    #[serde(skip)]
    pub training: TrainingOptions,
    /// The section `[lease]`, put here likewise.
    #[serde(skip)]
    pub lease: LeaseConfig,
    /// The section `[limits]`, put here likewise.
    #[serde(skip)]
    pub limits: LimitsConfig,
    /// The section `[costs]`, put here likewise.
    #[serde(skip)]
    pub costs: CostsConfig,
    /// The section `[graders]`, put here likewise.
    #[serde(skip)]
    pub graders: GradersConfig,
    /// The section `[webhooks]`, put here likewise.
    #[serde(skip)]
    pub webhooks: WebhooksConfig,
}

/// Section `[limits]`: of each project, in each server process. 0 is no limit.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Requests for chat or text completions, or scores.
    pub requests_per_minute: u64,
    /// Their tokens, of prompts and answers.
    pub tokens_per_minute: u64,
    /// All other requests.
    pub other_requests_per_minute: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_per_minute: 30_000,
            tokens_per_minute: 150_000_000,
            other_requests_per_minute: 30_000,
        }
    }
}

/// Section `[graders]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradersConfig {
    /// How long a model that grades may take for one answer.
    #[serde(with = "humantime_serde")]
    pub judge_timeout: Duration,
    /// The model whose states `cosine` compares; empty: the smallest base model.
    pub embedding_model: String,
    /// The interpreter of Python graders, or `off`.
    pub python: String,
    /// How long one Python grader may take, by the wall clock and of processor time.
    #[serde(with = "humantime_serde")]
    pub python_timeout: Duration,
    /// Memory of one Python grader.
    pub python_memory: ByteSize,
    /// Python graders that run at once; more wait.
    pub python_processes: usize,
    /// The program that has the command `grade-python`: this one, put here by itself. Without it there are no
    /// Python graders.
    #[serde(skip)]
    pub launcher: Option<PathBuf>,
}

/// Section `[webhooks]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhooksConfig {
    /// The pauses after the first, second, … failed attempt; after one more the delivery has failed.
    pub retries: Vec<Pause>,
    /// How long a receiver may take to answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Names, addresses and networks that may be reached although they are not public. Plain `http://` is for names
    /// and addresses that stand here.
    pub allow: Vec<String>,
    /// Requests of one server at once, at most one of them to an endpoint.
    pub at_once: usize,
    /// Endpoints of a project.
    pub max_endpoints: u32,
    /// How long the log shows a delivery that has ended.
    #[serde(with = "humantime_serde")]
    pub log_retention: Duration,
}

/// A span of time within a list.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(transparent)]
pub struct Pause(#[serde(with = "humantime_serde")] pub Duration);

impl Default for WebhooksConfig {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        let seconds =
            [5, 300, 1800, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
        Self {
            retries: seconds.map(|seconds| Pause(Duration::from_secs(seconds))).to_vec(),
            timeout: Duration::from_secs(20),
            allow: Vec::new(),
            at_once: 16,
            max_endpoints: 20,
            log_retention: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl Default for GradersConfig {
    fn default() -> Self {
        Self {
            judge_timeout: Duration::from_secs(120),
            embedding_model: String::new(),
            python: "python3".to_owned(),
            python_timeout: Duration::from_secs(120),
            python_memory: ByteSize::gib(2),
            python_processes: 2,
            launcher: None,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8000".to_owned(),
            public_url: None,
            max_file_bytes: ByteSize::mib(512),
            max_batch_file_bytes: ByteSize::mib(200),
            max_upload_bytes: ByteSize::gib(8),
            max_part_bytes: ByteSize::mib(64),
            max_upload_parts: 10_000,
            upload_lifetime: Duration::from_secs(3600),
            max_json_bytes: ByteSize::mib(1),
            max_line_bytes: ByteSize::mib(4),
            max_connections: 8192,
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            drain_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
            inference_wait: Duration::from_secs(30),
            inference_idle: Duration::from_secs(300),
            max_inference_requests: 256,
            completion_retention: Duration::from_secs(30 * 24 * 3600),
            validations: 2,
            eval_runs: 2,
            eval_items_at_once: 8,
            device_memory: ByteSize::b(0),
            training: TrainingOptions::default(),
            lease: LeaseConfig::default(),
            limits: LimitsConfig::default(),
            costs: CostsConfig::default(),
            graders: GradersConfig::default(),
            webhooks: WebhooksConfig::default(),
        }
    }
}
