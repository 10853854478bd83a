//! One of the completions of a request: from logits to tokens, to text, to what is told about it.

use std::rc::Rc;

use dataset::{ChatTokenizer, TextStream};
use domain::engine::{FinishReason, GenerationEvent, GenerationFailure, Sampling};
use grammar::Mask;
use model::{KvCache, Sampler, SamplerOptions};

use super::calls::{CallReader, Said};
use super::form::{Form, Grammars, Words};
use super::logprobs::{Pending, of_token};
use super::stop::{Passed, StopStrings};

const NOTHING_FITS: &str = "No token of this model's vocabulary goes on with an answer of the demanded form. \
                            Is there a value that satisfies the schema?";

/// What all choices of a request share.
pub struct Rules<'a> {
    pub sampling: Sampling,
    pub tokenizer: &'a ChatTokenizer,
    /// Tokens that end an answer.
    pub stops: Vec<u32>,
    pub grammars: Grammars,
    pub words: Words,
    /// The last token of the prompt.
    pub before: Option<u32>,
    /// Tokens that a choice may have at most.
    pub limit: usize,
}

pub struct Choice<'a> {
    pub index: u32,
    /// None until a token after the prompt is read: one token may be all that is wanted.
    pub cache: Option<KvCache>,
    /// Drawn and sent, but not yet read by the decoder.
    pub last: Option<i64>,
    pub tokens: usize,
    sampler: Sampler,
    text: TextStream<'a>,
    stops: StopStrings,
    calls: Option<CallReader>,
    form: Form,
    logprobs: Option<Pending>,
    /// Bytes of text that no stop string can take back.
    passed: usize,
}

impl<'a> Choice<'a> {
    pub fn new(index: u32, seed: u64, rules: &Rules<'a>) -> Self {
        let Rules { sampling, grammars, .. } = rules;
        let form = if grammars.must_call {
            Form::begin(grammars.call.as_ref(), true)
        } else {
            Form::begin(grammars.content.as_ref(), false)
        };
        let mut calls =
            grammars.calls.clone().map(|form| CallReader::new(form, grammars.names.clone()));
        if let Some(reader) = calls.as_mut().filter(|_| grammars.must_call) {
            // The prompt ends with the mark of a call, if calls have one.
            let has_mark = grammars.calls.as_ref().is_some_and(|form| !form.open.is_empty());
            if has_mark {
                let _ = reader.open();
                let _ = reader.entered();
            }
        }
        Self {
            index,
            cache: None,
            last: None,
            tokens: 0,
            sampler: Sampler::new(SamplerOptions {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                seed,
                frequency_penalty: sampling.frequency_penalty,
                presence_penalty: sampling.presence_penalty,
                logit_bias: sampling.logit_bias.clone(),
            }),
            text: rules.tokenizer.text_stream_after(rules.before.as_slice()),
            stops: StopStrings::new(&sampling.stop),
            calls,
            form,
            logprobs: sampling.logprobs.map(Pending::new),
            passed: 0,
        }
    }

    /// One more token; true when that was the last.
    pub fn draw(
        &mut self,
        logits: &[f32],
        rules: &Rules<'a>,
        events: &mut Vec<GenerationEvent>,
    ) -> bool {
        if self.tokens >= rules.limit {
            self.finish(FinishReason::Length, events);
            return true;
        }
        let mask = self.mask(rules);
        let Some(token) = self.sampler.sample(logits, mask.as_deref().map(Mask::words)) else {
            let failure = GenerationFailure {
                code: "invalid_form".to_owned(),
                message: NOTHING_FITS.to_owned(),
            };
            events.push(GenerationEvent::Failed { failure });
            return true;
        };
        self.tokens += 1;
        self.last = Some(i64::from(token));
        if rules.stops.contains(&token) {
            self.finish(FinishReason::Stop, events);
            return true;
        }
        let bytes = rules.tokenizer.token_bytes(token);
        self.note(logits, token, bytes.as_deref(), rules.tokenizer);
        self.form.advance(bytes.as_deref());
        self.open_call(token, rules, events);
        if self.text.push(token).is_some_and(|piece| self.say(&piece, events)) {
            self.end(FinishReason::Stop, events);
            return true;
        }
        let reason = match () {
            () if self.is_complete(rules) => FinishReason::Stop,
            () if self.tokens >= rules.limit => FinishReason::Length,
            () => return false,
        };
        self.finish(reason, events);
        true
    }

