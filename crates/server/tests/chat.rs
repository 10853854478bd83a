//! Chat completions through the broker, answered by a scripted worker.

mod common;

use std::time::Duration;

use common::answering::{Answering, DONE, chat, take};
use common::worker::Worker;
use common::{MODEL, PATIENCE, TestServer, body, error_of};
use domain::engine::{
    FinishReason, GenerationEvent, GenerationFailure, Prompt, Question, TokenLogprob, TokenText,
};
use domain::internal::InferenceTask;
use reqwest::Method;
use serde_json::{Value, json};

fn delta(index: u32, text: &str) -> GenerationEvent {
    GenerationEvent::Delta { index, text: text.to_owned(), logprobs: Vec::new() }
}

fn finished(index: u32, reason: FinishReason) -> GenerationEvent {
    GenerationEvent::Finished { index, reason }
}

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
        let messages = vec![
            json!({"role": "system", "content": "Be brief."}),
            json!({"role": "user", "content": "hi"}),
        ];
        let Question { prompt, sampling, .. } = &task.question;
        assert_eq!(*prompt, Prompt::Chat { messages, tools: Vec::new() });
        assert_eq!(sampling.temperature, 0.0);
        assert_eq!((sampling.n, sampling.max_tokens), (2, Some(9)));
        assert_eq!((sampling.seed, sampling.stop.len()), (Some(5), 1));
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

#[tokio::test]
async fn calls_come_whole_or_in_fragments_or_in_the_older_form() {
    let server = TestServer::start().await.with_model().await;
    let function = json!({"name": "weather", "parameters": {"type": "object"}});
    let tools = json!([{"type": "function", "function": function}]);
    for (extra, streams, legacy) in [
        (json!({"tools": tools}), false, false),
        (json!({"tools": tools, "stream": true}), true, false),
        (json!({"functions": [function]}), false, true),
        (json!({"functions": [function], "stream": true}), true, true),
    ] {
        let request = chat(extra);
        let asking = async {
            let request = server.request(Method::POST, "/v1/chat/completions").json(&request);
            request.send().await.unwrap().text().await.unwrap()
        };
        let answering = async {
            let task = take(&server).await;
            let Prompt::Chat { tools: given, .. } = &task.question.prompt else { panic!("a chat") };
            assert_eq!(json!(given), tools);
            let answering = Answering::open(&server, &task);
            answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
            answering
                .send(GenerationEvent::Call { index: 0, call: 0, name: "weather".to_owned() })
                .await;
            for text in ["{\"city\":", " \"Ulm\"}"] {
                let text = text.to_owned();
                answering.send(GenerationEvent::Arguments { index: 0, call: 0, text }).await;
            }
            answering.send(finished(0, FinishReason::Calls)).await;
            answering.send(DONE).await;
            answering.end().await
        };
        let (text, _) = tokio::join!(asking, answering);
        let reason = if legacy { "function_call" } else { "tool_calls" };
        let whole = json!({"name": "weather", "arguments": "{\"city\": \"Ulm\"}"});
        if !streams {
            let answer: Value = serde_json::from_str(&text).unwrap();
            let choice = &answer["choices"][0];
            assert_eq!(
                (&choice["finish_reason"], &choice["message"]["content"]),
                (&json!(reason), &Value::Null)
            );
            let got = if legacy {
                choice["message"]["function_call"].clone()
            } else {
                let call = &choice["message"]["tool_calls"][0];
                assert!(
                    call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function"
                );
                call["function"].clone()
            };
            assert_eq!(got, whole);
            continue;
        }
        let chunks = data(&text);
        let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
        if legacy {
            assert_eq!(deltas[1], &json!({"function_call": {"name": "weather", "arguments": ""}}));
            assert_eq!(deltas[2], &json!({"function_call": {"arguments": "{\"city\":"}}));
        } else {
            let first = &deltas[1]["tool_calls"][0];
            assert_eq!(first["function"], json!({"name": "weather", "arguments": ""}));
            assert!(first["id"].as_str().unwrap().starts_with("call_"));
            assert_eq!(
                deltas[2],
                &json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"city\":"}}]})
            );
        }
        assert_eq!(chunks[4]["choices"][0]["finish_reason"], reason);
    }
}

fn told(token: &[u8], logprob: f64) -> TokenLogprob {
    let text = TokenText(token.to_vec());
    TokenLogprob { token: text.clone(), logprob: Some(logprob), top: vec![(text, logprob)] }
}

