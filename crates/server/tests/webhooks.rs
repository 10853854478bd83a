//! Webhooks from an end of a job to a receiver on a real listener: signatures, retries, what is refused, the log.

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode as Code};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{MODEL, PATIENCE, TestServer, error_of, rows, until};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

const ALL: [&str; 6] = [
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "eval.run.succeeded",
    "eval.run.failed",
    "eval.run.canceled",
];

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq)]
struct Arrived {
    headers: HeaderMap,
    body: Bytes,
}

impl Arrived {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Tells what arrives, and answers as it is told, the last answer for ever.
struct Receiver {
    port: u16,
    arrived: mpsc::UnboundedReceiver<Arrived>,
}

type Answer = Arc<dyn Fn(usize) -> Response + Send + Sync>;

impl Receiver {
    /// `answer` gets the number of the request, from 0.
    async fn start(answer: impl Fn(usize) -> Response + Send + Sync + 'static) -> Self {
        let (tell, arrived) = mpsc::unbounded_channel();
        let answer: Answer = Arc::new(answer);
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let app = Router::new().route("/hook", post(receive)).with_state((tell, answer, count));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { port, arrived }
    }

    async fn always(code: u16) -> Self {
        Self::start(move |_| Code::from_u16(code).unwrap().into_response()).await
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    async fn next(&mut self) -> Arrived {
        let next = tokio::time::timeout(PATIENCE, self.arrived.recv()).await;
        next.expect("nothing arrived").unwrap()
    }
}

type Told = (mpsc::UnboundedSender<Arrived>, Answer, Arc<std::sync::atomic::AtomicUsize>);

async fn receive(
    State((tell, answer, count)): State<Told>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let answer = answer(number);
    tell.send(Arrived { headers, body }).ok();
    answer
}

async fn server() -> TestServer {
    server_with(|_| {}).await
}

async fn server_with(change: impl FnOnce(&mut server::WebhooksConfig)) -> TestServer {
    TestServer::with(|config| {
        config.webhooks.allow = vec!["127.0.0.1".to_owned()];
        config.webhooks.retries = vec![server::Pause(Duration::from_millis(1)); 3];
        config.webhooks.timeout = PATIENCE;
        change(&mut config.webhooks);
    })
    .await
    .with_model()
    .await
}

impl TestServer {
    /// (id, secret) of a new endpoint.
    async fn endpoint(&self, url: &str) -> (String, String) {
        let body = json!({"name": "mine", "url": url, "event_types": ALL});
        let (status, endpoint) = self.post("/v1/webhook_endpoints", &body).await;
        assert_eq!(status, 200, "{endpoint}");
        let text = |key: &str| endpoint[key].as_str().unwrap().to_owned();
        (text("id"), text("signing_secret"))
    }

    /// Cancels a new job: the shortest way to an event.
    async fn cancelled_job(&self) -> String {
        let file = self.upload(&rows(10)).await;
        let job = self.create_job(&json!({"model": MODEL, "training_file": file})).await;
        let (status, body) = self.post_empty(&format!("/v1/fine_tuning/jobs/{job}/cancel")).await;
        assert_eq!(status, 200, "{body}");
        job
    }

