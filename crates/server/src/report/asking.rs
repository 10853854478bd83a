//! Contenders and what they answer: each row asked of each, several at once, greedily.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use store::Project;

use super::Role;
use super::examples::{Example, text_of};
use super::shots::{Shots, with_shots};
use crate::evals::sampling::{self, ItemError};
use crate::inference::ask;
use crate::state::AppState;

/// Tokens that an answer may have beyond those of the longest expected one: the same share again, and a few.
const SPARE_TOKENS: usize = 16;
const MAX_TOKENS: usize = 4096;

/// One model, with or without shots.
pub(crate) struct Contender {
    pub role: Role,
    pub model: String,
    /// Examples in its prompts, at most.
    pub shots: usize,
}

/// What a contender says to a row.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub text: Result<String, ItemError>,
    /// Examples that its prompt had.
    pub shots: usize,
}

/// How far the making is, for whoever asks meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub answers: AtomicU32,
    /// 0 before the rows are chosen.
    pub wanted: AtomicU32,
}

/// What all questions share.
pub(crate) struct Questions<'a> {
    pub state: &'a AppState,
    pub project: &'a Project,
    pub shots: &'a Shots,
    pub max_tokens: usize,
}

/// Room for the longest expected answer, in tokens of the model.
pub(crate) async fn max_tokens(
    state: &AppState,
    project: &Project,
    model: &str,
    examples: &[Example],
) -> usize {
    let expected: Vec<&str> = examples.iter().map(|example| example.expected.as_str()).collect();
    let bytes = expected.iter().map(|text| text.len()).max().unwrap_or(0);
    let count = async {
        let resolved = ask::model(state, project, model).await.ok()?;
        let model = state.models.get(&state.store, &resolved.base).await.ok()?;
        let count = |text: &&str| model.tokenizer.ids_of(text).ok().map(|ids| ids.len());
        expected.iter().map(count).try_fold(0, |most, count| Some(most.max(count?)))
    };
    // A model that is gone fails every question, and says so there.
    let longest = count.await.unwrap_or(bytes);
    (longest + longest / 4 + SPARE_TOKENS).min(MAX_TOKENS)
}

impl Questions<'_> {
    /// What `contender` says to each of the rows, in their order; `told` hears of each answer.
    pub(crate) async fn ask_all(
        &self,
        contender: &Contender,
        examples: &[Example],
        told: &Progress,
    ) -> Vec<Said> {
        let at_once = self.state.config.eval_items_at_once.max(1);
        let ask = |example| -> BoxFuture<'_, Said> {
            Box::pin(async move {
                let said = self.ask(contender, example).await;
                told.answers.fetch_add(1, Ordering::Relaxed);
                said
            })
        };
        let asked: Vec<_> = examples.iter().map(ask).collect();
        stream::iter(asked).buffered(at_once).collect().await
    }

    /// With fewer shots where the model's context has no room for all of them.
    async fn ask(&self, contender: &Contender, example: &Example) -> Said {
        let mut shots = self.shots.nearest(example, contender.shots);
        loop {
            let text = self.answer(contender, with_shots(example, &shots), &example.tools).await;
            match text {
                Err(error) if error.code == "context_length_exceeded" && !shots.is_empty() => {
                    // The unlikest stand first.
                    shots.drain(..shots.len().div_ceil(2));
                }
                text => return Said { text, shots: shots.len() },
            }
        }
    }

    async fn answer(
        &self,
        contender: &Contender,
        messages: Vec<Value>,
        tools: &[Value],
    ) -> Result<String, ItemError> {
        let mut body = json!({
            "model": contender.model, "messages": messages, "temperature": 0,
            "max_completion_tokens": self.max_tokens,
        });
        if !tools.is_empty() {
            body["tools"] = tools.to_vec().into();
        }
        let completion = sampling::complete(self.state, self.project, &body).await?;
        let choices = json!(completion.choices);
        Ok(choices.pointer("/0/message").map(text_of).unwrap_or_default())
    }
}
