//! The protocol between worker and engine: one JSON object per line, commands down standard input, replies
//! up standard output. Standard error is the engine's log. End of input means: stop at once.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// One request for text, resolved as far as the server can.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    pub id: String,
    /// An adapter folder in PEFT's format, or none for the base model.
    pub adapter: Option<PathBuf>,
    pub question: Question,
}

/// What a model is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// What the answer must look like.
    #[serde(default)]
    pub form: AnswerForm,
    #[serde(default)]
    pub calls: CallRules,
}

impl Question {
    /// A chat without anything else.
    pub fn chat(messages: Vec<Value>, sampling: Sampling) -> Self {
        Self {
            prompt: Prompt::Chat { messages, tools: Vec::new() },
            sampling,
            form: AnswerForm::default(),
            calls: CallRules::default(),
        }
    }

    /// A reward model's score is wanted.
    pub fn score(messages: Vec<Value>, tools: Vec<Value>) -> Self {
        let prompt = Prompt::Score { messages, tools };
        Self { prompt, ..Self::chat(Vec::new(), Sampling::default()) }
    }

    /// A text's embedding is wanted.
    pub fn embedding(text: String) -> Self {
        Self { prompt: Prompt::Embed { text }, ..Self::chat(Vec::new(), Sampling::default()) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Prompt {
    /// Messages as the API received them, content parts already joined to text; the assistant answers.
    Chat { messages: Vec<Value>, tools: Vec<Value> },
    /// A whole conversation, to be scored by a reward model.
    Score { messages: Vec<Value>, tools: Vec<Value> },
    /// A text whose embedding is wanted, without any template.
    Embed { text: String },
    /// A text to go on with, without any template.
    Text { text: String, echo: bool },
    /// The same as tokens.
    Tokens { ids: Vec<u32>, echo: bool },
}

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AnswerForm {
    #[default]
    Free,
    /// A JSON object.
    Object,
    /// JSON that satisfies a schema. One that is strict is held to in every part.
    Schema { schema: Value, strict: bool },
}

/// Which functions may, or must, be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRules {
    pub choice: CallChoice,
    /// Several calls in one answer.
    pub parallel: bool,
}

impl Default for CallRules {
    fn default() -> Self {
        Self { choice: CallChoice::Auto, parallel: true }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallChoice {
    #[default]
    Auto,
    /// Some function.
    Required,
    /// This one.
    Named(String),
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
    /// Added to the logits of tokens.
    #[serde(default)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Tell each token's log-probability, and those of so many of the most probable ones.
    #[serde(default)]
    pub logprobs: Option<u32>,
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
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

/// One thing that happened while an answer was generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GenerationEvent {
    /// The prompt was read; generation begins.
    Started { prompt_tokens: u32 },
    /// The prompt's own text, where it was asked for; its first token has no log-probability.
    Echo { text: String, logprobs: Vec<TokenLogprob> },
    /// Text of choice `index`; always whole UTF-8 characters, may stand for several tokens.
    Delta {
        index: u32,
        text: String,
        /// Of the tokens whose text begins in this piece, where they were asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprob>,
    },
    /// The choice's call number `call` begins, from 0.
    Call { index: u32, call: u32, name: String },
    /// More of the text of that call's arguments.
    Arguments { index: u32, call: u32, text: String },
    /// Choice `index` has ended.
    Finished { index: u32, reason: FinishReason },
    /// What a reward model says about the messages.
    Scored { score: f64 },
    /// The text's direction: the mean of its tokens' states after the final norm, at length 1.
    Embedded { embedding: Vec<f32> },
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
    /// Functions are to be called.
    Calls,
}

/// One token of a text, under the model's own distribution: before temperature, penalties, bias and form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    pub token: TokenText,
    /// None for the first token of a prompt.
    pub logprob: Option<f64>,
    /// The most probable ones, best first.
    pub top: Vec<(TokenText, f64)>,
}

/// A token's bytes; alone they need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenText(pub Vec<u8>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationFailure {
    /// `context_length_exceeded`, `invalid_messages`, `invalid_prompt`, `invalid_form`, `wrong_model`,
    /// `engine_lost`, `internal_error`.
    pub code: String,
    pub message: String,
}
