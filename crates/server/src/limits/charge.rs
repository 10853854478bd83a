//! The tokens of one request: taken before it by its size, corrected after it by what its answers were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use domain::ProjectId;
use domain::engine::GenerationEvent;
use serde_json::Value;

use super::{Limits, Refusal};

/// Bytes of text that make about one token, as OpenAI's own limits estimate them.
const BYTES_PER_TOKEN: u64 = 4;

/// What a request has taken. When the last of its answers is gone, the rest goes back.
pub(crate) struct Charge {
    limits: Arc<Limits>,
    project: ProjectId,
    taken: u64,
    used: AtomicU64,
}

impl Charge {
    pub(crate) fn take(
        limits: &Arc<Limits>,
        project: &ProjectId,
        prompt: u64,
        answer: u64,
    ) -> Result<Arc<Self>, Refusal> {
        let taken = limits.tokens(project, prompt, answer)?;
        let (limits, project) = (limits.clone(), project.clone());
        Ok(Arc::new(Self { limits, project, taken, used: AtomicU64::new(0) }))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.limits.correct(&self.project, self.taken, *self.used.get_mut());
    }
}

/// What one answer of a request has used so far. An answer that is left in the middle has used what had come.
pub(crate) struct Share {
    charge: Arc<Charge>,
    used: u64,
}

impl Share {
    pub(crate) fn of(charge: Arc<Charge>) -> Self {
        Self { charge, used: 0 }
    }

    pub(crate) fn see(&mut self, event: &GenerationEvent) {
        match event {
            GenerationEvent::Started { prompt_tokens } => self.used = u64::from(*prompt_tokens),
            GenerationEvent::Delta { .. } | GenerationEvent::Arguments { .. } => self.used += 1,
            GenerationEvent::Done { prompt_tokens, completion_tokens } => {
                self.used = u64::from(*prompt_tokens) + u64::from(*completion_tokens);
            }
            _ => {}
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.charge.used.fetch_add(self.used, Ordering::Relaxed);
    }
}

/// About how many tokens a prompt has: texts by their length, token ids by their number.
pub(crate) fn cost(prompt: &Value) -> u64 {
    match prompt {
        Value::String(text) => (text.len() as u64).div_ceil(BYTES_PER_TOKEN),
        Value::Number(_) => 1,
        Value::Array(items) => items.iter().map(cost).sum(),
        Value::Object(fields) => fields.values().map(cost).sum(),
        Value::Null | Value::Bool(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::LimitsConfig;

    #[test]
    fn answers_pay_for_what_came_and_failures_for_nothing() {
        let limits = Arc::new(Limits::new(LimitsConfig {
            tokens_per_minute: 1_000_000,
            ..LimitsConfig::default()
        }));
        let one = ProjectId::from("one");
        let used = || {
            let headers = limits.headers(&one, crate::limits::Class::Completion);
            let text = headers["x-ratelimit-remaining-tokens"].to_str().unwrap();
            // It fills by 17 in a millisecond: half a step is three seconds.
            (1_000_000 - text.parse::<u64>().unwrap()) / 100_000
        };
        drop(Charge::take(&limits, &one, 350_000, 200_000).unwrap());
        assert_eq!(used(), 0, "it failed before it began");
        let charge = Charge::take(&limits, &one, 350_000, 200_000).unwrap();
        let mut done = Share::of(charge.clone());
        let mut left = Share::of(charge.clone());
        drop(charge);
        done.see(&GenerationEvent::Started { prompt_tokens: 5 });
        done.see(&GenerationEvent::Done { prompt_tokens: 150_000, completion_tokens: 5_000 });
        left.see(&GenerationEvent::Started { prompt_tokens: 100_000 });
        drop(done);
        assert_eq!(used(), 5, "as announced, until all is told");
        drop(left);
        assert_eq!(used(), 2);
    }

    #[test]
    fn texts_count_by_length_and_token_ids_by_number() {
        assert_eq!(cost(&json!("12345678")), 2);
        assert_eq!(cost(&json!([[1, 2], [3]])), 3);
        assert_eq!(cost(&json!([{"role": "user", "content": "12345"}])), 3);
    }
}
