//! Chat completions through the broker, answered by a scripted worker.

mod common;

use std::time::Duration;

use common::worker::Worker;
use common::{MODEL, PATIENCE, TestServer, body, error_of};
use domain::engine::{FinishReason, GenerationEvent, GenerationFailure};
use domain::internal::InferenceTask;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Takes the next chat request.
async fn take(server: &TestServer) -> InferenceTask {
    let models = [MODEL.to_owned(), format!("{MODEL}@auto")];
    let next = json!({"worker_id": "w", "base_models": models, "wait_seconds": 20});
    let response =
        Worker::of(server).request(Method::POST, "/inference/next").json(&next).send().await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// A worker's open stream of events.
struct Answering {
    events: mpsc::Sender<GenerationEvent>,
    call: tokio::task::JoinHandle<reqwest::Result<Response>>,
}

impl Answering {
    fn open(server: &TestServer, task: &InferenceTask) -> Self {
        let (events, receiver) = mpsc::channel::<GenerationEvent>(16);
        let lines = futures::stream::unfold(receiver, async |mut receiver| {
            let event = receiver.recv().await?;
            let line = format!("{}\n", serde_json::to_string(&event).unwrap());
            Some((Ok::<_, std::io::Error>(line), receiver))
        });
        let request = Worker::of(server)
            .request(Method::POST, &format!("/inference/{}/events", task.id))
            .body(reqwest::Body::wrap_stream(lines));
        Self { events, call: tokio::spawn(request.send()) }
    }

    async fn send(&self, event: GenerationEvent) {
        self.events.send(event).await.unwrap();
    }

    async fn end(self) -> StatusCode {
        drop(self.events);
        self.call.await.unwrap().unwrap().status()
    }
}

fn delta(index: u32, text: &str) -> GenerationEvent {
    GenerationEvent::Delta { index, text: text.to_owned() }
}

fn finished(index: u32, reason: FinishReason) -> GenerationEvent {
    GenerationEvent::Finished { index, reason }
}

const DONE: GenerationEvent = GenerationEvent::Done { prompt_tokens: 7, completion_tokens: 5 };

#[tokio::test]
async fn a_whole_answer_has_every_choice_and_the_usage() {
    let server = TestServer::start().await.with_model().await;
    let request = chat(json!({
        "n": 2, "temperature": 0, "seed": 5, "stop": ["\n"], "max_tokens": 9,
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                     {"role": "user", "content": "hi"}],
        "service_tier": "flex", "logit_bias": {}, "store": false,
    }));
    let asking = server.post("/v1/chat/completions", &request);
    let answering = async {
        let task = take(&server).await;
        assert_eq!(
            task.messages,
            vec![
                json!({"role": "system", "content": "Be brief."}),
                json!({"role": "user", "content": "hi"}),
            ]
        );
        assert_eq!(task.sampling.temperature, 0.0);
        assert_eq!((task.sampling.n, task.sampling.max_tokens), (2, Some(9)));
        assert_eq!((task.sampling.seed, task.sampling.stop.len()), (Some(5), 1));
        assert!(task.adapter.is_none());
        let answering = Answering::open(&server, &task);
        answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
        answering.send(delta(0, "Hel")).await;
        answering.send(delta(1, "Hey")).await;
        answering.send(delta(0, "lo")).await;
        answering.send(finished(0, FinishReason::Stop)).await;
        answering.send(finished(1, FinishReason::Length)).await;
        answering.send(DONE).await;
        (task.base_model.digest, answering.end().await)
    };
    let ((status, answer), (digest, delivered)) = tokio::join!(asking, answering);
    assert_eq!((status.as_u16(), delivered.as_u16()), (200, 204));
    let choice = |index: u32, text: &str, reason: &str| {
        json!({"index": index, "message": {"role": "assistant", "content": text, "refusal": null,
               "annotations": []}, "logprobs": null, "finish_reason": reason})
    };
    assert_eq!(
        answer,
        json!({
            "id": answer["id"], "object": "chat.completion", "created": answer["created"],
            "model": MODEL,
            "choices": [choice(0, "Hello", "stop"), choice(1, "Hey", "length")],
            "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}},
            "service_tier": "default", "system_fingerprint": format!("fp_{}", &digest[..12]),
        })
    );
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
}

