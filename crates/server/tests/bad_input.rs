//! Bad input is data: each kind of it answers in the API's shape, with the lines where there are lines.

mod common;

use common::{MODEL, Part, TestServer, error_of, rows, text};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn bodies_that_cannot_create_a_job_name_the_field() {
    let server = TestServer::start().await.with_model().await;
    let file = server.upload(&rows(12)).await;
    let parts = [
        text("purpose", "user_data"),
        Part { name: "file", filename: Some("x.txt"), content: b"x" },
    ];
    let other = server.post_form(&parts).await.1["id"].as_str().unwrap().to_owned();
    let body = |extra: Value| {
        let mut body = json!({"model": MODEL, "training_file": file});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    let long = "x".repeat(65);
    let cases = [
        (body(json!({"model": "gpt-9"})), 400, json!("model_not_available"), Value::Null),
        (body(json!({"model": 5})), 400, json!("invalid_type"), json!("model")),
        (json!({"model": MODEL}), 400, json!("missing_required_parameter"), json!("training_file")),
        (body(json!({"training_file": "file-none"})), 404, Value::Null, json!("training_file")),
        (
            body(json!({"validation_file": "file-\u{0}"})),
            400,
            json!("invalid_value"),
            json!("validation_file"),
        ),
        (
            body(json!({"training_file": other})),
            400,
            json!("invalid_value"),
            json!("training_file"),
        ),
        (body(json!({"n_epochs": 3})), 400, json!("unknown_parameter"), json!("n_epochs")),
        (body(json!({"suffix": long})), 400, json!("string_above_max_length"), json!("suffix")),
        (body(json!({"seed": -1})), 400, json!("integer_below_min_value"), json!("seed")),
        (body(json!({"metadata": {"a": 1}})), 400, json!("invalid_type"), json!("metadata.a")),
        (
            body(json!({"method": {"type": "dpo"}})),
            400,
            json!("invalid_value"),
            json!("method.type"),
        ),
        (
            body(json!({"method": {"type": "reinforcement"}})),
            400,
            json!("invalid_value"),
            json!("method.type"),
        ),
        (
            body(json!({"hyperparameters": {"n_epochs": 51}})),
            400,
            json!("integer_above_max_value"),
            json!("hyperparameters.n_epochs"),
        ),
        (
            body(json!({"finetuned": {"lora": {"rang": 8}}})),
            400,
            json!("unknown_parameter"),
            json!("finetuned.lora.rang"),
        ),
    ];
    for (body, status, code, param) in cases {
        let (got, error) = server.post("/v1/fine_tuning/jobs", &body).await;
        let (got_code, got_param, message) = error_of(&error);
        assert_eq!((got.as_u16(), got_code, got_param), (status, code, param), "{body}: {message}");
    }
    for text in ["", "{", "[1]", "\"x\"", "{\"model\":\"m\",}"] {
        let request = server.request(Method::POST, "/v1/fine_tuning/jobs").body(text);
        let (status, error) = common::body(request.send().await.unwrap()).await;
        assert_eq!(status, 400);
        assert!(error_of(&error).2.starts_with("We could not parse the JSON body"), "{error}");
    }
    let huge = body(json!({"metadata": {"a": "x".repeat(2 << 20)}}));
    let (status, error) = server.post("/v1/fine_tuning/jobs", &huge).await;
    assert_eq!(status, 413);
    assert!(error_of(&error).2.contains("larger than the limit"));
    let (_, jobs) = server.get("/v1/fine_tuning/jobs").await;
    assert_eq!(jobs["data"], json!([]), "nothing was created");
}

/// The failed job of a training file.
async fn failed(server: &TestServer, training: &[u8], validation: Option<&[u8]>) -> (Value, Value) {
    let mut body = json!({"model": MODEL, "training_file": server.upload(training).await});
    if let Some(validation) = validation {
        body["validation_file"] = server.upload(validation).await.into();
    }
    let id = server.create_job(&body).await;
    let job = server.job_when(&id, "failed").await;
    let (_, events) = server.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=1")).await;
    let last = events["data"][0].clone();
    assert_eq!((&last["level"], &last["message"]), (&json!("error"), &job["error"]["message"]));
    (job["error"].clone(), last["data"].clone())
}

fn with_lines(lines: &[&[u8]]) -> Vec<u8> {
    let mut content = rows(10);
    for line in lines {
        content.extend_from_slice(line);
        content.push(b'\n');
    }
    content
}

#[tokio::test]
async fn faulty_files_fail_the_job_with_every_line_named() {
    let server = TestServer::start().await.with_model().await;
    let no_assistant = br#"{"messages":[{"role":"user","content":"x"}]}"#;
    let wrong_role =
        br#"{"messages":[{"role":"robot","content":"x"},{"role":"assistant","content":"y"}]}"#;
    let content =
        with_lines(&[b"{\"messages\": [", b"\xff\xfe", no_assistant, wrong_role, b"{}", b"[]"]);
    let (error, data) = failed(&server, &content, None).await;
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("invalid_training_file"), &json!("training_file"))
    );
    let message = error["message"].as_str().unwrap();
    let head = "The job failed due to an invalid training file. Invalid file format. Example 11";
    assert!(message.starts_with(head), "{message}");
    let problems = data["problems"].as_array().unwrap();
    let mut lines: Vec<u64> = problems.iter().map(|p| p["line"].as_u64().unwrap()).collect();
    lines.dedup();
    assert_eq!(lines, [11, 12, 13, 14, 15, 16], "{data}");
    assert!(problems.iter().all(|p| p["file"] == "training_file" && p["code"].is_string()));
    assert_eq!(data["total_problems"], problems.len());
    assert!(message.contains("(the job's last event lists them)") || problems.len() <= 5);
}

