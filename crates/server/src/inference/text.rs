//! Completions of plain texts, the call that OpenAI had before chats: several prompts in one request, echoed
//! prompts, the best of several. Each prompt is a question of its own to the workers.

use std::sync::Arc;

use domain::engine::{
    AnswerForm, CallRules, GenerationEvent, Prompt, Question, Sampling, TokenLogprob,
};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use store::Project;
use store::models::Resolved;
use tokio::sync::mpsc;

use super::answer::{Heading, Patience, first, next};
use super::ask::{heading, model, submit};
use super::broker::Answer;
use super::prompt::{integer, sampling};
use super::sse::{Gone, Writer, respond};
use super::whole::reason_word;
use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::limits::{Charge, cost};
use crate::state::AppState;
use crate::wire::completion::{CreateCompletion, Usage};
use crate::wire::text::{CreateText, TextChoice, TextCompletion, TextLogprobs};
use domain::id::TextCompletionId;

const DEFAULT_TOKENS: i64 = 16;
const MAX_LOGPROBS: i64 = 5;
const MAX_BEST_OF: i64 = 20;
/// Prompts of one request, and how many of them are asked at once.
const MAX_PROMPTS: usize = 128;
const AT_ONCE: usize = 8;
const BUFFER: usize = 64;

/// A checked request.
pub(crate) struct Texts {
    state: AppState,
    model: Resolved,
    prompts: Vec<Prompt>,
    sampling: Sampling,
    heading: Heading,
    /// Choices per prompt in the answer; `sampling` may have more.
    n: u32,
    echo: bool,
    /// Alternatives per token, if log-probabilities are told.
    logprobs: Option<u32>,
    charge: Arc<Charge>,
}

/// One prompt's choices, and the tokens of prompt and completion.
struct Completed {
    choices: Vec<TextChoice>,
    usage: (u32, u32),
}

