//! Creations that are asked for twice: of every kind there is one object, and all requests are answered with it.

mod common;

use common::{FORM_TYPE, Part, TestServer, error_of, form, text, until};
use futures::future::join_all;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

const KEY: &str = "idempotency-key";
const TRIES: &str = "x-stainless-retry-count";

/// A kind of object: how one is created, by a name that makes requests differ, and how it is deleted.
struct Kind<'a> {
    server: &'a TestServer,
    /// The evaluation of the runs.
    eval: &'a str,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    File,
    Upload,
    Eval,
    EvalRun,
    WebhookEndpoint,
}

const KINDS: [What; 5] =
    [What::File, What::Upload, What::Eval, What::EvalRun, What::WebhookEndpoint];

impl Kind<'_> {
    fn request(&self, name: &str) -> RequestBuilder {
        let post = |path: &str| self.server.request(Method::POST, path);
        match self.what {
            What::File => {
                let content = [name.as_bytes(), b"\n"].concat();
                let file = Part { name: "file", filename: Some("a.jsonl"), content: &content };
                let parts = form(&[text("purpose", "evals"), file]);
                post("/v1/files").header("content-type", FORM_TYPE).body(parts)
            }
            What::Upload => post("/v1/uploads").json(&json!({"purpose": "evals", "bytes": 4,
                "filename": format!("{name}.jsonl"), "mime_type": "text/jsonl"})),
            What::Eval => post("/v1/evals").json(&definition(name)),
            What::EvalRun => {
                let source = json!({"type": "file_content", "content": [{"item": {"label": "a"}}]});
                let data = json!({"type": "jsonl", "source": source});
                let run = json!({"name": name, "data_source": data});
                post(&format!("/v1/evals/{}/runs", self.eval)).json(&run)
            }
            What::WebhookEndpoint => post("/v1/webhook_endpoints").json(&json!({"name": name,
                "url": "https://example.com/hook", "event_types": ["eval.run.failed"]})),
        }
    }

    /// Creates one, with a header, and gives the answer.
    async fn ask(&self, name: &str, header: (&str, &str)) -> (StatusCode, Value) {
        let request = self.request(name).header(header.0, header.1);
        common::body(request.send().await.unwrap()).await
    }

    /// The same, of an answer with success: its object's id.
    async fn create(&self, name: &str, header: (&str, &str)) -> String {
        let (status, object) = self.ask(name, header).await;
        assert!(status.is_success(), "{:?}: {status} {object}", self.what);
        object["id"].as_str().unwrap().to_owned()
    }

    fn path(&self, id: &str) -> String {
        match self.what {
            What::File => format!("/v1/files/{id}"),
            What::Upload => format!("/v1/uploads/{id}"),
            What::Eval => format!("/v1/evals/{id}"),
            What::EvalRun => format!("/v1/evals/{}/runs/{id}", self.eval),
            What::WebhookEndpoint => format!("/v1/webhook_endpoints/{id}"),
        }
    }
}

fn definition(name: &str) -> Value {
    json!({
        "name": name,
        "data_source_config": {"type": "custom", "item_schema": {"type": "object",
            "properties": {"label": {"type": "string"}}, "required": ["label"]}},
        "testing_criteria": [{"type": "string_check", "name": "same", "operation": "eq",
            "input": "{{ item.label }}", "reference": "a"}],
    })
}

async fn server() -> (TestServer, String) {
    let server = TestServer::start().await;
    let (status, made) = server.post("/v1/evals", &definition("of the runs")).await;
    assert_eq!(status, 201, "{made}");
    let id = made["id"].as_str().unwrap().to_owned();
    (server, id)
}

