//! Uploads in parts: what becomes a file, what is refused, and that every end is the only one.

mod common;

use std::time::Duration;

use bytesize::ByteSize;
use common::{FORM_TYPE, MODEL, Part, TestServer, body, error_of, form, rows, text, until};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use store::{KeyKind, Project, keys};

fn announced(bytes: usize) -> Value {
    json!({"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": bytes,
           "mime_type": "application/jsonl"})
}

fn data(content: &[u8]) -> Part<'_> {
    Part { name: "data", filename: Some("upload"), content }
}

async fn begin(server: &TestServer, bytes: usize) -> String {
    let (status, upload) = server.post("/v1/uploads", &announced(bytes)).await;
    assert_eq!(status, 200, "{upload}");
    upload["id"].as_str().unwrap().to_owned()
}

async fn send(server: &TestServer, upload: &str, parts: &[Part<'_>]) -> (StatusCode, Value) {
    let request = server.request(Method::POST, &format!("/v1/uploads/{upload}/parts"));
    body(request.header("content-type", FORM_TYPE).body(form(parts)).send().await.unwrap()).await
}

async fn add(server: &TestServer, upload: &str, content: &[u8]) -> String {
    let (status, part) = send(server, upload, &[data(content)]).await;
    assert_eq!((status.as_u16(), &part["object"]), (200, &json!("upload.part")), "{part}");
    assert_eq!(part["upload_id"], *upload);
    part["id"].as_str().unwrap().to_owned()
}

async fn complete(server: &TestServer, upload: &str, request: Value) -> (StatusCode, Value) {
    server.post(&format!("/v1/uploads/{upload}/complete"), &request).await
}

async fn cancel(server: &TestServer, upload: &str) -> (StatusCode, Value) {
    server.post_empty(&format!("/v1/uploads/{upload}/cancel")).await
}

async fn status_of(server: &TestServer, upload: &str) -> Value {
    server.get(&format!("/v1/uploads/{upload}")).await.1["status"].clone()
}

/// (status, code, param) of a refusal; the message must hold `text`.
fn refused((status, error): (StatusCode, Value), text: &str) -> (u16, Value, Value) {
    let (code, param, message) = error_of(&error);
    assert!(message.contains(text), "{message}");
    (status.as_u16(), code, param)
}

#[tokio::test]
async fn parts_sent_in_any_order_become_the_file_that_is_trained_on() {
    let server = TestServer::start().await.with_model().await;
    let content = rows(24);
    let (status, upload) = server.post("/v1/uploads", &announced(content.len())).await;
    let created = upload["created_at"].as_i64().unwrap();
    let expected = json!({
        "id": upload["id"], "object": "upload", "bytes": content.len(), "created_at": created,
        "expires_at": created + 3600, "filename": "rows.jsonl", "purpose": "fine-tune",
        "status": "pending", "file": null,
    });
    assert_eq!((status.as_u16(), &upload), (200, &expected));
    let id = upload["id"].as_str().unwrap();
    // Cut in the middle of lines, and sent at the same time.
    let (head, rest) = content.split_at(100);
    let (middle, tail) = rest.split_at(1000);
    let (tail, head, middle) =
        tokio::join!(add(&server, id, tail), add(&server, id, head), add(&server, id, middle));
    let (_, pending) = server.get(&format!("/v1/uploads/{id}")).await;
    let received: u64 =
        pending["parts"].as_array().unwrap().iter().map(|p| p["bytes"].as_u64().unwrap()).sum();
    assert_eq!((received as usize, &pending["status"]), (content.len(), &json!("pending")));
    let (status, done) = complete(&server, id, json!({"part_ids": [head, middle, tail]})).await;
    assert_eq!((status.as_u16(), &done["status"]), (200, &json!("completed")), "{done}");
    let file = done["file"]["id"].as_str().unwrap();
    let same = server.get(&format!("/v1/files/{file}")).await;
    assert_eq!(same, (StatusCode::OK, done["file"].clone()));
    let path = format!("/v1/files/{file}/content");
    let read = server.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(read.bytes().await.unwrap(), content);
    let part = server.request(Method::GET, &path).header("range", "bytes=90-1110").send().await;
    assert_eq!(part.unwrap().bytes().await.unwrap(), content[90..=1110]);
    let job = server.create_job(&json!({"model": MODEL, "training_file": file})).await;
    server.job_when(&job, "queued").await;
    let (status, error) = server.delete(&format!("/v1/files/{file}")).await;
    assert_eq!(status, 400, "{error}");
    server.post_empty(&format!("/v1/fine_tuning/jobs/{job}/cancel")).await;
    let before = server.blobs().len();
    assert_eq!(server.delete(&format!("/v1/files/{file}")).await.0, 200);
    let gone = async || (server.blobs().len() + 3 == before).then_some(());
    until("the three parts are removed", gone).await;
    let (_, upload) = server.get(&format!("/v1/uploads/{id}")).await;
    assert_eq!((&upload["status"], &upload["file"]), (&json!("completed"), &Value::Null));
}

#[tokio::test]
async fn completions_at_once_and_repeated_ones_give_the_same_file() {
    let server = TestServer::start().await;
    let content = vec![b'x'; 300_000];
    let id = begin(&server, content.len()).await;
    let part = add(&server, &id, &content).await;
    let wrong = json!({"part_ids": [part], "md5": "0".repeat(32)});
    let wrong = complete(&server, &id, wrong).await;
    assert_eq!(refused(wrong, "md5"), (400, json!("invalid_value"), json!("md5")));
    // As `md5sum` has it.
    let right = "d408ed46ebcc326f9e7c6bb9c77af1cd";
    let request = json!({"part_ids": [part], "md5": right});
    let (a, b, c) = tokio::join!(
        complete(&server, &id, request.clone()),
        complete(&server, &id, request.clone()),
        complete(&server, &id, request.clone())
    );
    assert_eq!((a.0.as_u16(), &a.1), (200, &b.1), "{a:?}");
    assert_eq!(b, c);
    assert_eq!(complete(&server, &id, request).await, a);
    assert_eq!(complete(&server, &id, json!({"part_ids": [part]})).await, a);
    let (_, files) = server.get("/v1/files").await;
    assert_eq!(files["data"], json!([a.1["file"]]));
    // What asks for something else, or comes too late.
    for other in [json!({"part_ids": []}), json!({"part_ids": [part], "md5": "0".repeat(32)})] {
        let other = complete(&server, &id, other).await;
        assert_eq!(refused(other, "completed already"), (400, Value::Null, Value::Null));
    }
    let late = send(&server, &id, &[data(b"late")]).await;
    assert_eq!(refused(late, "'completed'"), (400, Value::Null, Value::Null));
    let late = cancel(&server, &id).await;
    assert_eq!(refused(late, "'completed'"), (400, Value::Null, Value::Null));
    assert_eq!(status_of(&server, &id).await, "completed");
}

#[tokio::test]
async fn a_refused_completion_leaves_the_upload_as_it_was() {
    let server = TestServer::start().await;
    let (id, other) = (begin(&server, 6).await, begin(&server, 3).await);
    let (a, b) = (add(&server, &id, b"abc").await, add(&server, &id, b"def").await);
    let foreign = add(&server, &other, b"abc").await;
    let invalid = || json!("invalid_value");
    for (request, text, expected) in [
        (json!({"part_ids": [a]}), "3 bytes together", (400, invalid(), json!("part_ids"))),
        (json!({"part_ids": [a, a]}), "more than once", (400, invalid(), json!("part_ids"))),
        (json!({"part_ids": [a, b, foreign]}), &foreign, (400, invalid(), json!("part_ids"))),
        (json!({"part_ids": [a, "part_x"]}), "part_x", (400, invalid(), json!("part_ids"))),
        (json!({"part_ids": [a, b], "md5": "abc"}), "32", (400, invalid(), json!("md5"))),
        (json!({"part_ids": [a, b], "md5": "0".repeat(32)}), "md5", (400, invalid(), json!("md5"))),
        (json!({}), "part_ids", (400, json!("missing_required_parameter"), json!("part_ids"))),
        (json!({"part_ids": a}), "array", (400, json!("invalid_type"), json!("part_ids"))),
        (
            json!({"part_ids": [a, 5]}),
            "a string",
            (400, json!("invalid_type"), json!("part_ids[1]")),
        ),
        (
            json!({"part_ids": [a, b], "sha1": "x"}),
            "sha1",
            (400, json!("unknown_parameter"), json!("sha1")),
        ),
    ] {
        assert_eq!(refused(complete(&server, &id, request).await, text), expected);
    }
    assert_eq!(status_of(&server, &id).await, "pending");
    let (status, done) = complete(&server, &id, json!({"part_ids": [b, a]})).await;
    assert_eq!(status, 200, "{done}");
    let path = format!("/v1/files/{}/content", done["file"]["id"].as_str().unwrap());
    let read = server.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(read.text().await.unwrap(), "defabc");
}

#[tokio::test]
async fn a_cancelled_upload_is_over_and_its_parts_go() {
    let server = TestServer::start().await;
    let id = begin(&server, 3).await;
    let part = add(&server, &id, b"abc").await;
    for _ in 0..2 {
        let (status, upload) = cancel(&server, &id).await;
        assert_eq!((status.as_u16(), &upload["status"]), (200, &json!("cancelled")), "{upload}");
    }
    let late = complete(&server, &id, json!({"part_ids": [part]})).await;
    assert_eq!(refused(late, "'cancelled'"), (400, Value::Null, Value::Null));
    let late = send(&server, &id, &[data(b"abc")]).await;
    assert_eq!(refused(late, "'cancelled'"), (400, Value::Null, Value::Null));
    until("the parts are removed", async || server.blobs().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_cancel_and_a_completion_exclude_each_other() {
    let server = TestServer::start().await;
    for round in 0..8 {
        let id = begin(&server, 3).await;
        let part = add(&server, &id, b"abc").await;
        let request = json!({"part_ids": [part]});
        let (completed, cancelled) = if round % 2 == 0 {
            tokio::join!(complete(&server, &id, request), cancel(&server, &id))
        } else {
            let (b, a) = tokio::join!(cancel(&server, &id), complete(&server, &id, request));
            (a, b)
        };
        let codes = [completed.0.as_u16(), cancelled.0.as_u16()];
        assert!(codes == [200, 400] || codes == [400, 200], "{completed:?} {cancelled:?}");
        let wins = if codes[0] == 200 { "completed" } else { "cancelled" };
        assert_eq!(status_of(&server, &id).await, wins);
        let (_, files) = server.get("/v1/files").await;
        let files = files["data"].as_array().unwrap().clone();
        assert_eq!(files.len(), usize::from(codes[0] == 200));
        for file in files {
            server.delete(&format!("/v1/files/{}", file["id"].as_str().unwrap())).await;
        }
    }
}

#[tokio::test]
async fn an_upload_expires_after_its_time() {
    let server = TestServer::with(|config| config.upload_lifetime = Duration::from_millis(1)).await;
    let id = begin(&server, 3).await;
    until("it has expired", async || (status_of(&server, &id).await == "expired").then_some(()))
        .await;
    for late in [
        send(&server, &id, &[data(b"abc")]).await,
        complete(&server, &id, json!({"part_ids": []})).await,
        cancel(&server, &id).await,
    ] {
        assert_eq!(refused(late, "'expired'"), (400, Value::Null, Value::Null));
    }
}

#[tokio::test]
async fn an_upload_of_nothing_and_one_with_a_life_become_files() {
    let server = TestServer::start().await;
    let id = begin(&server, 0).await;
    let (status, done) = complete(&server, &id, json!({"part_ids": []})).await;
    assert_eq!((status.as_u16(), &done["file"]["bytes"]), (200, &json!(0)), "{done}");
    let path = format!("/v1/files/{}/content", done["file"]["id"].as_str().unwrap());
    let read = server.request(Method::GET, &path).send().await.unwrap();
    assert_eq!((read.status().as_u16(), read.bytes().await.unwrap().len()), (200, 0));
    for (purpose, after, shown, life) in [
        ("fine-tune", json!({"anchor": "created_at", "seconds": 3600}), "fine-tune", 3600),
        ("evals", json!({"anchor": "created_at", "seconds": 2_592_000}), "user_data", 2_592_000),
        ("batch", Value::Null, "batch", 2_592_000),
    ] {
        let mut request = announced(2);
        request["purpose"] = json!(purpose);
        request["expires_after"] = after;
        let (status, upload) = server.post("/v1/uploads", &request).await;
        assert_eq!((status.as_u16(), &upload["purpose"]), (200, &json!(shown)), "{upload}");
        let id = upload["id"].as_str().unwrap();
        let part = add(&server, id, b"{}").await;
        let (_, done) = complete(&server, id, json!({"part_ids": [part]})).await;
        let file = &done["file"];
        let end = file["created_at"].as_i64().unwrap() + life;
        assert_eq!((&file["expires_at"], &file["purpose"]), (&json!(end), &json!(shown)), "{done}");
    }
    // Lists are filtered by the word that was sent.
    let (_, list) = server.get("/v1/files?purpose=evals").await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn faulty_announcements_are_refused_by_field() {
    let server = TestServer::with(|config| config.max_upload_bytes = ByteSize::kib(64)).await;
    let with = |field: &str, value: Value| {
        let mut request = announced(10);
        match value {
            Value::Null => drop(request.as_object_mut().unwrap().remove(field)),
            value => request[field] = value,
        }
        request
    };
    let life = |anchor: &str, seconds: i64| json!({"anchor": anchor, "seconds": seconds});
    let missing = "missing_required_parameter";
    let (invalid, kind) = ("invalid_value", "invalid_type");
    for (request, code, param) in [
        (with("filename", Value::Null), json!(missing), json!("filename")),
        (with("purpose", Value::Null), json!(missing), json!("purpose")),
        (with("bytes", Value::Null), json!(missing), json!("bytes")),
        (with("mime_type", Value::Null), json!(missing), json!("mime_type")),
        (with("filename", json!("")), json!(invalid), json!("filename")),
        (with("filename", json!("rows.txt")), Value::Null, Value::Null),
        (
            with("filename", json!("x".repeat(1025))),
            json!("string_above_max_length"),
            json!("filename"),
        ),
        (
            with("mime_type", json!("x".repeat(256))),
            json!("string_above_max_length"),
            json!("mime_type"),
        ),
        (with("purpose", json!("decoration")), json!(invalid), json!("purpose")),
        (with("bytes", json!(-1)), json!("integer_below_min_value"), json!("bytes")),
        (with("bytes", json!(65_537)), json!("integer_above_max_value"), json!("bytes")),
        (with("bytes", json!("10")), json!(kind), json!("bytes")),
        (with("bytes", json!(1.5)), json!(kind), json!("bytes")),
        (with("colour", json!("red")), json!("unknown_parameter"), json!("colour")),
        (with("expires_after", json!(3600)), json!(kind), json!("expires_after")),
        (
            with("expires_after", json!({"anchor": "created_at"})),
            json!(missing),
            json!("expires_after.seconds"),
        ),
        (
            with("expires_after", life("updated_at", 3600)),
            json!(invalid),
            json!("expires_after.anchor"),
        ),
        (
            with("expires_after", life("created_at", 3599)),
            json!("integer_below_min_value"),
            json!("expires_after.seconds"),
        ),
    ] {
        let (status, error) = server.post("/v1/uploads", &request).await;
        let (got_code, got_param, message) = error_of(&error);
        assert_eq!((status.as_u16(), got_code, got_param), (400, code, param), "{message}");
    }
    assert_eq!(server.data.value("select count(*) from uploads").await, "0");
}

#[tokio::test]
async fn parts_beyond_the_limits_are_refused_and_leave_nothing() {
    let server = TestServer::with(|config| {
        config.max_part_bytes = ByteSize::kib(64);
        config.max_upload_parts = 5;
    })
    .await;
    let id = begin(&server, 100_000).await;
    let large = vec![b'x'; 70_000];
    let full = vec![b'x'; 65_536];
    let got = send(&server, &id, &[data(&large)]).await;
    assert_eq!(refused(got, "65536 bytes"), (413, Value::Null, Value::Null));
    let missing = json!("missing_required_parameter");
    let got = send(&server, &id, &[]).await;
    assert_eq!(refused(got, "data"), (400, missing, json!("data")));
    let got = send(&server, &id, &[text("purpose", "fine-tune"), data(b"x")]).await;
    assert_eq!(refused(got, "purpose"), (400, json!("unknown_parameter"), json!("purpose")));
    let got = send(&server, &id, &[data(b"x"), data(b"y")]).await;
    assert_eq!(refused(got, "once"), (400, json!("invalid_value"), json!("data")));
    let got = server.post(&format!("/v1/uploads/{id}/parts"), &json!({"data": "x"})).await;
    assert_eq!(refused(got, "multipart/form-data with 'data'."), (400, Value::Null, Value::Null));
    until("nothing is left", async || server.blobs().is_empty().then_some(())).await;
    // Sent again and again, a part is stored anew each time: within bounds.
    for _ in 0..4 {
        add(&server, &id, &full).await;
    }
    let got = send(&server, &id, &[data(&full)]).await;
    assert_eq!(refused(got, "296608"), (400, json!("invalid_value"), json!("data")));
    add(&server, &id, b"small").await;
    let got = send(&server, &id, &[data(b"one too many")]).await;
    assert_eq!(refused(got, "5 parts"), (400, json!("invalid_value"), json!("data")));
    until("five parts are left", async || (server.blobs().len() == 5).then_some(())).await;
}

#[tokio::test]
async fn nobody_elses_upload_can_be_seen_or_changed() {
    let server = TestServer::start().await;
    let id = begin(&server, 3).await;
    let part = add(&server, &id, b"abc").await;
    server
        .data
        .sql("insert into projects (id, organization_id, name) values ('proj_b', 'org-default', 'b')")
        .await
        .unwrap();
    let theirs = Project { id: "proj_b".into(), ..server.data.project.clone() };
    let key = "another project's key";
    keys::create(&server.data.store.db, &theirs, KeyKind::Project, "b", key).await.unwrap();
    let as_them = |method: Method, path: String| {
        server
            .http
            .request(method, format!("{}/v1/uploads/{path}", server.base))
            .header("authorization", format!("Bearer {key}"))
    };
    let request = json!({"part_ids": [part]});
    for call in [
        as_them(Method::GET, id.clone()),
        as_them(Method::POST, format!("{id}/cancel")),
        as_them(Method::POST, format!("{id}/complete")).json(&request),
        as_them(Method::POST, format!("{id}/parts"))
            .header("content-type", FORM_TYPE)
            .body(form(&[data(b"abc")])),
        as_them(Method::GET, "upload_x%00".to_owned()),
    ] {
        let got = body(call.send().await.unwrap()).await;
        let expected = (404, Value::Null, json!("id"));
        assert_eq!(refused(got, "No such Upload object: upload_"), expected);
    }
    assert_eq!(status_of(&server, &id).await, "pending");
}
