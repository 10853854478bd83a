//! Chat completions on the wire. Of the request, what this server honours is typed; what it does
//! not (tiers, caches, audio, web search) is accepted and ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::shape::message::{
    FunctionChoice, FunctionDefinition, Message, ResponseFormat, Tool, ToolChoice,
};
use super::shape::{FreeObject, Texts};

#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
pub(crate) struct CreateCompletion {
    pub model: String,
    #[schema(value_type = Vec<Message>, min_items = 1)]
    pub messages: Vec<Value>,
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<i64>,
    pub seed: Option<i64>,
    /// A string or up to four.
    #[schema(value_type = Option<Texts>)]
    pub stop: Option<Value>,
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f64>,
    #[schema(minimum = 0, maximum = 4294967295_i64)]
    pub max_completion_tokens: Option<i64>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 0, maximum = 4294967295_i64)]
    pub max_tokens: Option<i64>,
    /// Token ids to -100 … 100, added to their logits.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Tell each token's log-probability under the model: before temperature, penalties and bias.
    pub logprobs: Option<bool>,
    /// Needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<i64>,
    #[schema(value_type = Option<Vec<Tool>>, max_items = 128)]
    pub tools: Option<Vec<Value>>,
    /// `none`, `auto`, `required`, one function, or some of them.
    #[schema(value_type = Option<ToolChoice>)]
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    /// The older form of `tools`.
    #[schema(value_type = Option<Vec<FunctionDefinition>>, max_items = 128)]
    pub functions: Option<Vec<Value>>,
    /// The older form of `tool_choice`.
    #[schema(value_type = Option<FunctionChoice>)]
    pub function_call: Option<Value>,
    /// `text`, `json_object`, or `json_schema` with a schema that the answer is held to.
    #[schema(value_type = Option<ResponseFormat>)]
    pub response_format: Option<Value>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    /// Keep the completion, to be listed and read later.
    pub store: Option<bool>,
    pub metadata: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
pub(crate) struct StreamOptions {
    pub include_usage: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub choices: Vec<Choice>,
    pub usage: Usage,
    pub service_tier: &'static str,
    pub system_fingerprint: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Choice {
    pub index: u32,
    pub message: AssistantMessage,
    pub logprobs: Option<Logprobs>,
    /// `stop`, `length`, `tool_calls` or `function_call`.
    pub finish_reason: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AssistantMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// Null where the answer is nothing but calls.
    pub content: Option<String>,
    pub refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Instead of `tool_calls`, where the request had `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
    #[schema(value_type = Vec<FreeObject>)]
    pub annotations: Vec<Value>,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct Logprobs {
    /// One for each token of the content.
    pub content: Option<Vec<TokenLogprob>>,
    /// Always null.
    pub refusal: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    /// With U+FFFD where the token is only a part of a character.
    pub token: String,
    pub logprob: f64,
    /// The token exactly.
    pub bytes: Vec<u8>,
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    pub token: String,
    pub logprob: f64,
    pub bytes: Vec<u8>,
}

/// The model asks for a function to be called.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    pub id: String,
    /// Always `function`.
    pub r#type: &'static str,
    pub function: FunctionCall,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct FunctionCall {
    pub name: String,
    /// JSON as text.
    pub arguments: String,
}

#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Self { prompt_tokens, completion_tokens, total_tokens, ..Self::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    pub cached_tokens: u32,
    pub audio_tokens: u32,
}

#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    pub reasoning_tokens: u32,
    pub audio_tokens: u32,
    pub accepted_prediction_tokens: u32,
    pub rejected_prediction_tokens: u32,
}

/// One event of a streamed completion.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChunk {
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub choices: Vec<ChunkChoice>,
    pub service_tier: &'static str,
    pub system_fingerprint: String,
    /// Absent without `include_usage`; null in every chunk but the last with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    pub index: u32,
    pub delta: Delta,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<&'static str>,
}

/// What a chunk adds: first the role, then text, at last nothing.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Only in the first chunk, and null there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub refusal: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<CallDelta>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionDelta>,
}

/// A piece of a call: the first has its id and name, later ones more of the arguments.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallDelta {
    pub index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    pub function: FunctionDelta,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}
