//! Completions that are kept because their request says `store: true`.

use domain::engine::GenerationEvent;
use serde_json::{Value, json};
use store::completions::{self, NewCompletion};
use store::{Project, Store};

use super::answer::Heading;
use super::whole::Collector;
use crate::error::ErrorChain;
use crate::state::AppState;
use crate::wire::completion::{Completion, CreateCompletion, Usage};

/// What of a request is kept beside its messages.
const KEPT: [&str; 13] = [
    "messages",
    "tools",
    "tool_choice",
    "functions",
    "response_format",
    "temperature",
    "top_p",
    "n",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "max_completion_tokens",
];

/// Keeps one completion, once it is whole.
pub(crate) struct Keeper {
    store: Store,
    project: Project,
    new: NewCompletion,
    collector: Collector,
}

impl Keeper {
    /// None where the request does not ask for it.
    pub(crate) fn for_request(
        state: &AppState,
        project: &Project,
        request: CreateCompletion,
        heading: &Heading,
    ) -> Option<Self> {
        if !request.store.unwrap_or(false) {
            return None;
        }
        let metadata = request.metadata.clone().unwrap_or_default();
        let mut fields = json!(request);
        if let Value::Object(fields) = &mut fields {
            fields.retain(|key, value| KEPT.contains(&key.as_str()) && !value.is_null());
        }
        let new = NewCompletion {
            id: heading.id.clone(),
            model: heading.model.clone(),
            metadata,
            request: fields,
            completion: Value::Null,
        };
        let collector = Collector::new(heading.clone());
        Some(Self { store: state.store.clone(), project: project.clone(), new, collector })
    }

    /// Takes an event of a stream.
    pub(crate) fn take(&mut self, event: &GenerationEvent, call_id: &dyn Fn() -> String) {
        self.collector.take(event, call_id);
    }

    /// The stream is over.
    pub(crate) async fn end(self, usage: Usage) {
        let Self { store, project, new, collector } = self;
        keep(store, project, new, &collector.end(usage)).await;
    }

    pub(crate) async fn keep(self, completion: &Completion) {
        keep(self.store, self.project, self.new, completion).await;
    }
}

/// A completion that cannot be kept is given all the same: it has cost more than its record.
async fn keep(store: Store, project: Project, mut new: NewCompletion, completion: &Completion) {
    new.completion = json!(completion);
    // A task of its own: the client may have left by now.
    let kept = tokio::spawn(async move {
        if let Err(error) = completions::insert(&store.db, &project, &new).await {
            let error = ErrorChain(&error).to_string();
            tracing::warn!(error, id = new.id, "a completion could not be kept");
        }
    });
    let _ = kept.await;
}