#[tokio::test]
async fn log_probabilities_have_text_and_bytes_whole_and_streamed() {
    let server = TestServer::start().await.with_model().await;
    let expected = json!([
        {"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xc3],
            "top_logprobs": [{"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xc3]}]},
        {"token": "\u{fffd}", "logprob": -1.5, "bytes": [0xbc],
            "top_logprobs": [{"token": "\u{fffd}", "logprob": -1.5, "bytes": [0xbc]}]},
    ]);
    for streams in [false, true] {
        let request = chat(json!({"logprobs": true, "top_logprobs": 1, "stream": streams}));
        let asking = async {
            let request = server.request(Method::POST, "/v1/chat/completions").json(&request);
            request.send().await.unwrap().text().await.unwrap()
        };
        let answering = async {
            let task = take(&server).await;
            assert_eq!(task.question.sampling.logprobs, Some(1));
            let answering = Answering::open(&server, &task);
            answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
            let logprobs = vec![told(&[0xc3], -0.5), told(&[0xbc], -1.5)];
            let text = "ü".to_owned();
            answering.send(GenerationEvent::Delta { index: 0, text, logprobs }).await;
            answering.send(finished(0, FinishReason::Stop)).await;
            answering.send(DONE).await;
            answering.end().await
        };
        let (text, _) = tokio::join!(asking, answering);
        let content = if streams {
            data(&text)[1]["choices"][0]["logprobs"]["content"].clone()
        } else {
            serde_json::from_str::<Value>(&text).unwrap()["choices"][0]["logprobs"]["content"]
                .clone()
        };
        assert_eq!(content, expected);
    }
}

/// Answers the next request with these texts, one per choice.
async fn answer_with(server: &TestServer, texts: &[(&str, f64)]) -> InferenceTask {
    let task = take(server).await;
    let answering = Answering::open(server, &task);
    answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
    if let Prompt::Text { text, echo: true } = &task.question.prompt {
        let logprobs = vec![TokenLogprob { logprob: None, ..told(text.as_bytes(), 0.0) }];
        answering.send(GenerationEvent::Echo { text: text.clone(), logprobs }).await;
    }
    for (index, (text, logprob)) in texts.iter().enumerate() {
        let (index, text) = (index as u32, (*text).to_owned());
        let logprobs = vec![told(text.as_bytes(), *logprob)];
        answering.send(GenerationEvent::Delta { index, text, logprobs }).await;
        answering.send(finished(index, FinishReason::Length)).await;
    }
    answering.send(DONE).await;
    answering.end().await;
    task
}

#[tokio::test]
async fn texts_are_completed_prompt_by_prompt() {
    let server = TestServer::start().await.with_model().await;
    let request = json!({"model": MODEL, "prompt": ["one", "two"], "echo": true, "logprobs": 1});
    let asking = server.post("/v1/completions", &request);
    // Both are asked at once, in any order.
    let answering = async {
        let (a, b) = (answer_with(&server, &[(" x", -1.0)]), answer_with(&server, &[(" x", -1.0)]));
        tokio::join!(a, b)
    };
    let ((status, answer), (first, second)) = tokio::join!(asking, answering);
    assert_eq!(status, 200, "{answer}");
    let limit = |task: &InferenceTask| task.question.sampling.max_tokens;
    assert_eq!((limit(&first), limit(&second)), (Some(16), Some(16)));
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<&Value> = choices.iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["one x", "two x"]);
    assert_eq!(
        choices[1]["logprobs"],
        json!({"tokens": ["two", " x"], "token_logprobs": [null, -1.0],
               "top_logprobs": [null, {" x": -1.0}], "text_offset": [0, 3]})
    );
    assert_eq!((&choices[1]["index"], &choices[1]["finish_reason"]), (&json!(1), &json!("length")));
    assert_eq!(answer["usage"]["total_tokens"], 24);

    let request = json!({"model": MODEL, "prompt": [1, 2], "best_of": 3, "n": 1});
    let asking = server.post("/v1/completions", &request);
    let texts = [("worse", -2.0), ("best", -0.5), ("bad", -3.0)];
    let ((_, answer), task) = tokio::join!(asking, answer_with(&server, &texts));
    assert_eq!(task.question.prompt, Prompt::Tokens { ids: vec![1, 2], echo: false });
    assert_eq!(task.question.sampling.n, 3);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["logprobs"]),
        (&json!("best"), &Value::Null)
    );

    let request = json!({"model": MODEL, "prompt": "one", "stream": true,
                         "stream_options": {"include_usage": true}});
    let asking = async {
        let request = server.request(Method::POST, "/v1/completions").json(&request);
        request.send().await.unwrap().text().await.unwrap()
    };
    let (stream, _) = tokio::join!(asking, answer_with(&server, &[(" x", -1.0)]));
    let chunks = data(&stream);
    assert_eq!(chunks[0]["choices"][0]["text"], " x");
    assert_eq!(
        (&chunks[0]["object"], &chunks[0]["usage"]),
        (&json!("text_completion"), &Value::Null)
    );
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "length");
    assert_eq!(
        (&chunks[2]["choices"], &chunks[2]["usage"]["total_tokens"]),
        (&json!([]), &json!(12))
    );
    assert_eq!(chunks[3], "[DONE]");
}

