//! Files: uploads in any part order, the read side, and that nothing is left behind by a broken
//! one.

mod common;

use bytesize::ByteSize;
use common::{FORM_TYPE, Part, TestServer, body, error_of, form, rows, text, until};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn jsonl(content: &[u8]) -> Part<'_> {
    Part { name: "file", filename: Some("daten ä.jsonl"), content }
}

#[tokio::test]
async fn a_file_comes_back_as_it_was_whatever_the_order_of_parts() {
    let server = TestServer::start().await;
    let content = rows(12);
    for parts in [
        [text("purpose", "fine-tune"), jsonl(&content)],
        [jsonl(&content), text("purpose", "fine-tune")],
    ] {
        let (status, file) = server.post_form(&parts).await;
        assert_eq!(status, 200, "{file}");
        let expected = json!({
            "id": file["id"], "object": "file", "bytes": content.len(),
            "created_at": file["created_at"], "expires_at": null, "filename": "daten ä.jsonl",
            "purpose": "fine-tune", "status": "processed", "status_details": null,
        });
        assert_eq!(file, expected);
        assert!(file["created_at"].as_i64().unwrap() > 1_700_000_000);
        let id = file["id"].as_str().unwrap();
        assert_eq!(server.get(&format!("/v1/files/{id}")).await, (StatusCode::OK, expected));
        let path = format!("/v1/files/{id}/content");
        let read = server.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(read.bytes().await.unwrap(), content);
        let part = server.request(Method::GET, &path).header("range", "bytes=2-9");
        let part = part.send().await.unwrap();
        assert_eq!(part.status(), 206);
        let total = content.len();
        assert_eq!(part.headers()["content-range"], format!("bytes 2-9/{total}").as_str());
        assert_eq!(part.bytes().await.unwrap(), content[2..10]);
    }
    let (_, list) = server.get("/v1/files").await;
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|f| &f["id"]).collect();
    assert_eq!((ids.len(), &list["has_more"]), (2, &json!(false)));
    assert_eq!((&list["first_id"], &list["last_id"]), (ids[0], ids[1]));
}

#[tokio::test]
async fn lists_page_and_filter() {
    let server = TestServer::start().await;
    let mut newest_first = Vec::new();
    for _ in 0..3 {
        newest_first.insert(0, server.upload(&rows(1)).await);
    }
    let parts = [text("purpose", "evals"), jsonl(b"{}\n")];
    let (_, evals) = server.post_form(&parts).await;
    assert_eq!(evals["purpose"], "user_data", "clients know no purpose 'evals'");
    let ids = |list: &Value| -> Vec<String> {
        let files = list["data"].as_array().unwrap().iter();
        files.map(|file| file["id"].as_str().unwrap().to_owned()).collect()
    };
    let (_, first) = server.get("/v1/files?purpose=fine-tune&limit=2").await;
    assert_eq!((ids(&first), &first["has_more"]), (newest_first[..2].to_vec(), &json!(true)));
    let after = first["last_id"].as_str().unwrap();
    let (_, second) = server.get(&format!("/v1/files?purpose=fine-tune&after={after}")).await;
    assert_eq!((ids(&second), &second["has_more"]), (newest_first[2..].to_vec(), &json!(false)));
    let (_, oldest) = server.get("/v1/files?purpose=fine-tune&order=asc&limit=1").await;
    assert_eq!(ids(&oldest), newest_first[2..]);
    let (status, none) = server.get("/v1/files?purpose=unheard-of&after=file-x%00").await;
    assert_eq!((status.as_u16(), &none["data"]), (200, &json!([])));
}

#[tokio::test]
async fn a_deleted_file_is_gone_and_its_content_too() {
    let server = TestServer::start().await;
    let id = server.upload(&rows(1)).await;
    let (status, gone) = server.delete(&format!("/v1/files/{id}")).await;
    assert_eq!(
        (status.as_u16(), gone),
        (200, json!({"id": id, "object": "file", "deleted": true}))
    );
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        let (status, error) = server.get(&path).await;
        assert_eq!(status, 404);
        let expected = (Value::Null, json!("id"), format!("No such File object: {id}"));
        assert_eq!(error_of(&error), expected);
    }
    until("the blob is removed", async || server.blobs().is_empty().then_some(())).await;
}