/// The data lines of a stream.
fn data(stream: &str) -> Vec<Value> {
    let lines = stream.split("\n\n").filter_map(|block| block.strip_prefix("data: "));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| json!(line))).collect()
}

#[tokio::test]
async fn a_stream_has_openais_order_of_chunks() {
    let server = TestServer::start().await.with_model().await;
    for with_usage in [false, true] {
        let request =
            chat(json!({"stream": true, "stream_options": {"include_usage": with_usage}}));
        let asking = async {
            let request = server.request(Method::POST, "/v1/chat/completions").json(&request);
            let response = request.send().await.unwrap();
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            response.text().await.unwrap()
        };
        let answering = async {
            let answering = Answering::open(&server, &take(&server).await);
            answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
            answering.send(delta(0, "Grüß\r\n")).await;
            answering.send(delta(0, "dich")).await;
            answering.send(finished(0, FinishReason::Stop)).await;
            answering.send(DONE).await;
            answering.end().await
        };
        let (stream, _) = tokio::join!(asking, answering);
        let chunks = data(&stream);
        let deltas: Vec<Value> = chunks.iter().map(|c| c["choices"][0]["delta"].clone()).collect();
        let first = json!({"role": "assistant", "content": "", "refusal": null});
        assert_eq!(
            deltas[..4],
            [first, json!({"content": "Grüß\r\n"}), json!({"content": "dich"}), json!({})]
        );
        assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
        assert_eq!(chunks[1]["choices"][0]["finish_reason"], Value::Null);
        assert!(chunks[..4].iter().all(|c| c["id"] == chunks[0]["id"]));
        assert!(chunks[..4].iter().all(|c| c["object"] == "chat.completion.chunk"));
        assert!(chunks[..4].iter().all(|c| c.get("usage").is_some() == with_usage));
        assert_eq!(chunks.last().unwrap(), "[DONE]");
        if with_usage {
            assert_eq!(
                (&chunks[4]["choices"], &chunks[4]["usage"]["total_tokens"]),
                (&json!([]), &json!(12))
            );
        }
        assert_eq!(chunks.len(), if with_usage { 6 } else { 5 });
    }
}

#[tokio::test]
async fn without_a_worker_the_client_is_told_to_come_back() {
    let server =
        TestServer::with(|config| config.inference_wait = Duration::from_millis(100)).await;
    let server = server.with_model().await;
    for stream in [false, true] {
        let request = chat(json!({"stream": stream}));
        let response =
            server.request(Method::POST, "/v1/chat/completions").json(&request).send().await;
        let response = response.unwrap();
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        let (status, error) = body(response).await;
        assert_eq!((status.as_u16(), &error["error"]["type"]), (503, &json!("server_error")));
    }
}

#[tokio::test]
async fn failures_before_the_first_token_have_a_status() {
    let server = TestServer::start().await.with_model().await;
    for (failure, status, code, param) in [
        ("context_length_exceeded", 400, json!("context_length_exceeded"), json!("messages")),
        ("invalid_messages", 400, json!("invalid_value"), json!("messages")),
        ("wrong_model", 400, json!("invalid_value"), json!("model")),
        ("engine_lost", 503, Value::Null, Value::Null),
        ("internal_error", 500, Value::Null, Value::Null),
    ] {
        let request = chat(json!({"stream": true}));
        let asking = server.post("/v1/chat/completions", &request);
        let answering = async {
            let answering = Answering::open(&server, &take(&server).await);
            let failure = GenerationFailure { code: failure.to_owned(), message: "why".to_owned() };
            answering.send(GenerationEvent::Failed { failure }).await;
            answering.end().await
        };
        let ((got, error), _) = tokio::join!(asking, answering);
        let (got_code, got_param, _) = error_of(&error);
        assert_eq!((got.as_u16(), got_code, got_param), (status, code, param), "{failure}");
    }
}