    /// The only delivery of an endpoint, once it has this status.
    async fn delivery_when(&self, endpoint: &str, status: &str) -> Value {
        let path = format!("/v1/webhook_endpoints/{endpoint}/deliveries");
        until(&format!("the delivery is {status}"), async || {
            let (_, list) = self.get(&path).await;
            let [delivery] = list["data"].as_array().unwrap().as_slice() else { return None };
            (delivery["status"] == status).then(|| delivery.clone())
        })
        .await
    }
}

/// HMAC-SHA256 by its definition, with nothing of the server's.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.map(|b| b ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// The header that a secret gives for a request.
fn signature(secret: &str, arrived: &Arrived) -> String {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let (id, time) = (arrived.header("webhook-id"), arrived.header("webhook-timestamp"));
    let text = [format!("{id}.{time}.").as_bytes(), &arrived.body].concat();
    format!("v1,{}", STANDARD.encode(hmac(&key, &text)))
}

fn codes(delivery: &Value) -> Vec<Value> {
    let attempts = delivery["attempts"].as_array().unwrap();
    attempts.iter().map(|attempt| attempt["status_code"].clone()).collect()
}

fn first_error(delivery: &Value) -> &str {
    delivery["attempts"][0]["error"].as_str().unwrap()
}

#[tokio::test]
async fn the_end_of_a_job_arrives_signed_and_thin() {
    let server = server().await;
    let mut receiver = Receiver::always(204).await;
    let (endpoint, secret) = server.endpoint(&receiver.url()).await;
    let job = server.cancelled_job().await;
    let arrived = receiver.next().await;
    assert_eq!(arrived.header("content-type"), "application/json");
    assert_eq!(arrived.header("webhook-signature"), signature(&secret, &arrived));
    let event = arrived.json();
    let keys: Vec<&str> = event.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["id", "object", "created_at", "type", "data"]);
    assert_eq!(event["id"], arrived.header("webhook-id"));
    assert!(event["id"].as_str().unwrap().starts_with("evt_"));
    assert_eq!((&event["object"], &event["type"]), (&json!("event"), &json!(ALL[2])));
    assert_eq!(event["data"], json!({"id": job}));
    let delivery = server.delivery_when(&endpoint, "delivered").await;
    assert_eq!(codes(&delivery), [204]);
    assert_eq!(delivery["object"], "webhook_endpoint.delivery");
    assert_eq!((&delivery["event_id"], &delivery["data_id"]), (&event["id"], &json!(job)));
    assert_eq!(delivery["event_type"], ALL[2]);
    assert_eq!(delivery["next_attempt_at"], Value::Null);
}

#[tokio::test]
async fn a_retry_is_the_same_bytes_and_the_same_id() {
    let server = server().await;
    let busy = |number: usize| match number {
        0 => Code::INTERNAL_SERVER_ERROR.into_response(),
        1 => (Code::FOUND, [("location", "/elsewhere")]).into_response(),
        _ => Code::OK.into_response(),
    };
    let mut receiver = Receiver::start(busy).await;
    let (endpoint, secret) = server.endpoint(&receiver.url()).await;
    server.cancelled_job().await;
    let first = receiver.next().await;
    for _ in 0..2 {
        let again = receiver.next().await;
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("webhook-id"), first.header("webhook-id"));
        assert_eq!(again.header("webhook-signature"), signature(&secret, &again));
    }
    let delivery = server.delivery_when(&endpoint, "delivered").await;
    assert_eq!(codes(&delivery), [500, 302, 200]);
    assert_eq!(delivery["attempts"][1]["error"], "redirects are not followed");
    assert_eq!(delivery["attempts"][2]["error"], Value::Null);
}

#[tokio::test]
async fn what_is_never_taken_has_failed_and_can_be_sent_again() {
    let server = server_with(|config| config.retries.truncate(1)).await;
    let mut receiver = Receiver::start(|number| match number {
        0 | 1 => Code::IM_A_TEAPOT.into_response(),
        _ => Code::OK.into_response(),
    })
    .await;
    let (endpoint, _) = server.endpoint(&receiver.url()).await;
    server.cancelled_job().await;
    let first = receiver.next().await;
    let delivery = server.delivery_when(&endpoint, "failed").await;
    assert_eq!(codes(&delivery), [418, 418]);
    assert!(first_error(&delivery).contains("418"), "{delivery}");
    receiver.next().await;
    let id = delivery["id"].as_str().unwrap();
    let path = format!("/v1/webhook_endpoints/{endpoint}/deliveries/{id}/redeliver");
    let (status, again) = server.post_empty(&path).await;
    assert_eq!((status.as_u16(), &again["status"]), (200, &json!("pending")));
    assert_eq!(receiver.next().await.body, first.body);
    let delivery = server.delivery_when(&endpoint, "delivered").await;
    assert_eq!(codes(&delivery), [418, 418, 200]);
    let failed = format!("/v1/webhook_endpoints/{endpoint}/deliveries?status=failed");
    assert_eq!(server.get(&failed).await.1["data"], json!([]));
}