#[tokio::test]
async fn bad_uploads_are_refused_and_leave_nothing() {
    let server = TestServer::with(|config| config.max_file_bytes = ByteSize::kib(64)).await;
    let big = vec![b'x'; 100 * 1024];
    let good = rows(1);
    let text_file = || Part { name: "file", filename: Some("rows.txt"), content: &good };
    let life = |seconds| [text("expires_after[anchor]", "created_at"), seconds];
    let [anchor, seconds] = life(text("expires_after[seconds]", "60"));
    let cases: Vec<(Vec<Part<'_>>, u16, Value, Value)> = vec![
        (
            vec![text("purpose", "fine-tune")],
            400,
            json!("missing_required_parameter"),
            json!("file"),
        ),
        (vec![jsonl(&good)], 400, json!("missing_required_parameter"), json!("purpose")),
        (
            vec![text("purpose", "tuning"), jsonl(&good)],
            400,
            json!("invalid_value"),
            json!("purpose"),
        ),
        (vec![text("purpose", "fine-tune"), text_file()], 400, Value::Null, Value::Null),
        (vec![text("purpose", "fine-tune"), jsonl(b"")], 400, Value::Null, json!("file")),
        (vec![jsonl(&big), text("purpose", "fine-tune")], 413, Value::Null, Value::Null),
        (
            vec![text("purpose", "fine-tune"), anchor, seconds, jsonl(&good)],
            400,
            json!("integer_below_min_value"),
            json!("expires_after[seconds]"),
        ),
    ];
    for (parts, status, code, param) in cases {
        let (got, error) = server.post_form(&parts).await;
        let (got_code, got_param, message) = error_of(&error);
        assert_eq!((got.as_u16(), got_code, got_param), (status, code, param), "{message}");
    }
    let not_a_form = json!({"purpose": "fine-tune"});
    let (status, error) = server.post("/v1/files", &not_a_form).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains("multipart/form-data"));
    until("nothing is left", async || server.blobs().is_empty().then_some(())).await;
    assert_eq!(server.get("/v1/files").await.1["data"], json!([]));
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let server = TestServer::start().await;
    let address = server.base.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let whole = form(&[text("purpose", "fine-tune"), jsonl(&vec![b'x'; 30 << 20])]);
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: \
         {FORM_TYPE}\r\ncontent-length: {}\r\n\r\n",
        common::KEY,
        whole.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&whole[..20 << 20]).await.unwrap();
    until("bytes arrive in storage", async || (!server.blobs().is_empty()).then_some(())).await;
    drop(socket);
    until("nothing is left", async || server.blobs().is_empty().then_some(())).await;
    assert_eq!(server.get("/v1/files").await.1["data"], json!([]));
}

#[tokio::test]
async fn endless_part_headers_are_cut_off() {
    let server = TestServer::start().await;
    let mut content = b"------form\r\nx: ".to_vec();
    content.resize(4 << 20, b'y');
    let request = server.request(Method::POST, "/v1/files").header("content-type", FORM_TYPE);
    // In pieces, as from a network.
    let pieces: Vec<_> =
        content.chunks(16 * 1024).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect();
    let stream = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    // The server may close before everything is sent; then there is nothing to read.
    if let Ok(response) = request.body(stream).send().await {
        let (status, error) = body(response).await;
        assert_eq!(status, 400);
        assert!(error_of(&error).2.contains("headers of a part"), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let server = TestServer::with(|config| {
        config.body_idle_timeout = std::time::Duration::from_millis(200);
    })
    .await;
    let address = server.base.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: \
         {FORM_TYPE}\r\ncontent-length: 1000\r\n\r\n------form\r\n",
        common::KEY
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let reading = socket.read_to_string(&mut answer);
    tokio::time::timeout(common::PATIENCE, reading).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}