#[tokio::test]
async fn texts_that_cannot_be_completed_are_refused() {
    let server = TestServer::start().await.with_model().await;
    for (extra, code, param) in [
        (json!({"logprobs": 6}), "integer_above_max_value", "logprobs"),
        (json!({"n": 2, "best_of": 1}), "invalid_value", "best_of"),
        (json!({"best_of": 2, "stream": true}), "invalid_value", "best_of"),
        (json!({"suffix": "end"}), "invalid_value", "suffix"),
        (json!({"prompt": {}}), "invalid_type", "prompt"),
        (json!({"max_tokens": -1}), "integer_below_min_value", "max_tokens"),
    ] {
        let mut request = json!({"model": MODEL, "prompt": "x"});
        for (key, value) in extra.as_object().unwrap() {
            request[key] = value.clone();
        }
        let (status, error) = server.post("/v1/completions", &request).await;
        let (got_code, got_param, message) = error_of(&error);
        assert_eq!(
            (status.as_u16(), got_code, got_param),
            (400, json!(code), json!(param)),
            "{message}"
        );
    }
}

#[tokio::test]
async fn completions_are_kept_where_they_are_asked_to_be() {
    let server = TestServer::start().await.with_model().await;
    let mut ids = Vec::new();
    for (index, streams) in [false, true, false].into_iter().enumerate() {
        let metadata = json!({"n": index.to_string()});
        let request = chat(
            json!({"store": true, "metadata": metadata, "stream": streams, "temperature": 0.5}),
        );
        let asking = async {
            let request = server.request(Method::POST, "/v1/chat/completions").json(&request);
            request.send().await.unwrap().text().await.unwrap()
        };
        let (text, task) = tokio::join!(asking, answer_with(&server, &[("Hello", -1.0)]));
        assert!(text.contains("Hello"));
        ids.push(task.id);
    }
    let path = |id: &str| format!("/v1/chat/completions/{id}");
    let (_, page) = server.get("/v1/chat/completions?limit=2").await;
    assert_eq!(
        (&page["first_id"], &page["last_id"], &page["has_more"]),
        (&json!(ids[0]), &json!(ids[1]), &json!(true))
    );
    let (_, page) = server.get(&format!("/v1/chat/completions?after={}", ids[1])).await;
    assert_eq!((&page["first_id"], &page["has_more"]), (&json!(ids[2]), &json!(false)));
    let (_, page) = server.get("/v1/chat/completions?metadata%5Bn%5D=1&order=desc").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    let (_, page) = server.get("/v1/chat/completions?model=nobody").await;
    assert_eq!(page["data"], json!([]));

    let (_, kept) = server.get(&path(&ids[1])).await;
    assert_eq!((&kept["id"], &kept["object"]), (&json!(ids[1]), &json!("chat.completion")));
    assert_eq!(kept["choices"][0]["message"]["content"], "Hello");
    assert_eq!((&kept["temperature"], &kept["metadata"]), (&json!(0.5), &json!({"n": "1"})));
    let (_, kept) = server.post(&path(&ids[1]), &json!({"metadata": {"seen": "yes"}})).await;
    assert_eq!(kept["metadata"], json!({"seen": "yes"}));
    let (status, _) = server.post(&path(&ids[1]), &json!({"model": "x"})).await;
    assert_eq!(status, 400);
    let (_, messages) = server.get(&format!("{}/messages", path(&ids[1]))).await;
    assert_eq!(messages["data"][0]["id"], format!("{}-0", ids[1]));
    assert_eq!(
        (&messages["data"][0]["role"], &messages["data"][0]["content"]),
        (&json!("user"), &json!("hi"))
    );

    let (_, gone) = server.delete(&path(&ids[1])).await;
    assert_eq!(gone, json!({"id": ids[1], "object": "chat.completion.deleted", "deleted": true}));
    let (status, error) = server.get(&path(&ids[1])).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (404, json!("completion_id")));
}