impl Texts {
    pub(crate) async fn new(
        state: &AppState,
        project: &Project,
        request: CreateText,
        charge: Arc<Charge>,
    ) -> ApiResult<Self> {
        let n = integer("n", request.n.unwrap_or(1), 1, 128)?;
        let best_of =
            integer("best_of", request.best_of.unwrap_or(n), 0, MAX_BEST_OF.max(n))?.max(1);
        let streams = request.stream.unwrap_or(false);
        if best_of < n || (streams && best_of > n) {
            let message = if best_of < n {
                "Invalid 'best_of': it must not be less than 'n'."
            } else {
                "Invalid 'best_of': a stream cannot choose the best of several."
            };
            return Err(ApiError::invalid_value("best_of", message));
        }
        if request.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
            let message = "Invalid 'suffix': these models do not write text between two others.";
            return Err(ApiError::invalid_value("suffix", message));
        }
        let logprobs =
            request.logprobs.map(|top| integer("logprobs", top, 0, MAX_LOGPROBS)).transpose()?;
        let logprobs = logprobs.map(|top| top as u32);
        let echo = request.echo.unwrap_or(false);
        let prompts = prompts(request.prompt.as_ref(), echo)?;
        let sampling = Sampling {
            n: best_of as u32,
            logprobs: logprobs.or((best_of > n).then_some(0)),
            ..sampling(&as_chat(&request))?
        };
        let model = model(state, project, &request.model).await?;
        let id = TextCompletionId::new().to_string();
        let n = n as u32;
        let heading = heading(id, &request.model, &model, n * prompts.len() as u32);
        let state = state.clone();
        Ok(Self { state, model, prompts, sampling, heading, n, echo, logprobs, charge })
    }

    fn ask(&self, index: usize) -> ApiResult<(Answer, Patience)> {
        let question = Question {
            prompt: self.prompts[index].clone(),
            sampling: Sampling {
                // Equal prompts of one request shall not have equal answers.
                seed: self.sampling.seed.map(|seed| seed.wrapping_add(index as u64)),
                ..self.sampling.clone()
            },
            form: AnswerForm::Free,
            calls: CallRules::default(),
        };
        let id = format!("{}-{index}", self.heading.id);
        let (answer, patience) = submit(&self.state, &id, self.model.clone(), question)?;
        Ok((answer.charged(Some(&self.charge)), patience))
    }

    /// All choices of all prompts, in order.
    pub(crate) async fn whole(self) -> ApiResult<TextCompletion> {
        let texts = &self;
        let completed: Vec<Completed> = stream::iter(0..texts.prompts.len())
            .map(|index| texts.complete(index))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let usage =
            completed.iter().fold((0, 0), |sum, one| (sum.0 + one.usage.0, sum.1 + one.usage.1));
        let choices = completed.into_iter().flat_map(|one| one.choices).enumerate();
        let choices = choices.map(|(index, choice)| TextChoice { index: index as u32, ..choice });
        let usage = Usage::new(usage.0, usage.1);
        Ok(self.completion(choices.collect(), Some(Some(usage))))
    }

    async fn complete(&self, index: usize) -> ApiResult<Completed> {
        let (mut answer, patience) = self.ask(index)?;
        let mut drafts: Vec<Draft> = (0..self.sampling.n).map(|_| Draft::default()).collect();
        let mut event = first(&mut answer, patience).await?;
        loop {
            match event {
                GenerationEvent::Echo { text, logprobs } => {
                    drafts.iter_mut().for_each(|draft| draft.echo(&text, &logprobs));
                }
                GenerationEvent::Delta { index, text, logprobs } => {
                    if let Some(draft) = drafts.get_mut(index as usize) {
                        draft.add(&text, logprobs);
                    }
                }
                GenerationEvent::Finished { index, reason } => {
                    if let Some(draft) = drafts.get_mut(index as usize) {
                        draft.reason = reason_word(reason, false);
                    }
                }
                GenerationEvent::Done { prompt_tokens, completion_tokens } => {
                    if drafts.len() > self.n as usize {
                        drafts.sort_by(|a, b| b.mean().total_cmp(&a.mean()));
                        drafts.truncate(self.n as usize);
                    }
                    let choices = drafts.into_iter().map(|draft| self.choice(draft)).collect();
                    return Ok(Completed { choices, usage: (prompt_tokens, completion_tokens) });
                }
                _ => {}
            }
            event = next(&mut answer, patience.idle).await?;
        }
    }

    fn choice(&self, draft: Draft) -> TextChoice {
        let mut offset = 0;
        let logprobs = self.logprobs.map(|top| shown(&draft.logprobs, top, &mut offset));
        TextChoice { text: draft.text, index: 0, logprobs, finish_reason: Some(draft.reason) }
    }

    fn completion(&self, choices: Vec<TextChoice>, usage: Option<Option<Usage>>) -> TextCompletion {
        TextCompletion {
            id: self.heading.id.clone(),
            object: "text_completion",
            created: self.heading.created,
            model: self.heading.model.clone(),
            choices,
            usage,
            system_fingerprint: self.heading.system_fingerprint.clone(),
        }
    }

    /// The same in pieces. Waits for the first event of the first prompt, so that early errors have a status.
    pub(crate) async fn stream(self, include_usage: bool) -> ApiResult<axum::response::Response> {
        let (mut answer, patience) = self.ask(0)?;
        let event = first(&mut answer, patience).await?;
        Ok(respond(move |writer| async move {
            self.write(writer, (answer, event), patience, include_usage).await
        }))
    }

    async fn write(
        self,
        writer: Writer,
        begun: (Answer, GenerationEvent),
        patience: Patience,
        include_usage: bool,
    ) -> Result<(), Gone> {
        let (sender, mut events) = mpsc::channel(BUFFER);
        let mut begun = Some(begun);
        let relays = stream::iter(0..self.prompts.len()).map(|index| {
            let (begun, sender) = (begun.take(), sender.clone());
            self.relay(index, begun, patience, sender)
        });
        let relays = relays.buffer_unordered(AT_ONCE).collect::<Vec<()>>();
        let told = async {
            let mut offsets = vec![0u32; self.heading.n as usize];
            let (mut usage, mut open) = ((0, 0), self.prompts.len());
            while open > 0 {
                let Some((prompt, event)) = events.recv().await else { break };
                match event {
                    Ok(GenerationEvent::Done { prompt_tokens, completion_tokens }) => {
                        usage = (usage.0 + prompt_tokens, usage.1 + completion_tokens);
                        open -= 1;
                    }
                    Ok(event) => {
                        for choice in self.pieces(prompt, event, &mut offsets) {
                            let usage = include_usage.then_some(None);
                            writer.json(&self.completion(vec![choice], usage)).await?;
                        }
                    }
                    Err(error) => return writer.fail(&error).await,
                }
            }
            if include_usage {
                let usage = Some(Some(Usage::new(usage.0, usage.1)));
                writer.json(&self.completion(Vec::new(), usage)).await?;
            }
            writer.done().await
        };
        tokio::pin!(relays);
        tokio::select! {
            biased;
            told = told => told,
            // Never before all is told: the last events are still in the channel then.
            () = async { relays.await; std::future::pending().await } => Ok(()),
        }
    }

    /// Passes one prompt's events on.
    async fn relay(
        &self,
        index: usize,
        begun: Option<(Answer, GenerationEvent)>,
        patience: Patience,
        sender: mpsc::Sender<(usize, ApiResult<GenerationEvent>)>,
    ) {
        let begun = match begun {
            Some(begun) => Ok(begun),
            None => match self.ask(index) {
                Ok((mut answer, patience)) => {
                    first(&mut answer, patience).await.map(|event| (answer, event))
                }
                Err(error) => Err(error),
            },
        };
        let (mut answer, mut event) = match begun {
            Ok((answer, event)) => (answer, Ok(event)),
            Err(error) => return drop(sender.send((index, Err(error))).await),
        };
        loop {
            let is_last = matches!(&event, Ok(GenerationEvent::Done { .. }) | Err(_));
            if sender.send((index, event)).await.is_err() || is_last {
                return;
            }
            event = next(&mut answer, patience.idle).await;
        }
    }

    /// What an event of a prompt adds to its choices.
    fn pieces(
        &self,
        prompt: usize,
        event: GenerationEvent,
        offsets: &mut [u32],
    ) -> Vec<TextChoice> {
        let place = |index: u32| prompt as u32 * self.n + index;
        let mut piece = |index: u32, text: &str, logprobs: &[TokenLogprob]| {
            let offset = &mut offsets[place(index) as usize];
            let logprobs = self.logprobs.map(|top| shown(logprobs, top, offset));
            TextChoice { text: text.to_owned(), index: place(index), logprobs, finish_reason: None }
        };
        match event {
            GenerationEvent::Echo { text, logprobs } if self.echo => {
                (0..self.n).map(|index| piece(index, &text, &logprobs)).collect()
            }
            GenerationEvent::Delta { index, text, logprobs } if index < self.n => {
                vec![piece(index, &text, &logprobs)]
            }
            GenerationEvent::Finished { index, reason } if index < self.n => {
                let finish_reason = Some(reason_word(reason, false));
                vec![TextChoice { index: place(index), finish_reason, ..TextChoice::default() }]
            }
            _ => Vec::new(),
        }
    }
}

