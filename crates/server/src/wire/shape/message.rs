//! Messages, tools and forms of answers, as chat completions take them.

use serde::Serialize;
use utoipa::ToSchema;

use super::FreeObject;

/// One message of a conversation.
#[derive(Serialize, ToSchema)]
pub(crate) struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool` or `function`.
    pub role: String,
    /// May be absent or null where an assistant's message has calls or a refusal.
    pub content: Option<Content>,
    pub name: Option<String>,
    pub refusal: Option<String>,
    /// Of an assistant's message.
    pub tool_calls: Option<Vec<CalledTool>>,
    /// Of an assistant's message; the older form of `tool_calls`.
    pub function_call: Option<CalledFunction>,
    /// Of a tool's message: the call that it answers.
    pub tool_call_id: Option<String>,
}

/// A text, or parts that are joined.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// Text only: images, audio and files are refused.
#[derive(Serialize, ToSchema)]
pub(crate) struct ContentPart {
    /// `text` or `refusal`.
    pub r#type: String,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct CalledTool {
    pub id: String,
    /// Always `function`.
    pub r#type: String,
    pub function: CalledFunction,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct CalledFunction {
    pub name: String,
    /// JSON as text.
    pub arguments: String,
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tool {
    /// Always `function`.
    pub r#type: String,
    pub function: FunctionDefinition,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct FunctionDefinition {
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    pub name: String,
    pub description: Option<String>,
    /// A JSON Schema.
    pub parameters: Option<FreeObject>,
    /// Hold the arguments to the schema.
    pub strict: Option<bool>,
}

/// A word, one function, or some of the functions.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    /// `none`, `auto` or `required`.
    Word(String),
    One(NamedTool),
    Some(AllowedTools),
}

#[derive(Serialize, ToSchema)]
pub(crate) struct NamedTool {
    /// Always `function`.
    pub r#type: String,
    pub function: NamedFunction,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct NamedFunction {
    pub name: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AllowedTools {
    /// Always `allowed_tools`.
    pub r#type: String,
    pub allowed_tools: AllowedToolsList,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AllowedToolsList {
    /// `auto` or `required`.
    pub mode: String,
    pub tools: Vec<NamedTool>,
}

/// The older form of a choice: a word, or one function.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum FunctionChoice {
    /// `none`, `auto` or `required`.
    Word(String),
    One(NamedFunction),
}

/// The form that an answer is held to.
#[derive(Serialize, ToSchema)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    pub r#type: String,
    /// Of the type `json_schema`.
    pub json_schema: Option<NamedSchema>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct NamedSchema {
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    pub description: Option<String>,
    /// A JSON Schema.
    pub schema: Option<FreeObject>,
    pub strict: Option<bool>,
}

/// A text, several, token ids, or several lists of them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ListsOfTokens(Vec<Vec<u32>>),
}
