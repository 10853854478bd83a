//! Events of jobs as they happen: from any place, to any number of readers, from any server.

mod common;

use std::time::Duration;

use common::worker::{Worker, metrics};
use common::{KEY, MODEL, PATIENCE, TestServer, error_of, rows};
use domain::report::{RunReport, RunStarted};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

async fn server() -> TestServer {
    TestServer::start().await.with_model().await
}

/// A job that waits in the queue, and the path of its events.
async fn queued(server: &TestServer) -> (String, String) {
    let file = server.upload(&rows(12)).await;
    let job = server.create_job(&json!({"model": MODEL, "training_file": file})).await;
    server.job_when(&job, "queued").await;
    let path = format!("/v1/fine_tuning/jobs/{job}/events?stream=true");
    (job, path)
}

/// A stream that is read frame by frame.
struct Stream {
    response: Response,
    unread: String,
}

impl Stream {
    async fn open(server: &TestServer, path: &str, last: Option<&str>) -> Self {
        let mut request = server.request(Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, unread: String::new() }
    }

    /// The next frame's lines; none at the end.
    async fn frame(&mut self) -> Option<String> {
        loop {
            if let Some((frame, rest)) = self.unread.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.unread = rest;
                return Some(frame);
            }
            let chunk =
                tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("a frame");
            self.unread.push_str(std::str::from_utf8(&chunk.unwrap()?).unwrap());
        }
    }

    /// (id, event) of the next event.
    async fn event(&mut self) -> (String, Value) {
        let frame = self.frame().await.expect("an event");
        let (id, data) = frame.split_once('\n').unwrap();
        let id = id.strip_prefix("id: ").unwrap().to_owned();
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(event["id"], json!(id));
        assert_eq!(event["object"], "fine_tuning.job.event");
        (id, event)
    }

    async fn message(&mut self) -> String {
        self.event().await.1["message"].as_str().unwrap().to_owned()
    }

    /// The id of the event behind all that is said of the files.
    async fn validated(&mut self) -> String {
        loop {
            let (id, event) = self.event().await;
            if event["message"].as_str().unwrap().starts_with("Files validated") {
                return id;
            }
        }
    }

    async fn ends(&mut self) {
        assert_eq!(self.frame().await.as_deref(), Some("data: [DONE]"));
        assert_eq!(self.frame().await, None);
    }
}

fn started() -> RunReport {
    RunReport::Started(RunStarted {
        completed_steps: 0,
        total_steps: 400,
        train_examples: 12,
        valid_examples: 0,
        tokens_per_epoch: 300,
        trainable_parameters: 1000,
    })
}

#[tokio::test]
async fn a_stream_begins_with_what_was_and_goes_on_with_what_happens() {
    let server = server().await;
    let (job, path) = queued(&server).await;
    let mut early = Stream::open(&server, &path, None).await;
    assert!(early.message().await.starts_with("Created fine-tuning job"));
    assert!(early.message().await.starts_with("Validating training file"));
    let validated = early.validated().await;
    let run = Worker::of(&server).claim(20).await.unwrap();
    // More at once than is kept for readers: they fetch it, and still get all in order.
    let steps: Vec<RunReport> = (1..=150).map(|step| RunReport::Step(metrics(step, 400))).collect();
    run.report(0, &[started()]).await;
    assert_eq!(early.message().await, "Fine-tuning job started");
    run.report(1, &steps).await;
    for step in 1..=150 {
        assert_eq!(early.event().await.1["data"]["step"], step);
    }
    // After a lost connection: by the header, which wins over the address, or by the address.
    let mut late = Stream::open(&server, &format!("{path}&after=x"), Some(&validated)).await;
    assert_eq!(late.message().await, "Fine-tuning job started");
    let mut later = Stream::open(&server, &format!("{path}&after={validated}"), None).await;
    assert_eq!(later.message().await, "Fine-tuning job started");
    server.post_empty(&format!("/v1/fine_tuning/jobs/{job}/cancel")).await;
    assert_eq!(early.message().await, "Fine-tuning job cancelled");
    early.ends().await;
    // Of a job that has ended: all that was, and the end.
    let mut whole = Stream::open(&server, &path, None).await;
    for expected in server.messages(&job).await {
        assert_eq!(whole.message().await, expected);
    }
    whole.ends().await;
}

#[tokio::test]
async fn events_of_another_server_arrive_at_every_reader() {
    let server = server().await;
    let (job, path) = queued(&server).await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        let mut reader = Stream::open(&server, &path, None).await;
        reader.validated().await;
        readers.push(reader);
    }
    // Another process: it rings no bell here.
    let other = TestServer::beside(&server).await;
    let (status, _) = other.post_empty(&format!("/v1/fine_tuning/jobs/{job}/pause")).await;
    assert_eq!(status, 200);
    for reader in &mut readers {
        assert_eq!(reader.message().await, "Fine-tuning job paused");
    }
    other.post_empty(&format!("/v1/fine_tuning/jobs/{job}/cancel")).await;
    for reader in &mut readers {
        assert_eq!(reader.message().await, "Fine-tuning job cancelled");
        reader.ends().await;
    }
}

#[tokio::test]
async fn streams_are_refused_as_lists_are() {
    let server = server().await;
    let (_, path) = queued(&server).await;
    let anonymous = server.http.get(format!("{}{path}", server.base)).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    let (status, error) = server.get("/v1/fine_tuning/jobs/ftjob-none/events?stream=true").await;
    assert_eq!((status.as_u16(), error_of(&error).0), (404, json!("fine_tune_not_found")));
    let (status, error) = server.get(&format!("{path}&after=ftevent-none")).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("after")));
    let (status, error) = server.get(&path.replace("true", "maybe")).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("stream")));
    // A key of another project sees no job at all.
    server
        .data
        .sql("insert into projects (id, organization_id, name) values ('proj_other', 'org-default', 'x')")
        .await
        .unwrap();
    server
        .data
        .sql(&format!(
            "insert into api_keys (id, project_id, kind, name, secret_sha256, last_four)
             values ('key_other', 'proj_other', 'project', 'x', sha256('{KEY}x'), 'xxxx')"
        ))
        .await
        .unwrap();
    let request = server.http.get(format!("{}{path}", server.base));
    let foreign = request.header("authorization", format!("Bearer {KEY}x")).send().await.unwrap();
    assert_eq!(foreign.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams_without_an_end() {
    let mut server = server().await;
    let (_, path) = queued(&server).await;
    let mut reader = Stream::open(&server, &path, None).await;
    reader.validated().await;
    server.shutdown.cancel();
    assert_eq!(reader.frame().await, None, "no [DONE]: the client shall come back");
    let served = server.served.take().unwrap();
    tokio::time::timeout(Duration::from_secs(10), served).await.unwrap().unwrap().unwrap();
}