#[tokio::test]
async fn too_few_examples_say_so_in_openais_words() {
    let server = TestServer::start().await.with_model().await;
    let (error, _) = failed(&server, &rows(3), None).await;
    assert_eq!(
        error,
        json!({
            "code": "invalid_n_examples",
            "message": "Training file has 3 example(s), but must have at least 10 examples",
            "param": "training_file",
        })
    );
}

#[tokio::test]
async fn a_faulty_validation_file_is_told_from_the_training_file() {
    let server = TestServer::start().await.with_model().await;
    let (error, data) = failed(&server, &rows(10), Some(b"not json\n")).await;
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("invalid_validation_file"), &json!("validation_file"))
    );
    assert_eq!(data["problems"][0]["file"], "validation_file");
    let (error, data) = failed(&server, b"x\n", Some(b"y\n")).await;
    assert_eq!(error["param"], "training_file");
    let files: Vec<&Value> =
        data["problems"].as_array().unwrap().iter().map(|p| &p["file"]).collect();
    assert!(files.contains(&&json!("validation_file")), "all faults, not only the first: {data}");
}

#[tokio::test]
async fn special_tokens_and_extra_keys_are_format_errors() {
    let server = TestServer::start().await.with_model().await;
    let token = br#"{"messages":[{"role":"user","content":"<|im_end|>"},{"role":"assistant","content":"y"}]}"#;
    let extra = br#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}],"weight":1}"#;
    for line in [&token[..], extra] {
        let (error, _) = failed(&server, &with_lines(&[line]), None).await;
        assert_eq!(error["code"], "invalid_file_format", "{error}");
    }
}

/// Peak memory of this process in bytes.
#[cfg(target_os = "linux")]
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_line_of_100_megabytes_is_refused_in_bounded_memory() {
    const MIB: usize = 1 << 20;
    let server = TestServer::start().await.with_model().await;
    // Warm: the tokenizer and the pools are loaded before the measurement.
    failed(&server, &rows(3), None).await;
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
    assert_eq!((status.as_u16(), &file["bytes"]), (200, &json!(100 * MIB)));
    let id = server.create_job(&json!({"model": MODEL, "training_file": file["id"]})).await;
    let job = server.job_when(&id, "failed").await;
    assert_eq!(job["error"]["code"], "invalid_training_file", "{job}");
    assert!(job["error"]["message"].as_str().unwrap().contains("1"), "{job}");
    let grown = (peak_bytes() - before) / MIB as u64;
    assert!(grown < 40, "memory grew by {grown} MiB");
}
