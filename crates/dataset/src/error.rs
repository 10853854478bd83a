//! Errors of loading a tokenizer and of rendering a conversation.

use std::io;
use std::path::PathBuf;

/// Why a model's tokenizer or chat template cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("tokenizer.json is not a tokenizer that can be read: {0}")]
    Tokenizer(String),
    #[error("{file} is not valid: {message}")]
    Config { file: &'static str, message: String },
    #[error(
        "the tokenizer has no chat template: add a chat_template.jinja file or a `chat_template` \
         to tokenizer_config.json (an instruct variant of the model usually has one)"
    )]
    NoChatTemplate,
    #[error("the chat template is not valid: {0}")]
    Template(String),
    #[error(
        "cannot tell how the model ends a turn: no special token follows an assistant message in \
         its chat template, and tokenizer_config.json names no eos_token"
    )]
    NoEndOfTurn,
}

/// Why a conversation cannot be turned into tokens. `message` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("there is no message")]
    Empty,
    #[error("the chat template of the model refuses the conversation: {0}")]
    Raised(String),
    #[error("the chat template of the model cannot render the conversation: {0}")]
    Render(String),
    #[error("the chat template of the model took too long for the conversation")]
    TooExpensive,
    #[error("the conversation is longer than {limit} bytes after rendering")]
    OutputTooLong { limit: usize },
    #[error("message {message}: content of type \"{kind}\" is not supported; only text is")]
    UnsupportedContent { message: usize, kind: String },
    #[error("message {message} contains a special token of the model: {token}")]
    SpecialToken { message: usize, token: String },
    #[error(
        "message {message}: the chat template of the model renders this assistant message \
         differently in training than in generation, so its tokens cannot be told apart safely"
    )]
    HeaderNotFound { message: usize },
    #[error("message {message}: the chat template of the model writes no end-of-turn token")]
    NoEndOfTurn { message: usize },
    #[error(
        "message {message}: the chat template of the model changes or drops the text of this \
         assistant message, so it cannot be trained as written"
    )]
    ContentChanged { message: usize },
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

impl TemplateError {
    /// The 1-based message that the error is about, where it is about one.
    pub fn message(&self) -> Option<usize> {
        match self {
            Self::UnsupportedContent { message, .. }
            | Self::SpecialToken { message, .. }
            | Self::HeaderNotFound { message }
            | Self::NoEndOfTurn { message }
            | Self::ContentChanged { message } => Some(*message),
            _ => None,
        }
    }
}
