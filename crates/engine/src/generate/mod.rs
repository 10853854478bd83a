//! Answers to chat requests, token by token.
//!
//! One turn is one token, or one piece of the prompt. The choices of a request come one after the
//! other from one reading of the prompt, so a request holds at most two caches, whatever its `n`.
//! Who gets the next turn is the scheduler's business; how to draw a token is `model::Sampler`'s.

mod adapters;
mod stop;

use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use dataset::{ChatTokenizer, TextStream};
use domain::engine::{FinishReason, GenerateRequest, GenerationEvent, GenerationFailure, Sampling};
use model::{Adapter, Decoder, KvCache, Sampler, SamplerOptions};

pub use self::adapters::AdapterCache;
use self::stop::{Passed, StopStrings};
use crate::seed::{Purpose, derive};

/// Prompt tokens read in one turn: what another answer may have to wait for.
const PROMPT_TOKENS_PER_TURN: usize = 256;
/// Room for new tokens in a fresh cache; it doubles when it is full.
const FIRST_ROOM: usize = 256;

/// One chat request that is being answered.
pub struct Generation<'a> {
    id: String,
    sampling: Sampling,
    seed: u64,
    tokenizer: &'a ChatTokenizer,
    adapter: Option<Rc<Adapter>>,
    prompt: Vec<i64>,
    /// Tokens that a choice may have at most; with the prompt never above the context length.
    limit: usize,
    /// The prompt's; made in the first turn, so that a request that waits holds none, and taken by
    /// the last choice.
    cache: Option<KvCache>,
    /// After the whole prompt, one per token of the vocabulary.
    prompt_logits: Vec<f32>,
    choice: Option<Choice<'a>>,
    choices_begun: u32,
    completion_tokens: u32,
}

/// One of the completions of a request.
struct Choice<'a> {
    index: u32,
    /// None until a token after the prompt is read: one token may be all that is wanted.
    cache: Option<KvCache>,
    /// Drawn and sent, but not yet read by the decoder.
    last: Option<i64>,
    sampler: Sampler,
    text: TextStream<'a>,
    stops: StopStrings,
    tokens: usize,
}

