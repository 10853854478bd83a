//! A request's prompt → tokens, and what they leave room for.

use dataset::ChatTokenizer;
use domain::engine::{GenerationFailure, Prompt, Sampling};
use model::{Adapter, Decoder};
use serde_json::Value;

use super::failure;

const SCORES_ONLY: &str = "This is a reward model: it does not answer, it scores whole conversations. \
                           Use POST /v1/fine_tuning/score.";
const NO_EMBEDDINGS: &str =
    "This is a reward model: it scores whole conversations, and gives no embeddings.";
const NO_SCORES: &str = "This model does not score: only the result of a job with 'loss_type': 'reward' \
                         does. Use POST /v1/chat/completions.";

/// What is to come of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    Answer,
    /// A reward model's score of it.
    Score,
    /// The embedding of its tokens from this one on.
    Embedding {
        from: usize,
    },
}

impl Aim {
    fn of(prompt: &Prompt) -> Self {
        match prompt {
            Prompt::Chat { .. } | Prompt::Text { .. } | Prompt::Tokens { .. } => Self::Answer,
            Prompt::Score { .. } => Self::Score,
            Prompt::Embed { .. } => Self::Embedding { from: 0 },
        }
    }
}

pub struct Wanted {
    pub ids: Vec<i64>,
    /// The text to be told before the answer, and how many tokens of the prompt are before it.
    pub echo: Option<(String, usize)>,
    pub aim: Aim,
    /// Tokens that end an answer.
    pub stops: Vec<u32>,
}

/// Refuses what a model does not do.
pub fn check_kind(prompt: &Prompt, adapter: Option<&Adapter>) -> Result<(), GenerationFailure> {
    let is_reward = adapter.is_some_and(Adapter::is_reward);
    let message = match (Aim::of(prompt), is_reward) {
        (Aim::Score, true) | (Aim::Answer | Aim::Embedding { .. }, false) => return Ok(()),
        (Aim::Score, false) => NO_SCORES,
        (Aim::Answer, true) => SCORES_ONLY,
        (Aim::Embedding { .. }, true) => NO_EMBEDDINGS,
    };
    Err(failure("wrong_model", message.to_owned()))
}

pub fn tools(prompt: &Prompt) -> &[Value] {
    match prompt {
        Prompt::Chat { tools, .. } => tools,
        _ => &[],
    }
}

/// `lead` is text of the answer that is given, not generated.
pub fn read(
    prompt: Prompt,
    lead: &str,
    decoder: &Decoder,
    tokenizer: &ChatTokenizer,
) -> Result<Wanted, GenerationFailure> {
    let invalid =
        |code: &'static str| move |error: dataset::TemplateError| failure(code, error.to_string());
    let mut stops = tokenizer.stop_ids().to_vec();
    let mut aim = Aim::of(&prompt);
    let mut echoes = None;
    let mut ids = match prompt {
        Prompt::Chat { messages, tools } => {
            let mut ids =
                tokenizer.encode_prompt(&messages, &tools).map_err(invalid("invalid_messages"))?;
            ids.extend(tokenizer.ids_of(lead).map_err(invalid("invalid_messages"))?);
            ids
        }
        Prompt::Score { messages, tools } => {
            tokenizer.encode_conversation(&messages, &tools).map_err(invalid("invalid_messages"))?
        }
        Prompt::Embed { text } => {
            let (mut ids, mut own) =
                tokenizer.encode_text_prompt(&text).map_err(invalid("invalid_prompt"))?;
            if own == 0 && !ids.is_empty() {
                ids.insert(0, tokenizer.end_of_text());
                own = 1;
            }
            // A text without a token is what stands before it.
            aim = Aim::Embedding { from: if own < ids.len() { own } else { 0 } };
            ids
        }
        Prompt::Text { text, echo } => {
            stops.push(tokenizer.end_of_text());
            let (ids, own) =
                tokenizer.encode_text_prompt(&text).map_err(invalid("invalid_prompt"))?;
            echoes = echo.then_some((text, own));
            ids
        }
        Prompt::Tokens { ids, echo } => {
            stops.push(tokenizer.end_of_text());
            let vocabulary = decoder.spec().vocab_size as u32;
            if let Some(id) = ids.iter().find(|id| **id >= vocabulary) {
                let message =
                    format!("Token {id} is not in this model's vocabulary of {vocabulary} tokens.");
                return Err(failure("invalid_prompt", message));
            }
            echoes = echo.then(|| (tokenizer.decode(&ids), 0));
            ids
        }
    };
    if ids.is_empty() {
        if aim == Aim::Score {
            return Err(failure("invalid_messages", "The messages hold no text.".to_owned()));
        }
        // Something must come first: what ends texts also stands before them.
        ids.push(tokenizer.end_of_text());
        echoes = echoes.map(|(text, _)| (text, 1));
    }
    let ids = ids.into_iter().map(i64::from).collect();
    Ok(Wanted { ids, echo: echoes, aim, stops })
}

/// Tokens that an answer may have, so that it fits the context with its prompt.
pub fn room(
    prompt: usize,
    context: usize,
    sampling: &Sampling,
    aim: Aim,
) -> Result<usize, GenerationFailure> {
    let wanted = sampling.max_tokens.map_or(usize::MAX, |tokens| tokens as usize);
    // A token of the answer needs room too.
    if prompt + usize::from(aim == Aim::Answer && wanted > 0) > context {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your messages \
             resulted in {prompt} tokens. Please reduce the length of the messages."
        );
        return Err(failure("context_length_exceeded", message));
    }
    Ok(wanted.min(context - prompt))
}