#[tokio::test]
async fn a_retry_of_a_client_makes_no_second_object() {
    let (server, eval) = server().await;
    for what in KINDS {
        let kind = Kind { server: &server, eval: &eval, what };
        let first = kind.create("a", (TRIES, "0")).await;
        assert_eq!(kind.create("a", (TRIES, "1")).await, first, "{what:?}");
        assert_ne!(kind.create("b", (TRIES, "1")).await, first, "{what:?}: another request");
        let second = kind.create("a", (TRIES, "0")).await;
        assert_ne!(second, first, "{what:?}: who asks twice gets two");
        assert_eq!(kind.create("a", (TRIES, "2")).await, second, "{what:?}");
    }
}

#[tokio::test]
async fn a_key_means_one_request() {
    let (server, eval) = server().await;
    for what in KINDS {
        let kind = Kind { server: &server, eval: &eval, what };
        // One key for all kinds: each kind has its own.
        let first = kind.create("a", (KEY, "k")).await;
        assert_eq!(kind.create("a", (KEY, "k")).await, first, "{what:?}");
        let (status, error) = kind.ask("b", (KEY, "k")).await;
        assert_eq!(status, 400, "{what:?}: {error}");
        assert!(error_of(&error).2.contains("Idempotency-Key"), "{what:?}: {error}");
    }
}

#[tokio::test]
async fn like_requests_at_the_same_time_make_one_object() {
    let (server, eval) = server().await;
    for what in KINDS {
        let kind = Kind { server: &server, eval: &eval, what };
        let ids = join_all((0..6).map(|_| kind.create("a", (KEY, "at once")))).await;
        assert!(ids.iter().all(|id| *id == ids[0]), "{what:?}: {ids:?}");
        assert_eq!(server.get(&kind.path(&ids[0])).await.0, 200, "{what:?}");
    }
}

#[tokio::test]
async fn what_was_deleted_is_created_anew() {
    let (server, eval) = server().await;
    // An upload cannot be deleted.
    for what in KINDS.into_iter().filter(|what| *what != What::Upload) {
        let kind = Kind { server: &server, eval: &eval, what };
        let first = kind.create("a", (KEY, "k")).await;
        if what == What::EvalRun {
            until("the run has ended", async || {
                let (_, run) = server.get(&kind.path(&first)).await;
                (run["status"] == "completed").then_some(())
            })
            .await;
        }
        assert_eq!(server.delete(&kind.path(&first)).await.0, 200, "{what:?}");
        let second = kind.create("a", (KEY, "k")).await;
        assert_ne!(second, first, "{what:?}");
        assert_eq!(server.get(&kind.path(&second)).await.0, 200, "{what:?}");
    }
}

#[tokio::test]
async fn the_same_run_of_another_evaluation_is_another_request() {
    let (server, eval) = server().await;
    let (_, other) = server.post("/v1/evals", &definition("other")).await;
    let kind = Kind { server: &server, eval: &eval, what: What::EvalRun };
    let first = kind.create("a", (TRIES, "0")).await;
    let elsewhere = Kind { eval: other["id"].as_str().unwrap(), ..kind };
    assert_ne!(elsewhere.create("a", (TRIES, "1")).await, first);
}

#[tokio::test]
async fn content_that_came_twice_is_stored_once() {
    let (server, eval) = server().await;
    let kind = Kind { server: &server, eval: &eval, what: What::File };
    let first = kind.create("a", (TRIES, "0")).await;
    kind.create("a", (TRIES, "1")).await;
    let (_, list) = server.get("/v1/files").await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "{list}");
    until("one blob is left", async || (server.blobs().len() == 1).then_some(())).await;
    assert_eq!(server.get(&format!("/v1/files/{first}/content")).await.1, json!("a\n"));
}

#[tokio::test]
async fn an_endpoint_s_secret_is_told_to_a_repetition() {
    let (server, eval) = server().await;
    let kind = Kind { server: &server, eval: &eval, what: What::WebhookEndpoint };
    let (_, first) = kind.ask("a", (TRIES, "0")).await;
    let (_, again) = kind.ask("a", (TRIES, "1")).await;
    assert!(first["signing_secret"].is_string(), "{first}");
    assert_eq!(first, again);
}