impl<'a> Generation<'a> {
    /// Renders and tokenises the messages.
    ///
    /// # Errors
    /// Messages that the chat template refuses, and a prompt that leaves no room in the context.
    pub fn new(
        request: GenerateRequest,
        adapter: Option<Rc<Adapter>>,
        decoder: &Decoder,
        tokenizer: &'a ChatTokenizer,
    ) -> Result<Self, GenerationFailure> {
        let GenerateRequest { id, messages, tools, sampling, .. } = request;
        let ids = tokenizer
            .encode_prompt(&messages, &tools)
            .map_err(|error| failure("invalid_messages", error.to_string()))?;
        let prompt: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let context = decoder.spec().max_position_embeddings;
        if prompt.is_empty() {
            return Err(failure("invalid_messages", "The messages hold no text.".to_owned()));
        }
        if prompt.len() >= context {
            return Err(failure(
                "context_length_exceeded",
                format!(
                    "This model's maximum context length is {context} tokens. However, your \
                     messages resulted in {} tokens. Please reduce the length of the messages.",
                    prompt.len()
                ),
            ));
        }
        let wanted = sampling.max_tokens.map_or(usize::MAX, |tokens| tokens as usize);
        let limit = wanted.min(context - prompt.len());
        Ok(Self {
            id,
            seed: sampling.seed.unwrap_or_else(unpredictable),
            sampling,
            tokenizer,
            adapter,
            cache: None,
            prompt,
            limit,
            prompt_logits: Vec::new(),
            choice: None,
            choices_begun: 0,
            completion_tokens: 0,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Reads a piece of the prompt or makes one token. After [`GenerationEvent::Done`] nothing is
    /// left.
    pub fn turn(&mut self, decoder: &Decoder) -> Vec<GenerationEvent> {
        if self.prompt_logits.is_empty() {
            return self.read_prompt(decoder);
        }
        let mut events = Vec::new();
        let mut choice = match self.choice.take() {
            Some(choice) => choice,
            None => self.next_choice(),
        };
        if !self.next_token(&mut choice, decoder, &mut events) {
            self.choice = Some(choice);
        } else if self.choices_begun >= self.sampling.n.max(1) {
            events.push(GenerationEvent::Done {
                prompt_tokens: self.prompt.len() as u32,
                completion_tokens: self.completion_tokens,
            });
        }
        events
    }

    fn read_prompt(&mut self, decoder: &Decoder) -> Vec<GenerationEvent> {
        let room = self.prompt.len() + self.limit.min(FIRST_ROOM);
        let cache = self.cache.get_or_insert_with(|| KvCache::new(decoder, room));
        let from = cache.len();
        let upto = self.prompt.len().min(from + PROMPT_TOKENS_PER_TURN);
        let logits = decoder.extend(cache, &self.prompt[from..upto], self.adapter.as_deref());
        if upto < self.prompt.len() {
            return Vec::new();
        }
        self.prompt_logits = values(&logits);
        vec![GenerationEvent::Started { prompt_tokens: self.prompt.len() as u32 }]
    }

    fn next_choice(&mut self) -> Choice<'a> {
        let index = self.choices_begun;
        self.choices_begun += 1;
        Choice {
            index,
            cache: None,
            last: None,
            sampler: Sampler::new(SamplerOptions {
                temperature: self.sampling.temperature,
                top_p: self.sampling.top_p,
                seed: derive(self.seed, Purpose::Sampling, u64::from(index), 0),
                frequency_penalty: self.sampling.frequency_penalty,
                presence_penalty: self.sampling.presence_penalty,
            }),
            text: self.tokenizer.text_stream(),
            stops: StopStrings::new(&self.sampling.stop),
            tokens: 0,
        }
    }

    /// One more token of a choice; true when that was its last.
    fn next_token(
        &mut self,
        choice: &mut Choice<'a>,
        decoder: &Decoder,
        events: &mut Vec<GenerationEvent>,
    ) -> bool {
        if choice.tokens >= self.limit {
            choice.finish(FinishReason::Length, events);
            return true;
        }
        let token = match choice.last {
            None => choice.sampler.sample(&self.prompt_logits),
            Some(last) => {
                let logits = self.read_token(choice, last, decoder);
                choice.sampler.sample(&logits)
            }
        };
        choice.tokens += 1;
        choice.last = Some(i64::from(token));
        self.completion_tokens += 1;
        if self.tokenizer.stop_ids().contains(&token) {
            choice.finish(FinishReason::Stop, events);
            return true;
        }
        if choice.text.push(token).is_some_and(|piece| choice.say(&piece, events)) {
            events.push(GenerationEvent::Finished {
                index: choice.index,
                reason: FinishReason::Stop,
            });
            return true;
        }
        if choice.tokens >= self.limit {
            choice.finish(FinishReason::Length, events);
            return true;
        }
        false
    }

    /// Logits after a token of the choice, in a cache with room for it.
    fn read_token(&mut self, choice: &mut Choice<'a>, token: i64, decoder: &Decoder) -> Vec<f32> {
        if choice.cache.is_none() {
            // The last choice may write behind the prompt itself.
            choice.cache = match &self.cache {
                Some(cache) if self.choices_begun < self.sampling.n => {
                    Some(cache.with_capacity(decoder, cache.capacity()))
                }
                _ => self.cache.take(),
            };
        }
        let cache = choice.cache.as_mut().expect("the prompt was read before the first token");
        if cache.len() == cache.capacity() {
            let most = self.prompt.len() + self.limit;
            *cache = cache.with_capacity(decoder, most.min(2 * cache.capacity()));
        }
        values(&decoder.extend(cache, &[token], self.adapter.as_deref()))
    }
}

impl Choice<'_> {
    /// Passes text on, as far as no stop string may begin in it; true when one is complete.
    fn say(&mut self, piece: &str, events: &mut Vec<GenerationEvent>) -> bool {
        let (text, stopped) = match self.stops.push(piece) {
            Passed::Text(text) => (text, false),
            Passed::Stopped(text) => (text, true),
        };
        self.deliver(text, events);
        stopped
    }

    /// Ends without a stop string, unless the last bytes of text complete one.
    fn finish(&mut self, reason: FinishReason, events: &mut Vec<GenerationEvent>) {
        let rest = self.text.finish();
        let stopped = rest.is_some_and(|rest| self.say(&rest, events));
        if !stopped {
            let held = self.stops.finish();
            self.deliver(held, events);
        }
        let reason = if stopped { FinishReason::Stop } else { reason };
        events.push(GenerationEvent::Finished { index: self.index, reason });
    }

    fn deliver(&self, text: String, events: &mut Vec<GenerationEvent>) {
        if !text.is_empty() {
            events.push(GenerationEvent::Delta { index: self.index, text });
        }
    }
}

fn values(logits: &tch::Tensor) -> Vec<f32> {
    Vec::try_from(logits).expect("logits are a flat f32 tensor")
}

/// A seed for a request that names none.
fn unpredictable() -> u64 {
    RandomState::new().hash_one("sampling")
}

fn failure(code: &str, message: String) -> GenerationFailure {
    GenerationFailure { code: code.to_owned(), message }
}

fn internal_error(message: String) -> GenerationFailure {
    failure("internal_error", message)
}
