//! Limits of requests and tokens: what is refused and how, and what answers tell about them.

mod common;

use common::answering::{Answering, DONE, chat, take};
use common::{KEY, MODEL, TestServer, body, error_of};
use domain::engine::GenerationEvent;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use server::LimitsConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHAT: &str = "/v1/chat/completions";

async fn limited(limits: LimitsConfig) -> TestServer {
    TestServer::with(|config| config.limits = limits).await.with_model().await
}

/// A limit that does not fill while a test runs.
fn tokens(tokens_per_minute: u64) -> LimitsConfig {
    LimitsConfig { tokens_per_minute, ..LimitsConfig::default() }
}

async fn ask(server: &TestServer, path: &str, body: &Value) -> Response {
    server.request(Method::POST, path).json(body).send().await.unwrap()
}

fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    value.unwrap_or_else(|| panic!("{name} is missing: {:?}", response.headers()))
}

fn number(response: &Response, name: &str) -> u64 {
    header(response, name).parse().unwrap()
}

/// Asks, and has the question answered with 7 and 5 tokens.
async fn answered(server: &TestServer, path: &str, body: &Value) -> Response {
    let answering = async {
        let answering = Answering::open(server, &take(server).await);
        answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
        answering.send(DONE).await;
        answering.end().await
    };
    tokio::join!(ask(server, path, body), answering).0
}

#[tokio::test]
async fn requests_above_the_limit_are_told_when_to_come_back() {
    let limits = LimitsConfig { requests_per_minute: 1, ..LimitsConfig::default() };
    let server = limited(limits).await;
    // A faulty request counts.
    let first = ask(&server, CHAT, &json!({"model": MODEL, "messages": []})).await;
    assert_eq!(
        (first.status().as_u16(), header(&first, "openai-organization").as_str()),
        (400, "personal")
    );
    assert_eq!(number(&first, "x-ratelimit-limit-requests"), 1);
    assert_eq!(number(&first, "x-ratelimit-remaining-requests"), 0);
    for path in [CHAT, "/v1/completions", "/v1/fine_tuning/score"] {
        let second = ask(&server, path, &chat(json!({}))).await;
        assert_eq!(second.status(), 429);
        assert_eq!(header(&second, "x-should-retry"), "true");
        let seconds = number(&second, "retry-after");
        assert!((50..=60).contains(&seconds), "{seconds}");
        assert_eq!(number(&second, "retry-after-ms").div_ceil(1000), seconds);
        assert!(header(&second, "x-ratelimit-reset-requests").ends_with('s'));
        assert!(header(&second, "x-request-id").starts_with("req_"));
        let (_, error) = body(second).await;
        assert_eq!(error["error"]["type"], "requests");
        let (code, param, message) = error_of(&error);
        assert_eq!((code, param), (json!("rate_limit_exceeded"), Value::Null));
        let expected = "Rate limit reached for proj_default on requests per min (RPM): Limit 1, Used 1, \
                        Requested 1. Please try again in ";
        // A whole minute is written so, and is what a question within the same millisecond is told.
        let told = message.strip_prefix(expected).unwrap_or_else(|| panic!("{message}"));
        assert!(told.starts_with('5') || told.starts_with("1m0s."), "{message}");
    }
    assert_eq!(server.get("/v1/models").await.0, 200, "other calls have a limit of their own");
}