/// One choice as far as it has come.
#[derive(Default)]
struct Draft {
    text: String,
    logprobs: Vec<TokenLogprob>,
    reason: &'static str,
    echoed: usize,
}

impl Draft {
    fn echo(&mut self, text: &str, logprobs: &[TokenLogprob]) {
        self.text.push_str(text);
        self.logprobs.extend_from_slice(logprobs);
        self.echoed = logprobs.len();
    }

    fn add(&mut self, text: &str, logprobs: Vec<TokenLogprob>) {
        self.text.push_str(text);
        self.logprobs.extend(logprobs);
    }

    /// Log-probability per token of the completion.
    fn mean(&self) -> f64 {
        let own = &self.logprobs[self.echoed..];
        let sum: f64 = own.iter().filter_map(|token| token.logprob).sum();
        if own.is_empty() { f64::NEG_INFINITY } else { sum / own.len() as f64 }
    }
}

/// Log-probabilities in the older form; `offset` is where their first token begins.
fn shown(logprobs: &[TokenLogprob], top: u32, offset: &mut u32) -> TextLogprobs {
    let mut out =
        TextLogprobs { top_logprobs: (top > 0).then(Vec::new), ..TextLogprobs::default() };
    for told in logprobs {
        let name = token_name(&told.token.0);
        if let Some(tops) = &mut out.top_logprobs {
            tops.push(told.logprob.map(|own| {
                let others = told.top.iter().map(|(text, logprob)| (token_name(&text.0), *logprob));
                others.chain([(name.clone(), own)]).collect()
            }));
        }
        out.tokens.push(name);
        out.token_logprobs.push(told.logprob);
        out.text_offset.push(*offset);
        // Characters that begin in this token.
        let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
        *offset += told.token.0.iter().filter(begins).count() as u32;
    }
    out
}

/// A token as text; one that is only a part of a character by its bytes.
fn token_name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let bytes: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}")
        }
    }
}

/// About how many tokens the workers have to read.
pub(crate) fn prompt_tokens(request: &CreateText) -> u64 {
    request.prompt.as_ref().map_or(0, cost)
}

/// How many they may write.
pub(crate) fn most_tokens(request: &CreateText) -> u64 {
    let prompts = match &request.prompt {
        Some(Value::Array(items)) if !items.iter().all(Value::is_number) => items.len() as u64,
        _ => 1,
    };
    let choices = request.best_of.or(request.n).unwrap_or(1).max(1).unsigned_abs();
    let each = request.max_tokens.unwrap_or(DEFAULT_TOKENS).max(0).unsigned_abs();
    each.saturating_mul(choices).saturating_mul(prompts)
}

