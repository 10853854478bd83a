//! The protocol between worker and engine: one JSON object per line, commands down standard input, replies
//! up standard output. Standard error is the engine's log. End of input means: stop at once.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::JobId;
use crate::plan::TrainingPlan;
use crate::report::{CheckpointReport, RunFailure, RunReport};

/// What the worker may ask of an engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Begin a run beside whatever else is going on.
    Train { plan: Box<TrainingPlan> },
    /// End a run after the step in hand. With `checkpoint`, write one first (drain, pause).
    StopRun { job_id: JobId, checkpoint: bool },
    /// Answer a chat request.
    Generate { request: Box<GenerateRequest> },
    /// Nobody waits for this answer any more.
    CancelGenerate { id: String },
}

/// What an engine may answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The base model is loaded; sent once, first.
    Ready {
        model_type: String,
        parameters: u64,
        device: String,
        context_length: u32,
    },
    Run {
        job_id: JobId,
        report: RunReport,
    },
    /// A checkpoint folder is complete. The worker uploads it and removes it.
    Checkpoint {
        job_id: JobId,
        checkpoint: CheckpointReport,
    },
    /// All steps are done; the final checkpoint was reported before.
    RunFinished {
        job_id: JobId,
    },
    /// Stopped on command; with `checkpoint` asked for, it was reported before.
    RunStopped {
        job_id: JobId,
    },
    RunFailed {
        job_id: JobId,
        failure: RunFailure,
    },
    Generation {
        id: String,
        event: GenerationEvent,
    },
}

/// One chat request, resolved as far as the server can.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    pub id: String,
    /// An adapter folder in PEFT's format, or none for the base model.
    pub adapter: Option<PathBuf>,
    /// Chat messages as the API received them, content parts already joined to text.
    pub messages: Vec<serde_json::Value>,
    #[serde(default)]
    pub tools: Vec<serde_json::Value>,
    pub sampling: Sampling,
    /// Score the messages with a reward model instead of answering them.
    #[serde(default)]
    pub score: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 means greedy.
    pub temperature: f64,
    pub top_p: f64,
    pub seed: Option<u64>,
    /// Tokens to generate at most; none means up to the context length.
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub frequency_penalty: f64,
    pub presence_penalty: f64,
    /// Completions of the same prompt.
    pub n: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            seed: None,
            max_tokens: None,
            stop: Vec::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            n: 1,
        }
    }
}

/// One thing that happened while an answer was generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GenerationEvent {
    /// The prompt was read; generation begins.
    Started { prompt_tokens: u32 },
    /// Text of choice `index`; always whole UTF-8 characters, may stand for several tokens.
    Delta { index: u32, text: String },
    /// Choice `index` has ended.
    Finished { index: u32, reason: FinishReason },
    /// What a reward model says about the messages.
    Scored { score: f64 },
    /// Every choice has ended; nothing follows.
    Done { prompt_tokens: u32, completion_tokens: u32 },
    /// The request cannot be answered; nothing follows.
    Failed { failure: GenerationFailure },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Stop,
    Length,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationFailure {
    /// `context_length_exceeded`, `invalid_messages`, `wrong_model`, `engine_lost`, `internal_error`.
    pub code: String,
    pub message: String,
}
