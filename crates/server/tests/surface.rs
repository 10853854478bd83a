//! What holds for every call: keys, headers, unknown routes, health, the description, limits, the
//! drain.

mod common;

use std::time::Duration;

use common::{KEY, MODEL, PATIENCE, TestServer, WORKER_TOKEN, body, error_of};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn keys_open_their_own_side_only() {
    let server = TestServer::start().await;
    let call = async |path: &str, header: &str, value: &str| {
        let request = server.http.get(format!("{}{path}", server.base)).header(header, value);
        body(request.send().await.unwrap()).await
    };
    let bearer = |key: &str| format!("Bearer {key}");
    assert_eq!(call("/v1/models", "authorization", &bearer(KEY)).await.0, 200);
    assert_eq!(call("/v1/models", "api-key", KEY).await.0, 200);

    let (status, error) = call("/v1/models", "x-other", "y").await;
    assert_eq!(status, 401);
    let (code, param, message) = error_of(&error);
    assert_eq!((code, param), (Value::Null, Value::Null));
    assert!(message.contains("Authorization header") && message.contains("Bearer"), "{message}");

    let (status, error) = call("/v1/models", "authorization", "Bearer sk-wrong-0123456789").await;
    assert_eq!(status, 401);
    let (code, _, message) = error_of(&error);
    assert_eq!(code, "invalid_api_key");
    assert!(message.starts_with("Incorrect API key provided: sk-*****6789."), "{message}");

    let (status, _) = call("/v1/models", "authorization", &bearer(WORKER_TOKEN)).await;
    assert_eq!(status, 403);
    let (status, error) = call("/internal/v1/models", "authorization", &bearer(KEY)).await;
    assert_eq!((status.as_u16(), &error["code"]), (403, &json!("unauthorized")));
    let (status, _) = call("/internal/v1/models", "authorization", &bearer(WORKER_TOKEN)).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn every_answer_carries_the_headers_that_clients_read() {
    let server = TestServer::start().await;
    for path in ["/v1/models", "/v1/nothing", "/healthz"] {
        let response = server.request(Method::GET, path).send().await.unwrap();
        let headers = response.headers();
        assert!(headers["x-request-id"].to_str().unwrap().starts_with("req_"));
        assert!(headers["openai-processing-ms"].to_str().unwrap().parse::<u64>().is_ok());
        assert_eq!(headers["openai-version"], "2020-10-01");
    }
    let request = server.request(Method::GET, "/healthz").header("x-request-id", "from-proxy_1");
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "from-proxy_1");
}

#[tokio::test]
async fn odd_urls_get_the_envelope() {
    let server = TestServer::start().await;
    for path in ["/v1/engines", "/v1", "/", "/v1/files/a/b/c", "/v1/models/%ff", "/x?%zz=%00"] {
        let (status, error) = server.get(path).await;
        assert_eq!(status, 404, "{path}");
        let (code, param, message) = error_of(&error);
        assert_eq!((code, param), (Value::Null, Value::Null));
        assert!(message.starts_with("Invalid URL (GET /"), "{message}");
    }
    let response = server.request(Method::PATCH, "/v1/files").send().await.unwrap();
    let (status, error) = body(response).await;
    assert_eq!((status.as_u16(), error_of(&error).0), (405, json!("method_not_supported")));
    let (status, error) = server.get("/v1/files?limit=many").await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("limit")));
}

#[tokio::test]
async fn models_are_found_by_encoded_names_and_bases_stay() {
    let server = TestServer::start().await.with_model().await;
    let (_, list) = server.get("/v1/models").await;
    let created = list["data"][0]["created"].clone();
    let model = json!({"id": MODEL, "object": "model", "created": created, "owned_by": "system",
                       "root": MODEL, "parent": null, "fine_tuning_job_id": null, "step_number": null,
                       "tuning": null, "max_model_len": 512,
                       "capabilities": {"chat": true, "score": false, "fine_tune": true, "merge": true}});
    assert_eq!(list, json!({"object": "list", "data": [model]}));
    for path in [
        "/v1/models/tiny-chat",
        "/v1/models/tiny%2Dchat",
        "/openai/v1/models/tiny-chat",
        "/openai/models/tiny-chat?api-version=2024-10-21",
    ] {
        assert_eq!(server.get(path).await, (StatusCode::OK, model.clone()), "{path}");
    }
    let (status, error) = server.get("/v1/models/org%2Fname%20x").await;
    assert_eq!(status, 404);
    let expected =
        (json!("model_not_found"), json!("model"), "The model 'org/name x' does not exist".into());
    assert_eq!(error_of(&error), expected);
    let (status, error) = server.delete("/v1/models/tiny-chat").await;
    assert_eq!(status, 400, "{error}");
    assert_eq!(server.get("/v1/models/tiny-chat").await.0, 200);
}

#[tokio::test]
async fn the_description_lists_every_route() {
    let server = TestServer::start().await;
    let (status, openapi) = server.get("/openapi.json").await;
    assert_eq!(status, 200);
    for (path, method) in [
        ("/v1/files", "post"),
        ("/v1/files/{file_id}/content", "get"),
        ("/v1/fine_tuning/jobs", "post"),
        ("/v1/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", "get"),
        ("/v1/fine_tuning/score", "post"),
        ("/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions", "post"),
        (
            "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions/{permission_id}",
            "delete",
        ),
        ("/v1/models/{model}", "delete"),
        ("/v1/chat/completions", "post"),
    ] {
        let operation = &openapi["paths"][path][method];
        assert!(operation["operationId"].is_string(), "{method} {path}");
    }
    assert!(openapi["components"]["schemas"]["CreateJob"]["properties"]["model"].is_object());
}

#[tokio::test]
async fn slow_headers_do_not_hold_a_connection() {
    let server =
        TestServer::with(|config| config.header_timeout = Duration::from_millis(200)).await;
    let address = server.base.strip_prefix("http://").unwrap();
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nx-a: ").await.unwrap();
    for socket in [&mut silent, &mut slow] {
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
        reading.expect("the server closes by itself").ok();
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn readiness_fails_first_and_open_requests_finish() {
    let mut server = TestServer::with(|config| {
        config.drain_delay = Duration::from_millis(500);
        config.inference_wait = Duration::from_millis(800);
    })
    .await
    .with_model()
    .await;
    let (status, text) = server.get("/readyz").await;
    assert_eq!((status.as_u16(), text), (200, json!("ready\n")));
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    let open = server.request(Method::POST, "/v1/chat/completions").json(&chat).send();
    let poll = json!({"worker_id": "w", "warm_model": null, "wait_seconds": 30});
    let poll = common::worker::Worker::of(&server).request(Method::POST, "/runs/claim").json(&poll);
    let (open, poll, ()) = tokio::join!(open, poll.send(), async {
        // Both calls are on their way once the server has answered a third.
        server.get("/healthz").await;
        server.shutdown.cancel();
        assert_eq!(server.get("/readyz").await.0, 503);
        assert_eq!(server.get("/healthz").await.0, 200);
    });
    assert_eq!(poll.unwrap().status(), 503, "long polls end at once");
    assert_eq!(open.unwrap().status(), 503, "nobody answered, and the client was told so");
    let served = server.served.take().unwrap();
    tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
    assert!(server.http.get(format!("{}/healthz", server.base)).send().await.is_err());
}
