//! A hostile file must not fill the memory. Alone in its binary, because it measures the whole
//! process.

#![cfg(target_os = "linux")]

mod common;

use common::{MODEL, TestServer, rows};
use reqwest::Method;
use serde_json::json;

/// Peak memory of this process in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_line_of_100_megabytes_is_refused_in_bounded_memory() {
    const MIB: usize = 1 << 20;
    let server = TestServer::start().await.with_model().await;
    // Warm: the tokenizer and the pools are loaded before the measurement.
    let warm = json!({"model": MODEL, "training_file": server.upload(&rows(3)).await});
    let warm = server.create_job(&warm).await;
    server.job_when(&warm, "failed").await;
    let before = peak_bytes();
    let head = b"------form\r\ncontent-disposition: form-data; name=\"file\"; \
                 filename=\"big.jsonl\"\r\n\r\n";
    let tail = b"\r\n------form\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n\
                 fine-tune\r\n------form--\r\n";
    let chunk = bytes::Bytes::from(vec![b'x'; MIB / 4]);
    let pieces = std::iter::once(bytes::Bytes::from_static(head))
        .chain(std::iter::repeat_n(chunk, 400))
        .chain([bytes::Bytes::from_static(tail)])
        .map(Ok::<_, std::io::Error>);
    let request = server
        .request(Method::POST, "/v1/files")
        .header("content-type", common::FORM_TYPE)
        .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)));
    let (status, file) = common::body(request.send().await.unwrap()).await;
    assert_eq!((status.as_u16(), &file["bytes"]), (200, &json!(100 * MIB)), "{file}");
    let id = server.create_job(&json!({"model": MODEL, "training_file": file["id"]})).await;
    let job = server.job_when(&id, "failed").await;
    assert_eq!(job["error"]["code"], "invalid_training_file", "{job}");
    assert!(job["error"]["message"].as_str().unwrap().contains("1"), "{job}");
    let grown = (peak_bytes() - before) / MIB as u64;
    // Three parts of 8 MiB are on their way to storage; the file would be 100.
    assert!(grown < 64, "memory grew by {grown} MiB");
}