#[tokio::test]
async fn a_worker_lost_in_the_middle_ends_the_stream_with_an_error() {
    let server = TestServer::start().await.with_model().await;
    let request = chat(json!({"stream": true}));
    let asking = async {
        let request = server.request(Method::POST, "/v1/chat/completions").json(&request);
        request.send().await.unwrap().text().await.unwrap()
    };
    let answering = async {
        let answering = Answering::open(&server, &take(&server).await);
        answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
        answering.send(delta(0, "Hel")).await;
        answering.end().await
    };
    let (stream, _) = tokio::join!(asking, answering);
    let chunks = data(&stream);
    let error = chunks.last().unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert_eq!(error_of(error).0, Value::Null);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_worker_s_call() {
    let server = TestServer::start().await.with_model().await;
    for stream in [true, false] {
        let request = chat(json!({"stream": stream}));
        let request = server.request(Method::POST, "/v1/chat/completions").json(&request);
        let asking = tokio::spawn(request.send());
        let answering = Answering::open(&server, &take(&server).await);
        answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
        answering.send(delta(0, "Hel")).await;
        if stream {
            let mut response = asking.await.unwrap().unwrap();
            response.chunk().await.unwrap();
            drop(response);
        } else {
            asking.abort();
        }
        // The stream of events is still open on the worker's side.
        let Answering { events, call } = answering;
        let ended = tokio::time::timeout(PATIENCE, call).await.expect("the call ends early");
        if let Ok(response) = ended.unwrap() {
            // 404 when the client was gone before the answer began.
            assert!(matches!(response.status().as_u16(), 204 | 404));
        }
        drop(events);
    }
}

#[tokio::test]
async fn requests_that_cannot_be_answered_are_refused() {
    let server = TestServer::start().await.with_model().await;
    for (extra, status, code, param) in [
        (json!({"model": "nobody"}), 404, json!("model_not_found"), Value::Null),
        (json!({"model": null}), 400, json!("invalid_type"), json!("model")),
        (json!({"messages": []}), 400, json!("empty_array"), json!("messages")),
        (
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            400,
            json!("invalid_value"),
            json!("messages[0].role"),
        ),
        (json!({"temperature": 3}), 400, json!("decimal_above_max_value"), json!("temperature")),
        (json!({"n": 0}), 400, json!("integer_below_min_value"), json!("n")),
        (json!({"stream": "yes"}), 400, json!("invalid_type"), json!("stream")),
    ] {
        let (got, error) = server.post("/v1/chat/completions", &chat(extra)).await;
        let (got_code, got_param, message) = error_of(&error);
        assert_eq!((got.as_u16(), got_code, got_param), (status, code, param), "{message}");
    }
    let gone = Worker::of(&server).request(Method::POST, "/inference/chatcmpl-x/events").body("");
    assert_eq!(gone.send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn scores_are_refused_where_there_can_be_none() {
    let server = TestServer::start().await.with_model().await;
    let question = json!({"role": "user", "content": "hi"});
    let answer = json!({"role": "assistant", "content": "Hello"});
    let both = json!([question, answer]);
    for (request, status, code, param) in [
        (json!({"model": MODEL, "messages": both}), 400, json!("invalid_value"), json!("model")),
        (json!({"model": "nobody", "messages": both}), 404, json!("model_not_found"), Value::Null),
        (json!({"model": MODEL, "messages": []}), 400, json!("empty_array"), json!("messages")),
        (
            json!({"model": MODEL, "messages": [question]}),
            400,
            json!("invalid_value"),
            json!("messages"),
        ),
        (
            json!({"model": MODEL, "messages": [answer, {"role": "robot", "content": "x"}]}),
            400,
            json!("invalid_value"),
            json!("messages[1].role"),
        ),
        (
            json!({"model": MODEL, "messages": both, "temperature": 1}),
            400,
            json!("unknown_parameter"),
            json!("temperature"),
        ),
        (json!({"messages": both}), 400, json!("missing_required_parameter"), json!("model")),
    ] {
        let (got, error) = server.post("/v1/fine_tuning/score", &request).await;
        let (got_code, got_param, message) = error_of(&error);
        assert_eq!((got.as_u16(), got_code, got_param), (status, code, param), "{message}");
    }
}