#[tokio::test]
async fn all_other_requests_share_a_limit_and_wrong_keys_use_nothing_of_it() {
    let limits = LimitsConfig { other_requests_per_minute: 2, ..LimitsConfig::default() };
    let server = limited(limits).await;
    for _ in 0..5 {
        let wrong = server.http.get(format!("{}/v1/files", server.base)).header("api-key", "wrong");
        assert_eq!(wrong.send().await.unwrap().status(), 401);
    }
    assert_eq!(server.get("/v1/models").await.0, 200);
    assert_eq!(server.get("/v1/files/file-none").await.0, 404);
    let third = server.request(Method::GET, "/v1/fine_tuning/jobs").send().await.unwrap();
    assert_eq!((third.status().as_u16(), number(&third, "x-ratelimit-limit-requests")), (429, 2));
    assert_eq!(server.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn tokens_are_taken_before_and_corrected_after() {
    let server = limited(tokens(1000)).await;
    // Two characters, and 450 of each of two choices.
    let request = chat(json!({"max_tokens": 450, "n": 2}));
    let first = answered(&server, CHAT, &request).await;
    assert_eq!(first.status(), 200);
    assert_eq!(number(&first, "x-ratelimit-limit-tokens"), 1000);
    let remaining = number(&first, "x-ratelimit-remaining-tokens");
    // "user" and "hi" are estimated as two tokens.
    assert!((98..108).contains(&remaining), "{remaining}");
    let text = json!({"model": MODEL, "prompt": "hi", "max_tokens": 900});
    let second = answered(&server, "/v1/completions", &text).await;
    assert_eq!(second.status(), 200, "12 were used of the 902");
    let large = ask(&server, CHAT, &chat(json!({"max_tokens": 990}))).await;
    assert_eq!(large.status(), 429, "24 are used");
    assert!(number(&large, "retry-after") <= 2);
    assert_eq!(body(large).await.1["error"]["type"], "tokens");
}

#[tokio::test]
async fn a_prompt_above_the_whole_limit_is_not_worth_another_try() {
    let server = limited(tokens(1000)).await;
    let prompt = "word ".repeat(1000);
    for (path, request) in [
        (CHAT, chat(json!({"messages": [{"role": "user", "content": prompt}]}))),
        ("/v1/completions", json!({"model": MODEL, "prompt": [prompt, "x"]})),
    ] {
        let response = ask(&server, path, &request).await;
        assert_eq!(
            (response.status().as_u16(), header(&response, "x-should-retry").as_str()),
            (429, "false")
        );
        assert!(response.headers().get("retry-after").is_none());
        let message = error_of(&body(response).await.1).2;
        assert!(
            message.starts_with("Request too large for proj_default on tokens per min"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn requests_that_fail_use_no_tokens() {
    let server = limited(tokens(1000)).await;
    for _ in 0..5 {
        let request = chat(json!({"max_tokens": 900, "temperature": 9}));
        assert_eq!(ask(&server, CHAT, &request).await.status(), 400);
    }
}

#[tokio::test]
async fn the_defaults_are_told_and_zero_switches_off() {
    let server = limited(LimitsConfig::default()).await;
    let response = ask(&server, CHAT, &json!({})).await;
    assert_eq!(number(&response, "x-ratelimit-limit-tokens"), 150_000_000);
    assert_eq!(header(&response, "x-ratelimit-reset-tokens"), "0s");
    let none =
        LimitsConfig { requests_per_minute: 0, tokens_per_minute: 0, other_requests_per_minute: 0 };
    let server = limited(none).await;
    let response = ask(&server, CHAT, &json!({})).await;
    assert!(response.headers().keys().all(|name| !name.as_str().starts_with("x-ratelimit")));
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_in_words() {
    let server = TestServer::start().await;
    let address = server.base.strip_prefix("http://").unwrap();
    let long = format!("x-long: {}\r\n", "x".repeat(70_000));
    let many = (0..120).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    let path = format!("?{}", "q".repeat(60_000));
    for (path, headers) in [
        ("", long),
        ("", many),
        (path.as_str(), "x-long: ".to_owned() + &"x".repeat(9000) + "\r\n"),
    ] {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /v1/models{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\n{headers}\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431") && head.contains("x-request-id: req_"), "{head}");
        let error: Value = serde_json::from_str(text).unwrap();
        assert!(error_of(&error).2.contains("larger than the limit"), "{error}");
    }
}

#[tokio::test]
async fn every_corner_has_a_request_id() {
    let server = TestServer::start().await;
    for path in [
        "/internal/v1/none",
        "/internal/v1/models",
        "/v1/none",
        "/none",
        "/openapi.json",
        "/readyz",
    ] {
        let response = server.request(Method::GET, path).send().await.unwrap();
        assert!(header(&response, "x-request-id").starts_with("req_"), "{path}");
        assert_eq!(header(&response, "openai-version"), "2020-10-01", "{path}");
        header(&response, "openai-processing-ms");
    }
}
