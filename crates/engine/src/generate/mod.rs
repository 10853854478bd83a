//! Answers to chat requests, token by token.
//!
//! One turn is one token, or one piece of the prompt; answers of one model take their tokens together
//! ([`shared_turn`]). The choices of a request come one after the
//! other from one reading of the prompt, so a request holds at most two caches, whatever its `n`.
//! Who gets the next turn is the scheduler's business; how to draw a token is `model::Sampler`'s.
//!
//! A request for a reward model's score is a prompt too: the whole conversation, with the score at its end in
//! place of choices.

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

const SCORES_ONLY: &str = "This is a reward model: it does not answer, it scores whole conversations. \
                           Use POST /v1/fine_tuning/score.";
const NO_SCORES: &str = "This model does not score: only the result of a job with 'loss_type': 'reward' \
                         does. Use POST /v1/chat/completions.";

/// One chat request that is being answered.
pub struct Generation<'a> {
    id: String,
    sampling: Sampling,
    seed: u64,
    tokenizer: &'a ChatTokenizer,
    adapter: Option<Rc<Adapter>>,
    /// A score is asked for.
    scores: bool,
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
    /// Messages that the chat template refuses, a prompt that leaves no room in the context, and a model that
    /// does not do what is asked for.
    pub fn new(
        request: GenerateRequest,
        adapter: Option<Rc<Adapter>>,
        decoder: &Decoder,
        tokenizer: &'a ChatTokenizer,
    ) -> Result<Self, GenerationFailure> {
        let GenerateRequest { id, messages, tools, sampling, score: scores, .. } = request;
        let is_reward = adapter.as_ref().is_some_and(|adapter| adapter.is_reward());
        if is_reward != scores {
            let message = if is_reward { SCORES_ONLY } else { NO_SCORES };
            return Err(failure("wrong_model", message.to_owned()));
        }
        let ids = if scores {
            tokenizer.encode_conversation(&messages, &tools)
        } else {
            tokenizer.encode_prompt(&messages, &tools)
        };
        let ids = ids.map_err(|error| failure("invalid_messages", error.to_string()))?;
        let prompt: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let taken = adapter.as_ref().map_or(0, |adapter| adapter.virtual_tokens());
        let context = decoder.spec().max_position_embeddings.saturating_sub(taken);
        if prompt.is_empty() {
            return Err(failure("invalid_messages", "The messages hold no text.".to_owned()));
        }
        // A token of the answer needs room too.
        if prompt.len() + usize::from(!scores) > context {
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
            scores,
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
        if self.reads_tokens() {
            let adapter = self.adapter.clone();
            let (cache, token) = self.next_input(decoder);
            let logits = decoder.extend(cache, &[token], adapter.as_deref());
            return self.accept(&values(&logits));
        }
        self.choice = Some(self.next_choice());
        let logits = std::mem::take(&mut self.prompt_logits);
        let events = self.accept(&logits);
        self.prompt_logits = logits;
        events
    }

    /// Whether the next turn lets the decoder read one token, so that it may be shared with others.
    pub fn reads_tokens(&self) -> bool {
        self.choice.as_ref().is_some_and(|choice| choice.last.is_some())
    }

    /// Whether both go through the same weights.
    pub fn shares_weights(&self, other: &Self) -> bool {
        let changed = |adapter: &Option<Rc<Adapter>>| {
            adapter.clone().filter(|adapter| adapter.changes_weights())
        };
        match (changed(&self.adapter), changed(&other.adapter)) {
            (None, None) => true,
            (Some(a), Some(b)) => Rc::ptr_eq(&a, &b),
            _ => false,
        }
    }

    fn read_prompt(&mut self, decoder: &Decoder) -> Vec<GenerationEvent> {
        let room = self.prompt.len() + self.limit.min(FIRST_ROOM);
        let adapter = self.adapter.as_deref();
        let cache = self.cache.get_or_insert_with(|| KvCache::new(decoder, room, adapter));
        let from = cache.len();
        let upto = self.prompt.len().min(from + PROMPT_TOKENS_PER_TURN);
        let (part, is_last) = (&self.prompt[from..upto], upto == self.prompt.len());
        if self.scores && is_last {
            let score = adapter.and_then(|adapter| decoder.extend_scored(cache, part, adapter));
            return self.tell_score(score);
        }
        let logits = decoder.extend(cache, part, adapter);
        if !is_last {
            return Vec::new();
        }
        self.prompt_logits = values(&logits);
        vec![GenerationEvent::Started { prompt_tokens: self.prompt.len() as u32 }]
    }

    fn tell_score(&self, score: Option<f64>) -> Vec<GenerationEvent> {
        let Some(score) = score.filter(|score| score.is_finite()) else {
            let failure = internal_error("the score is not a finite number".to_owned());
            return vec![GenerationEvent::Failed { failure }];
        };
        let prompt_tokens = self.prompt.len() as u32;
        vec![
            GenerationEvent::Started { prompt_tokens },
            GenerationEvent::Scored { score },
            GenerationEvent::Done { prompt_tokens, completion_tokens: 0 },
        ]
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

    /// The token to read next, and the cache that it goes to, which has room for it.
    fn next_input(&mut self, decoder: &Decoder) -> (&mut KvCache, i64) {
        let choice = self.choice.as_mut().expect("a choice is in hand");
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
        (cache, choice.last.expect("a token was drawn before"))
    }

    /// Draws the choice's next token from these logits.
    fn accept(&mut self, logits: &[f32]) -> Vec<GenerationEvent> {
        let mut choice = self.choice.take().expect("a choice is in hand");
        let mut events = Vec::new();
        if !self.draw(&mut choice, logits, &mut events) {
            self.choice = Some(choice);
        } else if self.choices_begun >= self.sampling.n.max(1) {
            events.push(GenerationEvent::Done {
                prompt_tokens: self.prompt.len() as u32,
                completion_tokens: self.completion_tokens,
            });
        }
        events
    }

    /// One more token of a choice; true when that was its last.
    fn draw(
        &mut self,
        choice: &mut Choice<'a>,
        logits: &[f32],
        events: &mut Vec<GenerationEvent>,
    ) -> bool {
        if choice.tokens >= self.limit {
            choice.finish(FinishReason::Length, events);
            return true;
        }
        let token = choice.sampler.sample(logits);
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
}

/// One token for each of several answers that [share their weights](Generation::shares_weights) and
/// [read tokens](Generation::reads_tokens), in one pass of the decoder: the weights, which are most of
/// the work, are walked once. What each has to tell, in order.
pub fn shared_turn(
    generations: &mut [Generation<'_>],
    decoder: &Decoder,
) -> Vec<Vec<GenerationEvent>> {
    let adapter = generations.first().and_then(|first| first.adapter.clone());
    let mut inputs: Vec<_> =
        generations.iter_mut().map(|generation| generation.next_input(decoder)).collect();
    let logits = decoder.extend_each(&mut inputs, adapter.as_deref());
    generations.iter_mut().zip(logits).map(|(generation, row)| generation.accept(&row)).collect()
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
