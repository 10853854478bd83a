//! Answers to chat requests, token by token.
//!
//! One turn is one token, or one piece of the prompt; answers of one model take their tokens together
//! ([`shared_turn`]). The choices of a request come one after the
//! other from one reading of the prompt, so a request holds at most two caches, whatever its `n`.
//! Who gets the next turn is the scheduler's business; how to draw a token is `model::Sampler`'s.
//!
//! A request for a reward model's score is a prompt too: the whole conversation, with the score at its end in
//! place of choices. So is one for a text's embedding.

mod adapters;
mod calls;
mod choice;
mod form;
mod logprobs;
mod prompt;
mod stop;

use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use dataset::ChatTokenizer;
use domain::engine::{GenerateRequest, GenerationEvent, GenerationFailure, Question, TokenLogprob};
use model::{Adapter, Decoder, KvCache};

pub use self::adapters::AdapterCache;
use self::choice::{Choice, Rules};
use self::form::Grammars;
pub use self::form::Words;
use self::logprobs::of_token;
use self::prompt::{Aim, Wanted};
use crate::seed::{Purpose, derive};

/// Prompt tokens read in one turn: what another answer may have to wait for.
const PROMPT_TOKENS_PER_TURN: usize = 256;
/// The same where every token's log-probability is told: each takes a row of the vocabulary.
const PROMPT_ROWS_PER_TURN: usize = 64;
/// Room for new tokens in a fresh cache; it doubles when it is full.
const FIRST_ROOM: usize = 256;

/// One request that is being answered.
pub struct Generation<'a> {
    id: String,
    seed: u64,
    rules: Rules<'a>,
    adapter: Option<Rc<Adapter>>,
    aim: Aim,
    /// Where an embedding is asked for: the sum of the states read so far.
    states: Vec<f64>,
    prompt: Vec<i64>,
    /// The text to be told before the answer, and how many tokens of the prompt are before it.
    echo: Option<(String, usize)>,
    /// The log-probabilities of that text.
    echoed: Vec<TokenLogprob>,
    /// The prompt's; made in the first turn, so that a request that waits holds none, and taken by
    /// the last choice.
    cache: Option<KvCache>,
    /// After the whole prompt (or, until then, its last token read), one per token of the vocabulary.
    prompt_logits: Vec<f32>,
    has_read_prompt: bool,
    choice: Option<Choice<'a>>,
    choices_begun: u32,
    completion_tokens: u32,
}

