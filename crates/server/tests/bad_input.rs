//! Bad input is data: each kind of it answers in the API's shape, with the lines where there are
//! lines.

mod common;

use common::{MODEL, Part, TestServer, error_of, rows, text};
use reqwest::Method;
use serde_json::{Value, json};

/// A server, and a body that would create a job, with other fields.
async fn server_and_body() -> (TestServer, impl Fn(&Value) -> Value) {
    let server = TestServer::start().await.with_model().await;
    let file = server.upload(&rows(12)).await;
    let body = move |extra: &Value| {
        let mut body = json!({"model": MODEL, "training_file": file});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    (server, body)
}

#[tokio::test]
async fn a_field_that_cannot_be_served_is_named() {
    let (server, body) = server_and_body().await;
    let parts = [
        text("purpose", "user_data"),
        Part { name: "file", filename: Some("x.txt"), content: b"x" },
    ];
    let other = server.post_form(&parts).await.1["id"].as_str().unwrap().to_owned();
    for (extra, status, code, param) in [
        (json!({"model": "gpt-9"}), 400, "model_not_available", ""),
        (json!({"model": 5}), 400, "invalid_type", "model"),
        (json!({"training_file": null}), 400, "invalid_type", "training_file"),
        (json!({"training_file": "file-none"}), 404, "", "training_file"),
        (json!({"validation_file": "file-\u{0}"}), 400, "invalid_value", "validation_file"),
        (json!({"training_file": other}), 400, "invalid_value", "training_file"),
        (json!({"n_epochs": 3}), 400, "unknown_parameter", "n_epochs"),
        (json!({"suffix": "x".repeat(65)}), 400, "string_above_max_length", "suffix"),
        (json!({"seed": -1}), 400, "integer_below_min_value", "seed"),
        (json!({"metadata": {"a": 1}}), 400, "invalid_type", "metadata.a"),
        (json!({"method": {}}), 400, "missing_required_parameter", "method.type"),
        (
            json!({"method": {"type": "reinforcement"}}),
            400,
            "missing_required_parameter",
            "method.reinforcement.grader",
        ),
        (
            json!({"hyperparameters": {"n_epochs": 51}}),
            400,
            "integer_above_max_value",
            "hyperparameters.n_epochs",
        ),
        (
            json!({"finetuned": {"lora": {"rang": 8}}}),
            400,
            "unknown_parameter",
            "finetuned.lora.rang",
        ),
    ] {
        let (got, error) = server.post("/v1/fine_tuning/jobs", &body(&extra)).await;
        let (got_code, got_param, message) = error_of(&error);
        let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
        let got = (got.as_u16(), word(got_code), word(got_param));
        assert_eq!(got, (status, code.to_owned(), param.to_owned()), "{extra}: {message}");
    }
    let (_, jobs) = server.get("/v1/fine_tuning/jobs").await;
    assert_eq!(jobs["data"], json!([]), "nothing was created");
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let (server, body) = server_and_body().await;
    for text in ["", "{", "[1]", "\"x\"", "{\"model\":\"m\",}"] {
        let request = server.request(Method::POST, "/v1/fine_tuning/jobs").body(text);
        let (status, error) = common::body(request.send().await.unwrap()).await;
        assert_eq!(status, 400);
        assert!(error_of(&error).2.starts_with("We could not parse the JSON body"), "{error}");
    }
    let (status, error) = server.post("/v1/fine_tuning/jobs", &json!({})).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("model")));
    let huge = body(&json!({"metadata": {"a": "x".repeat(2 << 20)}}));
    let (status, error) = server.post("/v1/fine_tuning/jobs", &huge).await;
    assert_eq!(status, 413);
    assert!(error_of(&error).2.contains("larger than the limit"));
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
