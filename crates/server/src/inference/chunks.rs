//! An answer's events → a stream of chat chunks.

use axum::response::Response;
use domain::engine::GenerationEvent;

use super::answer::{Heading, Patience, first, next};
use super::broker::Answer;
use super::keeper::Keeper;
use super::sse::{Gone, Writer, respond};
use super::whole::{call_id, reason_word, told};
use crate::error::ApiResult;
use crate::wire::completion::{
    CallDelta, ChunkChoice, CompletionChunk, Delta, FunctionDelta, Logprobs, Usage,
};

/// A stream of chunks. Waits for the first event, so that early errors have a status of their own.
pub(crate) async fn stream(
    mut answer: Answer,
    heading: Heading,
    patience: Patience,
    include_usage: bool,
    keeper: Option<Keeper>,
) -> ApiResult<Response> {
    let event = first(&mut answer, patience).await?;
    Ok(respond(move |writer| {
        let chunks = Chunks { heading, include_usage, writer };
        async move { chunks.relay(answer, event, patience, keeper).await }
    }))
}

struct Chunks {
    heading: Heading,
    include_usage: bool,
    writer: Writer,
}

impl Chunks {
    async fn relay(
        &self,
        mut answer: Answer,
        first: GenerationEvent,
        patience: Patience,
        mut keeper: Option<Keeper>,
    ) -> Result<(), Gone> {
        for index in 0..self.heading.n {
            let delta = Delta {
                role: Some("assistant"),
                content: Some(String::new()),
                refusal: Some(serde_json::Value::Null),
                ..Delta::default()
            };
            self.choice(index, delta, None, None).await?;
        }
        let mut event = first;
        loop {
            // The stored completion names its calls as the stream does.
            let id = call_id();
            if let Some(keeper) = &mut keeper {
                keeper.take(&event, &|| id.clone());
            }
            match event {
                GenerationEvent::Delta { index, text, logprobs } => {
                    let told = logprobs.iter().map(told).collect();
                    let logprobs = Logprobs { content: Some(told), refusal: None };
                    let delta = Delta { content: Some(text), ..Delta::default() };
                    let logprobs = self.heading.logprobs.then_some(logprobs);
                    self.choice(index, delta, logprobs, None).await?;
                }
                GenerationEvent::Call { index, call, name } => {
                    let delta = self.call(call, Some((id, name)), String::new());
                    self.choice(index, delta, None, None).await?;
                }
                GenerationEvent::Arguments { index, call, text } => {
                    self.choice(index, self.call(call, None, text), None, None).await?;
                }
                GenerationEvent::Finished { index, reason } => {
                    let word = reason_word(reason, self.heading.legacy_calls);
                    self.choice(index, Delta::default(), None, Some(word)).await?;
                }
                GenerationEvent::Done { prompt_tokens, completion_tokens } => {
                    let usage = Usage::new(prompt_tokens, completion_tokens);
                    if let Some(keeper) = keeper {
                        keeper.end(usage).await;
                    }
                    return self.end(usage).await;
                }
                _ => {}
            }
            match next(&mut answer, patience.idle).await {
                Ok(following) => event = following,
                Err(error) => return self.writer.fail(&error).await,
            }
        }
    }

    fn call(&self, call: u32, begins: Option<(String, String)>, arguments: String) -> Delta {
        let (id, name) = begins.unzip();
        let function = FunctionDelta { name, arguments };
        if self.heading.legacy_calls {
            return Delta { function_call: Some(function), ..Delta::default() };
        }
        let r#type = id.is_some().then_some("function");
        let call = CallDelta { index: call, id, r#type, function };
        Delta { tool_calls: Some(vec![call]), ..Delta::default() }
    }

    async fn choice(
        &self,
        index: u32,
        delta: Delta,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
    ) -> Result<(), Gone> {
        let choice = ChunkChoice { index, delta, logprobs, finish_reason };
        self.chunk(vec![choice], self.include_usage.then_some(None)).await
    }

    async fn end(&self, usage: Usage) -> Result<(), Gone> {
        if self.include_usage {
            self.chunk(Vec::new(), Some(Some(usage))).await?;
        }
        self.writer.done().await
    }

    async fn chunk(
        &self,
        choices: Vec<ChunkChoice>,
        usage: Option<Option<Usage>>,
    ) -> Result<(), Gone> {
        let heading = self.heading.clone();
        let chunk = CompletionChunk {
            id: heading.id,
            object: "chat.completion.chunk",
            created: heading.created,
            model: heading.model,
            choices,
            service_tier: "default",
            system_fingerprint: heading.system_fingerprint,
            usage,
        };
        self.writer.json(&chunk).await
    }
}