#[tokio::test]
async fn a_receiver_that_asks_for_time_gets_it() {
    let server = server().await;
    let wait = |_| (Code::SERVICE_UNAVAILABLE, [("retry-after", "3600")]).into_response();
    let mut receiver = Receiver::start(wait).await;
    let (endpoint, _) = server.endpoint(&receiver.url()).await;
    server.cancelled_job().await;
    receiver.next().await;
    let delivery = until("the attempt is recorded", async || {
        let delivery = server.delivery_when(&endpoint, "pending").await;
        (!codes(&delivery).is_empty()).then_some(delivery)
    })
    .await;
    let time = |value: &Value| value.as_i64().unwrap();
    let pause = time(&delivery["next_attempt_at"]) - time(&delivery["attempts"][0]["created_at"]);
    assert!((3600..=3620).contains(&pause), "{pause}");
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_not_asked_again() {
    let server = server().await;
    let mut receiver = Receiver::always(410).await;
    let (endpoint, _) = server.endpoint(&receiver.url()).await;
    server.cancelled_job().await;
    receiver.next().await;
    let delivery = server.delivery_when(&endpoint, "failed").await;
    assert_eq!(codes(&delivery), [410]);
    let path = format!("/v1/webhook_endpoints/{endpoint}");
    let (_, shown) = server.get(&path).await;
    assert!(shown["finetuned"]["disabled_at"].is_i64(), "{shown}");
    assert_eq!(shown["finetuned"]["disabled_reason"], "It answered 410 Gone.");
    let again = format!("{path}/deliveries/{}/redeliver", delivery["id"].as_str().unwrap());
    let (status, error) = server.post_empty(&again).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains("is disabled"), "{error}");
    let healthy = Receiver::always(200).await;
    let (_, shown) = server.post(&path, &json!({"url": healthy.url()})).await;
    assert_eq!(shown["finetuned"]["disabled_at"], Value::Null);
    assert_eq!(server.post_empty(&again).await.0, 200);
    server.delivery_when(&endpoint, "delivered").await;
}

#[tokio::test]
async fn a_slow_receiver_fails_and_holds_up_no_other() {
    // Times that end by themselves would make this test pass: the slow one has much of it.
    let server = server_with(|config| {
        config.timeout = Duration::from_secs(60);
        config.at_once = 2;
    })
    .await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/hook", silent.local_addr().unwrap().port());
    let (slow, _) = server.endpoint(&url).await;
    let mut receiver = Receiver::always(200).await;
    let (quick, _) = server.endpoint(&receiver.url()).await;
    server.cancelled_job().await;
    receiver.next().await;
    server.delivery_when(&quick, "delivered").await;
    let waiting = server.delivery_when(&slow, "pending").await;
    assert!(codes(&waiting).is_empty(), "{waiting}");
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_in_time_has_failed() {
    let server = server_with(|config| {
        config.timeout = Duration::from_millis(100);
        config.retries.clear();
    })
    .await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/hook", silent.local_addr().unwrap().port());
    let (endpoint, _) = server.endpoint(&url).await;
    server.cancelled_job().await;
    let delivery = server.delivery_when(&endpoint, "failed").await;
    assert_eq!(codes(&delivery), [Value::Null]);
    assert_eq!(first_error(&delivery), "there was no answer within 100ms");
}

#[tokio::test]
async fn an_endless_reply_is_not_read_to_its_end() {
    let server = server().await;
    let endless = |_| {
        let chunk = || Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 16 << 10]));
        Body::from_stream(futures::stream::repeat_with(chunk)).into_response()
    };
    let mut receiver = Receiver::start(endless).await;
    let (endpoint, _) = server.endpoint(&receiver.url()).await;
    server.cancelled_job().await;
    receiver.next().await;
    assert_eq!(codes(&server.delivery_when(&endpoint, "delivered").await), [200]);
}

#[tokio::test]
async fn both_secrets_sign_while_the_old_one_is_kept() {
    let server = server().await;
    let mut receiver = Receiver::always(200).await;
    let (endpoint, old) = server.endpoint(&receiver.url()).await;
    let path = format!("/v1/webhook_endpoints/{endpoint}/rotate_secret");
    let keep = json!({"keep_old_secret_active_for_24_hours": true});
    let (status, rotated) = server.post(&path, &keep).await;
    assert_eq!(status, 200, "{rotated}");
    let new = rotated["signing_secret"].as_str().unwrap();
    assert_ne!(new, old);
    let end = new.trim_end_matches('=');
    let hint = format!("whsec_...{}", &end[end.len() - 4..]);
    assert_eq!(rotated["signing_secret_hint"], hint);
    server.cancelled_job().await;
    let arrived = receiver.next().await;
    let both = format!("{} {}", signature(new, &arrived), signature(&old, &arrived));
    assert_eq!(arrived.header("webhook-signature"), both);
    // Without a body, the old one ends at once.
    let (status, rotated) = server.post_empty(&path).await;
    assert_eq!(status, 200, "{rotated}");
    server.cancelled_job().await;
    let arrived = receiver.next().await;
    let newest = rotated["signing_secret"].as_str().unwrap();
    assert_eq!(arrived.header("webhook-signature"), signature(newest, &arrived));
}