impl<'a> Generation<'a> {
    /// Renders and tokenises the messages.
    ///
    /// # Errors
    /// Messages that the chat template refuses, a prompt that leaves no room in the context, a form that cannot
    /// be held to, and a model that does not do what is asked for.
    pub fn new(
        request: GenerateRequest,
        adapter: Option<Rc<Adapter>>,
        decoder: &Decoder,
        tokenizer: &'a ChatTokenizer,
        words: Words,
    ) -> Result<Self, GenerationFailure> {
        let GenerateRequest { id, question, .. } = request;
        let Question { prompt, sampling, form, calls } = question;
        prompt::check_kind(&prompt, adapter.as_deref())?;
        let call_form = tokenizer.call_form();
        let grammars = Grammars::new(&form, &calls, prompt::tools(&prompt), call_form)
            .map_err(|error| failure("invalid_form", error.to_string()))?;
        let lead = if grammars.must_call { grammars.lead() } else { "" };
        let Wanted { ids, echo, aim, stops } = prompt::read(prompt, lead, decoder, tokenizer)?;
        let taken = adapter.as_ref().map_or(0, |adapter| adapter.virtual_tokens());
        let context = decoder.spec().max_position_embeddings.saturating_sub(taken);
        let limit = prompt::room(ids.len(), context, &sampling, aim)?;
        let before = ids.last().and_then(|id| u32::try_from(*id).ok());
        // The lead belongs to the answer, so no text before it gives it context.
        let before = before.filter(|_| lead.is_empty());
        Ok(Self {
            id,
            seed: sampling.seed.unwrap_or_else(unpredictable),
            rules: Rules { sampling, tokenizer, stops, grammars, words, before, limit },
            adapter,
            aim,
            states: Vec::new(),
            cache: None,
            prompt: ids,
            echo,
            echoed: Vec::new(),
            prompt_logits: Vec::new(),
            has_read_prompt: false,
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
        if !self.has_read_prompt {
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
        let room = self.prompt.len() + self.rules.limit.min(FIRST_ROOM);
        let adapter = self.adapter.clone();
        let adapter = adapter.as_deref();
        let tells_rows = self.echo.is_some() && self.rules.sampling.logprobs.is_some();
        let cache = self.cache.get_or_insert_with(|| KvCache::new(decoder, room, adapter));
        let from = cache.len();
        let most = if tells_rows { PROMPT_ROWS_PER_TURN } else { PROMPT_TOKENS_PER_TURN };
        let upto = self.prompt.len().min(from + most);
        let (part, is_last) = (&self.prompt[from..upto], upto == self.prompt.len());
        if let Aim::Embedding { from: first } = self.aim {
            let skipped = first.saturating_sub(from).min(part.len());
            let sum = decoder.extend_summed(cache, part, skipped, adapter);
            self.states.resize(sum.len(), 0.0);
            self.states.iter_mut().zip(sum).for_each(|(state, more)| *state += more);
            return if is_last { self.tell_embedding() } else { Vec::new() };
        }
        if self.aim == Aim::Score && is_last {
            let score = adapter.and_then(|adapter| decoder.extend_scored(cache, part, adapter));
            return self.tell_score(score);
        }
        if tells_rows {
            let rows = decoder.extend_rows(cache, part, adapter);
            self.note_rows(from, rows);
        } else {
            self.prompt_logits = values(&decoder.extend(cache, part, adapter));
        }
        if !is_last {
            return Vec::new();
        }
        self.has_read_prompt = true;
        let mut events = vec![GenerationEvent::Started { prompt_tokens: self.prompt.len() as u32 }];
        if let Some((text, _)) = self.echo.take() {
            let logprobs = std::mem::take(&mut self.echoed);
            events.push(GenerationEvent::Echo { text, logprobs });
        }
        events
    }

    /// The log-probabilities of the prompt's tokens `from…`, given the logits after each.
    fn note_rows(&mut self, from: usize, rows: Vec<Vec<f32>>) {
        let top = self.rules.sampling.logprobs.unwrap_or_default() as usize;
        let skipped = self.echo.as_ref().map_or(0, |(_, skipped)| *skipped);
        for (at, row) in (from..).zip(rows) {
            if at >= skipped {
                let token = u32::try_from(self.prompt[at]).unwrap_or_default();
                // Nothing of the text comes before its first token.
                let entry = if at == skipped || self.prompt_logits.is_empty() {
                    logprobs::unknown(self.rules.tokenizer, token)
                } else {
                    of_token(self.rules.tokenizer, &self.prompt_logits, token, top)
                };
                self.echoed.push(entry);
            }
            self.prompt_logits = row;
        }
    }

    fn tell_score(&self, score: Option<f64>) -> Vec<GenerationEvent> {
        match score.filter(|score| score.is_finite()) {
            Some(score) => self.tell(GenerationEvent::Scored { score }),
            None => vec![not_finite("score")],
        }
    }

    fn tell_embedding(&self) -> Vec<GenerationEvent> {
        let length = self.states.iter().map(|state| state * state).sum::<f64>().sqrt();
        if !length.is_normal() {
            return vec![not_finite("embedding")];
        }
        let embedding = self.states.iter().map(|state| (state / length) as f32).collect();
        self.tell(GenerationEvent::Embedded { embedding })
    }

    /// The whole answer of a prompt that nothing follows.
    fn tell(&self, result: GenerationEvent) -> Vec<GenerationEvent> {
        let prompt_tokens = self.prompt.len() as u32;
        let done = GenerationEvent::Done { prompt_tokens, completion_tokens: 0 };
        vec![GenerationEvent::Started { prompt_tokens }, result, done]
    }

    fn next_choice(&mut self) -> Choice<'a> {
        let index = self.choices_begun;
        self.choices_begun += 1;
        let seed = derive(self.seed, Purpose::Sampling, u64::from(index), 0);
        Choice::new(index, seed, &self.rules)
    }

    /// The token to read next, and the cache that it goes to, which has room for it.
    fn next_input(&mut self, decoder: &Decoder) -> (&mut KvCache, i64) {
        let choice = self.choice.as_mut().expect("a choice is in hand");
        if choice.cache.is_none() {
            // The last choice may write behind the prompt itself.
            choice.cache = match &self.cache {
                Some(cache) if self.choices_begun < self.rules.sampling.n => {
                    Some(cache.with_capacity(decoder, cache.capacity()))
                }
                _ => self.cache.take(),
            };
        }
        let cache = choice.cache.as_mut().expect("the prompt was read before the first token");
        if cache.len() == cache.capacity() {
            let most = self.prompt.len() + self.rules.limit;
            *cache = cache.with_capacity(decoder, most.min(2 * cache.capacity()));
        }
        (cache, choice.last.expect("a token was drawn before"))
    }

    /// Draws the choice's next token from these logits.
    fn accept(&mut self, logits: &[f32]) -> Vec<GenerationEvent> {
        let mut choice = self.choice.take().expect("a choice is in hand");
        let mut events = Vec::new();
        if !choice.draw(logits, &self.rules, &mut events) {
            self.choice = Some(choice);
            return events;
        }
        self.completion_tokens += choice.tokens as u32;
        let has_failed = matches!(events.last(), Some(GenerationEvent::Failed { .. }));
        if self.choices_begun >= self.rules.sampling.n.max(1) && !has_failed {
            events.push(GenerationEvent::Done {
                prompt_tokens: self.prompt.len() as u32,
                completion_tokens: self.completion_tokens,
            });
        }
        events
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

fn not_finite(what: &str) -> GenerationEvent {
    GenerationEvent::Failed { failure: internal_error(format!("the {what} is not finite")) }
}

fn internal_error(message: String) -> GenerationFailure {
    failure("internal_error", message)
}