    fn mask(&mut self, rules: &Rules<'a>) -> Option<Rc<Mask>> {
        // The mark of a call may stand at the beginning, where it is a token of its own.
        let mark = rules.grammars.calls.as_ref().and_then(|form| form.open_token);
        let mark = mark.filter(|_| self.tokens == 0 && !self.form.is_call);
        self.form.mask(&rules.words, rules.tokenizer, &rules.stops, mark)
    }

    fn note(&mut self, logits: &[f32], token: u32, bytes: Option<&[u8]>, of: &ChatTokenizer) {
        if let (Some(pending), Some(bytes)) = (&mut self.logprobs, bytes) {
            pending.push(of_token(of, logits, token, pending.top), bytes.len());
        }
    }

    fn open_call(&mut self, token: u32, rules: &Rules<'a>, events: &mut Vec<GenerationEvent>) {
        let mark = rules.grammars.calls.as_ref().and_then(|form| form.open_token);
        if mark == Some(token)
            && let Some(reader) = &mut self.calls
        {
            let said = reader.open();
            self.tell(said, events);
        }
    }

    /// Whether nothing may follow; and what must follow what has just come.
    fn is_complete(&mut self, rules: &Rules<'a>) -> bool {
        let grammars = &rules.grammars;
        if let Some(reader) = &mut self.calls {
            if let Some(text) = reader.entered() {
                self.form.enter_call(grammars.call.as_ref(), text);
                return false;
            }
            // What a model says after a call that it had to make is seldom worth its tokens.
            let is_last = !grammars.parallel || (grammars.must_call && !grammars.lists());
            if reader.complete_calls() > 0 && is_last {
                return true;
            }
        }
        if !self.form.is_over() {
            return false;
        }
        let may_go_on = grammars.calls.as_ref().is_some_and(|form| !form.open.is_empty());
        if self.form.is_call && may_go_on {
            self.form.free();
            return false;
        }
        true
    }

    /// Passes text on, as far as no stop string may begin in it; true when one is complete.
    fn say(&mut self, piece: &str, events: &mut Vec<GenerationEvent>) -> bool {
        let (text, stopped) = match self.stops.push(piece) {
            Passed::Text(text) => (text, false),
            Passed::Stopped(text) => (text, true),
        };
        self.pass(text, events);
        stopped
    }

    fn pass(&mut self, text: String, events: &mut Vec<GenerationEvent>) {
        if text.is_empty() {
            return;
        }
        self.passed += text.len();
        let said = match &mut self.calls {
            Some(reader) => reader.push(&text),
            None => vec![Said::Text(text)],
        };
        self.tell(said, events);
    }

    fn tell(&mut self, said: Vec<Said>, events: &mut Vec<GenerationEvent>) {
        let index = self.index;
        for said in said {
            let upto =
                self.passed - self.calls.as_ref().map_or(0, CallReader::held).min(self.passed);
            let logprobs = self.logprobs.as_mut().map(|pending| pending.take(upto));
            let logprobs = logprobs.unwrap_or_default();
            // Tokens of calls have no place where they could be shown.
            events.push(match said {
                Said::Text(text) => GenerationEvent::Delta { index, text, logprobs },
                Said::Call { call, name } => GenerationEvent::Call { index, call, name },
                Said::Arguments { call, text } => GenerationEvent::Arguments { index, call, text },
            });
        }
    }

    /// Ends without a stop string, unless the last bytes of text complete one.
    fn finish(&mut self, reason: FinishReason, events: &mut Vec<GenerationEvent>) {
        let rest = self.text.finish();
        let stopped = rest.is_some_and(|rest| self.say(&rest, events));
        if stopped {
            return self.end(FinishReason::Stop, events);
        }
        let held = self.stops.finish();
        self.pass(held, events);
        self.end(reason, events);
    }

    fn end(&mut self, reason: FinishReason, events: &mut Vec<GenerationEvent>) {
        let said = self.calls.as_mut().map(CallReader::finish).unwrap_or_default();
        self.tell(said, events);
        let has_calls = self.calls.as_ref().is_some_and(|reader| reader.calls() > 0);
        let reason = match reason {
            FinishReason::Stop if has_calls => FinishReason::Calls,
            other => other,
        };
        events.push(GenerationEvent::Finished { index: self.index, reason });
    }
}