/// The sampling fields, which are the chat's.
fn as_chat(request: &CreateText) -> CreateCompletion {
    CreateCompletion {
        temperature: request.temperature,
        top_p: request.top_p,
        seed: request.seed,
        stop: request.stop.clone(),
        frequency_penalty: request.frequency_penalty,
        presence_penalty: request.presence_penalty,
        max_tokens: Some(request.max_tokens.unwrap_or(DEFAULT_TOKENS)),
        logit_bias: request.logit_bias.clone(),
        ..CreateCompletion::default()
    }
}

/// A text, several, token ids, or several lists of them.
fn prompts(prompt: Option<&Value>, echo: bool) -> ApiResult<Vec<Prompt>> {
    const EXPECTED: &str =
        "one of a string, array of strings, array of integers or array of arrays";
    let text = |text: &str| Prompt::Text { text: text.to_owned(), echo };
    let items = match prompt {
        None | Some(Value::Null) => return Ok(vec![text("")]),
        Some(Value::String(one)) => return Ok(vec![text(one)]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(ApiError::invalid_type("prompt", EXPECTED, type_words(other))),
    };
    if items.is_empty() {
        let message = "Invalid 'prompt': empty array. Expected an array with minimum length 1.";
        return Err(ApiError::invalid_value("prompt", message));
    }
    let tokens = |items: &[Value], path: &str| -> ApiResult<Prompt> {
        let id = |(index, item): (usize, &Value)| {
            item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                ApiError::invalid_type(format!("{path}[{index}]"), "a token id", type_words(item))
            })
        };
        let ids = items.iter().enumerate().map(id).collect::<ApiResult<_>>()?;
        Ok(Prompt::Tokens { ids, echo })
    };
    if items.iter().all(Value::is_number) {
        return Ok(vec![tokens(items, "prompt")?]);
    }
    if items.len() > MAX_PROMPTS {
        let message = format!(
            "Invalid 'prompt': array too long. Expected at most {MAX_PROMPTS} prompts in one request, \
             but got {}.",
            items.len()
        );
        return Err(ApiError::invalid_value("prompt", message));
    }
    let one = |(index, item): (usize, &Value)| {
        let path = format!("prompt[{index}]");
        match item {
            Value::String(one) => Ok(text(one)),
            Value::Array(ids) => tokens(ids, &path),
            other => Err(ApiError::invalid_type(path, EXPECTED, type_words(other))),
        }
    };
    items.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use domain::engine::TokenText;
    use serde_json::json;

    use super::*;

    #[test]
    fn prompts_come_in_four_forms() {
        let of = |prompt: Value| prompts(Some(&prompt), false).unwrap();
        let text = |text: &str| Prompt::Text { text: text.to_owned(), echo: false };
        let tokens = |ids: &[u32]| Prompt::Tokens { ids: ids.to_vec(), echo: false };
        assert_eq!(of(json!("a")), [text("a")]);
        assert_eq!(of(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(of(json!([1, 2])), [tokens(&[1, 2])]);
        assert_eq!(of(json!([[1], [2, 3]])), [tokens(&[1]), tokens(&[2, 3])]);
        assert_eq!(prompts(None, false).unwrap(), [text("")]);
        for (prompt, param) in [
            (json!(5), "prompt"),
            (json!([]), "prompt"),
            (json!(["a", {}]), "prompt[1]"),
            (json!([1.5]), "prompt[0]"),
            (json!([[1, -2]]), "prompt[0][1]"),
        ] {
            let error = prompts(Some(&prompt), false).unwrap_err().envelope().error;
            assert_eq!(error.param.as_deref(), Some(param), "{prompt}");
        }
    }

    #[test]
    fn offsets_count_characters_and_parts_of_them_are_named_by_bytes() {
        let told = |bytes: &[u8], logprob| TokenLogprob {
            token: TokenText(bytes.to_vec()),
            logprob,
            top: vec![(TokenText(b"x".to_vec()), -0.5)],
        };
        let all = [
            told("Grü".as_bytes(), None),
            told(&[0xe6, 0xbc], Some(-1.0)),
            told(&[0xa2], Some(-2.0)),
            told(b"!", Some(-3.0)),
        ];
        let mut offset = 0;
        let shown = shown(&all, 1, &mut offset);
        assert_eq!(shown.tokens, ["Grü", "bytes:\\xe6\\xbc", "bytes:\\xa2", "!"]);
        assert_eq!(shown.text_offset, [0, 3, 4, 4]);
        assert_eq!(offset, 5);
        let tops = shown.top_logprobs.unwrap();
        assert!(tops[0].is_none());
        assert_eq!(tops[3].as_ref().unwrap()["!"], -3.0);
    }
}