#[tokio::test]
async fn a_private_address_is_refused_when_it_is_named_and_when_it_is_resolved() {
    let server = server_with(|config| {
        config.allow.clear();
        config.retries.clear();
    })
    .await;
    let create = async |url: &str| {
        let body = json!({"name": "n", "url": url, "event_types": ALL});
        server.post("/v1/webhook_endpoints", &body).await
    };
    for url in ["https://127.0.0.1/", "https://169.254.169.254/", "https://[::ffff:10.0.0.1]/"] {
        let (status, error) = create(url).await;
        assert_eq!(status, 400, "{url}");
        let (code, param, message) = error_of(&error);
        assert_eq!((code, param), (json!("invalid_value"), json!("url")));
        assert!(message.contains("is not a public one"), "{message}");
    }
    let (status, endpoint) = create("https://localhost:1/").await;
    assert_eq!(status, 200);
    let id = endpoint["id"].as_str().unwrap();
    server.cancelled_job().await;
    let delivery = server.delivery_when(id, "failed").await;
    assert!(first_error(&delivery).contains("'localhost' has no public address"), "{delivery}");
    let test = json!({"event_type": ALL[0]});
    let (status, error) = server.post(&format!("/v1/webhook_endpoints/{id}/test"), &test).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains("could not be reached"), "{error}");
}

#[tokio::test]
async fn a_test_is_sent_at_once_and_tells_the_status() {
    let server = server().await;
    let mut receiver = Receiver::always(503).await;
    let (endpoint, secret) = server.endpoint(&receiver.url()).await;
    let path = format!("/v1/webhook_endpoints/{endpoint}/test");
    let (status, result) = server.post(&path, &json!({"event_type": ALL[3]})).await;
    assert_eq!(status, 200);
    let expected = json!({"object": "webhook_endpoint.test", "event_type": ALL[3], "status_code": 503,
                          "success": true, "webhook_endpoint_id": endpoint});
    assert_eq!(result, expected);
    let arrived = receiver.next().await;
    assert_eq!(arrived.header("webhook-signature"), signature(&secret, &arrived));
    assert_eq!(
        (&arrived.json()["type"], &arrived.json()["data"]),
        (&json!(ALL[3]), &json!({"id": "evalrun_test"}))
    );
    let (_, list) = server.get(&format!("/v1/webhook_endpoints/{endpoint}/deliveries")).await;
    assert_eq!(list["data"], json!([]), "a test is no delivery");
}

