//! Chat requests: streamed, cancelled, answered with an error when their engine dies.

use domain::engine::{FinishReason, GenerationEvent, Question, Sampling};
use domain::internal::{AdapterRef, InferenceTask};
use serde_json::json;

use crate::Harness;
use crate::fake::{End, State, entry};

impl Harness {
    fn ask(&self, id: &str, content: &str, adapter: Option<AdapterRef>) {
        let base_model = self.fake.look(|state| state.models[0].0.clone());
        let task = InferenceTask {
            id: id.to_owned(),
            base_model,
            adapter,
            question: Question::chat(
                vec![json!({"role": "user", "content": content})],
                Sampling::default(),
            ),
        };
        self.fake.change(|state| state.chats.push_back(task));
    }

    async fn answer(&self, id: &str) -> Vec<GenerationEvent> {
        let answered = |state: &State| {
            let done = state.answered.iter().any(|answered| answered == id);
            done.then(|| state.answers.get(id).cloned().unwrap_or_default())
        };
        self.fake.until("the chat is answered", answered).await
    }
}

fn delta(text: &str) -> GenerationEvent {
    GenerationEvent::Delta { index: 0, text: text.to_owned(), logprobs: Vec::new() }
}

#[tokio::test]
async fn an_answer_is_streamed_back_event_by_event() {
    let harness = Harness::start(json!({"words": ["Hel", "lo"]})).await;
    harness.ask("chat-1", "hi", None);
    let expected = [
        GenerationEvent::Started { prompt_tokens: 1 },
        delta("Hel"),
        delta("lo"),
        GenerationEvent::Finished { index: 0, reason: FinishReason::Stop },
        GenerationEvent::Done { prompt_tokens: 1, completion_tokens: 2 },
    ];
    assert_eq!(harness.answer("chat-1").await, expected);
    harness.stop().await;
}

/// Far more than lies between engine and connection: the engine says it all before anybody has read much of it.
#[tokio::test]
async fn a_reader_that_is_slower_than_the_engine_gets_the_whole_answer() {
    const WORDS: usize = 20_000;
    let harness = Harness::start(json!({"words": vec!["a"; WORDS]})).await;
    harness.ask("chat-1", "hi", None);
    let answer = harness.answer("chat-1").await;
    let texts = answer.iter().filter_map(|event| match event {
        GenerationEvent::Delta { text, .. } => Some(text.len()),
        _ => None,
    });
    assert_eq!(texts.sum::<usize>(), WORDS);
    assert!(matches!(answer.last(), Some(GenerationEvent::Done { .. })), "{:?}", answer.last());
    harness.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_generation() {
    let harness = Harness::start(json!({"words": ["Hello"]})).await;
    harness.fake.change(|state| state.hang_up = true);
    harness.ask("chat-1", "wait", None);
    harness.answer("chat-1").await;
    harness.fake.change(|state| state.hang_up = false);
    // The engine does nothing else before the cancellation has reached it.
    harness.ask("chat-2", "hi", None);
    let last = harness.answer("chat-2").await.pop();
    assert!(matches!(last, Some(GenerationEvent::Done { .. })));
    harness.stop().await;
}

#[tokio::test]
async fn two_requests_are_with_the_engine_at_the_same_time() {
    let harness = Harness::start(json!({})).await;
    harness.ask("chat-1", "meet", None);
    harness.ask("chat-2", "meet", None);
    for id in ["chat-1", "chat-2"] {
        let last = harness.answer(id).await.pop();
        assert!(matches!(last, Some(GenerationEvent::Done { .. })), "{id}");
    }
    harness.stop().await;
}

#[tokio::test]
async fn a_dying_engine_answers_engine_lost_and_the_next_request_gets_a_new_one() {
    let harness = Harness::start(json!({"words": ["Hello"]})).await;
    harness.ask("chat-1", "crash", None);
    let Some(GenerationEvent::Failed { failure }) = harness.answer("chat-1").await.pop() else {
        panic!("the answer has no end")
    };
    assert_eq!(failure.code, "engine_lost");
    harness.ask("chat-2", "hi", None);
    let last = harness.answer("chat-2").await.pop();
    assert!(matches!(last, Some(GenerationEvent::Done { .. })));
    harness.stop().await;
}

#[tokio::test]
async fn the_adapter_that_was_just_trained_answers_without_a_download() {
    let harness = Harness::start(json!({"steps": 2})).await;
    harness.enqueue();
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    let files = harness.fake.look(|state| state.checkpoints[0].begun.files.clone());
    let adapter = AdapterRef { model_id: "ft:base:org::1".into(), digest: "any".into(), files };
    harness.ask("chat-1", "hi", Some(adapter));
    assert!(harness.answer("chat-1").await.contains(&delta("adapter of step 2")));
    harness.fake.look(|state| {
        assert!(!state.calls.iter().any(|call| call.starts_with("adapter file")));
    });
    harness.stop().await;
}

#[tokio::test]
async fn a_whole_model_that_was_just_trained_answers_without_a_download() {
    let harness = Harness::start(json!({"steps": 2, "whole": true})).await;
    harness.enqueue();
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    let mut files = harness.fake.look(|state| state.checkpoints[0].begun.files.clone());
    // The server names the files of the model, not all of the checkpoint.
    files.retain(|file| ["model.safetensors", "config.json"].contains(&file.name.as_str()));
    let adapter = AdapterRef { model_id: "ft:base:org::1".into(), digest: "any".into(), files };
    harness.ask("chat-1", "hi", Some(adapter));
    assert!(harness.answer("chat-1").await.contains(&delta("adapter of step 2")));
    harness.fake.look(|state| {
        assert!(!state.calls.iter().any(|call| call.starts_with("adapter file")));
    });
    harness.stop().await;
}

#[tokio::test]
async fn an_unknown_adapter_is_downloaded_once() {
    let harness = Harness::start(json!({})).await;
    let content = b"a stored adapter".to_vec();
    let files = vec![entry("adapter_model.safetensors", &content)];
    let adapter = AdapterRef { model_id: "ft:base:org::2".into(), digest: "any".into(), files };
    harness.fake.change(|s| s.blobs.insert("adapter_model.safetensors".to_owned(), content));
    for id in ["chat-1", "chat-2"] {
        harness.ask(id, "hi", Some(adapter.clone()));
        assert!(harness.answer(id).await.contains(&delta("a stored adapter")));
    }
    let downloads = harness
        .fake
        .look(|state| state.calls.iter().filter(|call| call.starts_with("adapter file")).count());
    assert_eq!(downloads, 1);
    harness.stop().await;
}

#[tokio::test]
async fn chat_is_answered_while_a_run_is_on_and_only_for_its_base_model() {
    let harness = Harness::start(json!({"steps": 6, "wait_at": 3})).await;
    crate::add_model(&harness.fake, "other", json!({}));
    harness.enqueue();
    let narrowed = |state: &State| {
        let last = state.polls.last()?;
        (crate::runs::steps(state).len() == 3
            && last.base_models == ["base".into(), "base@auto".into()])
        .then_some(())
    };
    harness.fake.until("only the run's base model is asked for", narrowed).await;
    harness.ask("chat-1", "hi", None);
    let last = harness.answer("chat-1").await.pop();
    assert!(matches!(last, Some(GenerationEvent::Done { .. })));
    harness.stop().await;
}
