//! Completions of plain texts on the wire, OpenAI's older call. What this server does not honour is accepted
//! and ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::completion::{StreamOptions, Usage};
use super::shape::Texts;
use super::shape::message::Prompt;

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct CreateText {
    pub model: String,
    /// A text, several, token ids, or several lists of them.
    #[schema(value_type = Option<Prompt>)]
    pub prompt: Option<Value>,
    /// 16 by default.
    pub max_tokens: Option<i64>,
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<i64>,
    /// Generate so many, 0 to 20, and answer with the `n` of them that are most probable per token.
    #[schema(minimum = 0, maximum = 20)]
    pub best_of: Option<i64>,
    /// Answer with the prompt before the completion.
    pub echo: Option<bool>,
    #[schema(minimum = 0, maximum = 5)]
    pub logprobs: Option<i64>,
    /// Text behind the completion: not supported.
    pub suffix: Option<String>,
    #[schema(value_type = Option<Texts>)]
    pub stop: Option<Value>,
    pub seed: Option<i64>,
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
}

/// A whole completion, or one event of a stream of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TextCompletion {
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub choices: Vec<TextChoice>,
    /// In a stream only with `include_usage`: null in every event but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    pub system_fingerprint: String,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct TextChoice {
    pub text: String,
    pub index: u32,
    pub logprobs: Option<TextLogprobs>,
    /// `stop` or `length`; null in a stream before the end.
    pub finish_reason: Option<&'static str>,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct TextLogprobs {
    pub tokens: Vec<String>,
    /// Null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f64>>,
    /// Null without alternatives.
    #[schema(value_type = Option<Vec<Option<BTreeMap<String, f64>>>>)]
    pub top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
    /// Where each token begins, in characters.
    pub text_offset: Vec<u32>,
}