#[tokio::test]
async fn endpoints_are_created_listed_changed_and_deleted() {
    let server = server_with(|config| config.max_endpoints = 3).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(server.endpoint(&format!("https://hooks.example.com/{n}")).await.0);
    }
    let body = json!({"name": "n", "url": "https://x.example", "event_types": [ALL[0]]});
    let (status, error) = server.post("/v1/webhook_endpoints", &body).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains("3 webhook endpoints"), "{error}");
    let (_, page) = server.get("/v1/webhook_endpoints?limit=2").await;
    let listed = |page: &Value| -> Vec<Value> {
        page["data"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect()
    };
    assert_eq!(listed(&page), [ids[2].as_str(), &ids[1]]);
    assert_eq!((&page["has_more"], &page["last_id"]), (&json!(true), &json!(ids[1])));
    let (_, rest) = server.get(&format!("/v1/webhook_endpoints?limit=2&after={}", ids[1])).await;
    assert_eq!(listed(&rest), [ids[0].as_str()]);

    let path = format!("/v1/webhook_endpoints/{}", ids[0]);
    let (_, before) = server.get(&path).await;
    assert_eq!(before["object"], "webhook_endpoint");
    assert!(before.get("signing_secret").is_none(), "{before}");
    let wish = json!({"event_types": [ALL[1], ALL[1]], "name": "renamed"});
    let (status, after) = server.post(&path, &wish).await;
    assert_eq!(status, 200);
    assert_eq!((&after["event_types"], &after["name"]), (&json!([ALL[1]]), &json!("renamed")));
    assert_eq!(after["url"], before["url"]);
    let (_, gone) = server.delete(&path).await;
    let expected = json!({"id": ids[0], "object": "webhook_endpoint.deleted", "deleted": true});
    assert_eq!(gone, expected);
    for (status, error) in
        [server.get(&path).await, server.delete(&path).await, server.post(&path, &wish).await]
    {
        assert_eq!(status, 404);
        let (_, param, message) = error_of(&error);
        assert_eq!(param, "webhook_endpoint_id");
        assert_eq!(message, format!("Webhook endpoint not found: {}", ids[0]));
    }
    let (_, types) = server.get("/v1/webhook_event_types").await;
    assert_eq!(types, json!({"object": "list", "data": ALL}));
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let server = server().await;
    let (endpoint, _) = server.endpoint("https://hooks.example.com/").await;
    let path = format!("/v1/webhook_endpoints/{endpoint}");
    let good = json!({"name": "n", "url": "https://hooks.example.com/", "event_types": [ALL[0]]});
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    let without = |key: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(key);
        body
    };
    let new = "/v1/webhook_endpoints";
    let (rotate, test) = (format!("{path}/rotate_secret"), format!("{path}/test"));
    for (path, body, code, param) in [
        (new, without("name"), "missing_required_parameter", "name"),
        (new, without("url"), "missing_required_parameter", "url"),
        (new, without("event_types"), "missing_required_parameter", "event_types"),
        (new, with("name", json!(5)), "invalid_type", "name"),
        (new, with("name", json!("")), "invalid_value", "name"),
        (new, with("name", json!("x".repeat(257))), "string_above_max_length", "name"),
        (new, with("colour", json!("red")), "unknown_parameter", "colour"),
        (new, with("url", json!("http://example.com/")), "invalid_value", "url"),
        (new, with("url", json!("no url")), "invalid_value", "url"),
        (new, with("url", json!("https://u:p@example.com/")), "invalid_value", "url"),
        (new, with("event_types", json!([])), "empty_array", "event_types"),
        (new, with("event_types", json!("x")), "invalid_type", "event_types"),
        (new, with("event_types", json!([ALL[0], "x"])), "invalid_value", "event_types[1]"),
        (path.as_str(), json!({"url": "http://example.com/"}), "invalid_value", "url"),
        (path.as_str(), json!({"secret": "x"}), "unknown_parameter", "secret"),
        (rotate.as_str(), json!({"keep": true}), "unknown_parameter", "keep"),
        (test.as_str(), json!({}), "missing_required_parameter", "event_type"),
        (test.as_str(), json!({"event_type": "x"}), "invalid_value", "event_type"),
    ] {
        let (status, error) = server.post(path, &body).await;
        assert_eq!(status, 400, "{path} {body}: {error}");
        let (got_code, got_param, _) = error_of(&error);
        assert_eq!((got_code, got_param), (json!(code), json!(param)), "{body}");
    }
    let (status, error) = server.get(&format!("{path}/deliveries?status=lost")).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("status")));
    let again = format!("{path}/deliveries/whd_none/redeliver");
    let (status, error) = server.post_empty(&again).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (404, json!("delivery_id")));
}

#[tokio::test]
async fn a_shutdown_waits_for_no_receiver_and_leaves_the_delivery_to_the_next_server() {
    let mut server = server_with(|config| config.timeout = Duration::from_secs(600)).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/hook", silent.local_addr().unwrap().port());
    server.endpoint(&url).await;
    server.cancelled_job().await;
    let (connection, _) = silent.accept().await.unwrap();
    server.shutdown.cancel();
    let served = tokio::time::timeout(PATIENCE, server.served.take().unwrap()).await;
    served.expect("the server waits for a receiver").unwrap().unwrap();
    drop((connection, silent));
    assert_eq!(
        server.data.value("select count(*) from webhook_endpoints where claim_until is null").await,
        "1"
    );
    let pending = "select status from webhook_deliveries";
    assert_eq!(server.data.value(pending).await, "pending");
}
