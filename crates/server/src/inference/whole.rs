//! An answer's events → a whole chat completion.

use domain::engine::{FinishReason, GenerationEvent, TokenLogprob as Told};
use domain::id::random_suffix;

use super::answer::{Heading, Patience, first, next};
use super::broker::Answer;
use crate::error::ApiResult;
use crate::wire::completion::{
    AssistantMessage, Choice, Completion, FunctionCall, Logprobs, TokenLogprob, ToolCall,
    TopLogprob, Usage,
};

/// The whole completion, once every choice has ended.
pub(crate) async fn whole(
    mut answer: Answer,
    heading: Heading,
    patience: Patience,
) -> ApiResult<Completion> {
    let mut collector = Collector::new(heading);
    let mut event = first(&mut answer, patience).await?;
    loop {
        collector.take(&event, &call_id);
        if let GenerationEvent::Done { prompt_tokens, completion_tokens } = event {
            return Ok(collector.end(Usage::new(prompt_tokens, completion_tokens)));
        }
        event = next(&mut answer, patience.idle).await?;
    }
}

/// A completion as far as it has come.
pub(crate) struct Collector {
    heading: Heading,
    choices: Vec<Choice>,
}

impl Collector {
    pub(crate) fn new(heading: Heading) -> Self {
        let choices = (0..heading.n).map(|index| empty_choice(index, heading.logprobs)).collect();
        Self { heading, choices }
    }

    /// Takes an event; a call that begins gets the id that `call_id` gives.
    pub(crate) fn take(&mut self, event: &GenerationEvent, call_id: &dyn Fn() -> String) {
        let index = match event {
            GenerationEvent::Delta { index, .. }
            | GenerationEvent::Call { index, .. }
            | GenerationEvent::Arguments { index, .. }
            | GenerationEvent::Finished { index, .. } => *index as usize,
            _ => return,
        };
        let Some(choice) = self.choices.get_mut(index) else { return };
        match event {
            GenerationEvent::Delta { text, logprobs, .. } => {
                choice.message.content.get_or_insert_default().push_str(text);
                if let Some(all) = &mut choice.logprobs {
                    all.content.get_or_insert_default().extend(logprobs.iter().map(told));
                }
            }
            GenerationEvent::Call { name, .. } => {
                let function = FunctionCall { name: name.clone(), arguments: String::new() };
                let call = ToolCall { id: call_id(), r#type: "function", function };
                choice.message.tool_calls.get_or_insert_default().push(call);
            }
            GenerationEvent::Arguments { call, text, .. } => {
                let calls = choice.message.tool_calls.get_or_insert_default();
                if let Some(call) = calls.get_mut(*call as usize) {
                    call.function.arguments.push_str(text);
                }
            }
            GenerationEvent::Finished { reason, .. } => {
                choice.finish_reason = reason_word(*reason, self.heading.legacy_calls);
            }
            _ => {}
        }
    }

    pub(crate) fn end(self, usage: Usage) -> Completion {
        let Self { heading, mut choices } = self;
        for message in choices.iter_mut().map(|choice| &mut choice.message) {
            let calls = message.tool_calls.as_mut();
            match calls {
                None => drop(message.content.get_or_insert_default()),
                Some(calls) if heading.legacy_calls && !calls.is_empty() => {
                    message.function_call = Some(calls.swap_remove(0).function);
                    message.tool_calls = None;
                }
                Some(_) => {}
            }
        }
        Completion {
            id: heading.id,
            object: "chat.completion",
            created: heading.created,
            model: heading.model,
            choices,
            usage,
            service_tier: "default",
            system_fingerprint: heading.system_fingerprint,
        }
    }
}

fn empty_choice(index: u32, logprobs: bool) -> Choice {
    let message = AssistantMessage {
        role: "assistant",
        content: None,
        refusal: None,
        tool_calls: None,
        function_call: None,
        annotations: Vec::new(),
    };
    let logprobs = logprobs.then(Logprobs::default);
    Choice { index, message, logprobs, finish_reason: "stop" }
}

/// A new id of a call.
pub(crate) fn call_id() -> String {
    format!("call_{}{}", random_suffix(12), random_suffix(12))
}

pub(crate) fn reason_word(reason: FinishReason, legacy_calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Calls if legacy_calls => "function_call",
        FinishReason::Calls => "tool_calls",
    }
}

pub(crate) fn told(told: &Told) -> TokenLogprob {
    let token = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let top = told.top.iter().map(|(text, logprob)| TopLogprob {
        token: token(&text.0),
        logprob: *logprob,
        bytes: text.0.clone(),
    });
    TokenLogprob {
        token: token(&told.token.0),
        logprob: told.logprob.unwrap_or_default(),
        bytes: told.token.0.clone(),
        top_logprobs: top.collect(),
    }
}
