//! What the rows of supervised jobs may be, what is told about rows that are too long, and every
//! parameter of training from the request to the job.

mod common;

use common::{MODEL, TestServer};
use serde_json::{Value, json};

fn text_rows(n: usize) -> Vec<String> {
    (0..n)
        .map(|i| json!({"text": format!("Chapter {i}. It was the best of times.")}))
        .map(line)
        .collect()
}

fn chat_rows(n: usize) -> Vec<String> {
    (0..n).map(|i| chat_row("q", &format!("answer {i}"))).collect()
}

fn chat_row(question: &str, answer: &str) -> String {
    line(json!({"messages": [{"role": "user", "content": question},
                             {"role": "assistant", "content": answer}]}))
}

fn line(row: Value) -> String {
    row.to_string() + "\n"
}

/// A job on these rows, once it has left validation; and its events, newest first.
async fn validated(
    server: &TestServer,
    rows: &[String],
    validation: Option<&[String]>,
    status: &str,
) -> (Value, Vec<Value>) {
    let mut body = json!({"model": MODEL, "training_file": server.upload(rows.concat().as_bytes()).await,
                          "finetuned": {"max_seq_len": 64}});
    if let Some(rows) = validation {
        body["validation_file"] = json!(server.upload(rows.concat().as_bytes()).await);
    }
    let id = server.create_job(&body).await;
    let job = server.job_when(&id, status).await;
    let events = server.get(&format!("/v1/fine_tuning/jobs/{id}/events")).await.1;
    (job, events["data"].as_array().unwrap().clone())
}

fn finding<'e>(events: &'e [Value], file: &str, finding: &str) -> &'e Value {
    let is_it = |e: &&Value| e["data"]["file"] == file && e["data"]["finding"] == finding;
    events.iter().find(is_it).unwrap_or_else(|| panic!("no {finding} of {file} in {events:?}"))
}

#[tokio::test]
async fn plain_texts_are_rows_of_a_supervised_job() {
    let server = TestServer::start().await.with_model().await;
    let mut rows = text_rows(12);
    rows[4] = line(json!({"text": "It was the worst of times. ".repeat(40)}));
    let (job, events) = validated(&server, &rows, Some(&text_rows(3)), "queued").await;
    let dataset = &job["finetuned"]["dataset"];
    let training = &dataset["training_file"];
    assert_eq!(
        (&training["format"], &dataset["validation_file"]["format"]),
        (&json!("text"), &json!("text"))
    );
    assert_eq!((&training["n_examples"], &training["n_truncated"]), (&json!(12), &json!(0)));
    assert_eq!((&training["n_split"], &training["split_lines"]), (&json!(1), &json!([5])));
    // Everything after the first token of each row is trained.
    let number = |name: &str| training[name].as_u64().unwrap();
    assert_eq!(number("target_tokens"), number("tokens") - 12);
    let note = finding(&events, "training_file", "split");
    assert_eq!((&note["level"], &note["data"]["lines"]), (&json!("info"), &json!([5])));
    let sequences = format!("the file has {} sequences: line 5", number("n_sequences"));
    assert!(note["message"].as_str().unwrap().ends_with(&sequences), "{note}");
    // What `auto` counts in: 25 epochs would be those of 3 examples or fewer.
    let epochs = u64::from(domain::hyperparameters::auto_epochs(number("n_sequences")));
    assert_eq!(job["hyperparameters"]["n_epochs"], epochs);
}

#[tokio::test]
async fn rows_of_two_kinds_are_refused_with_their_lines() {
    let server = TestServer::start().await.with_model().await;
    let mut rows = text_rows(12);
    rows[3] = chat_row("q", "a");
    rows[8] = line(json!({"text": ""}));
    let (job, events) = validated(&server, &rows, None, "failed").await;
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("Example 4 looks like chat messages"), "{message}");
    let problems = events[0]["data"]["problems"].as_array().unwrap();
    let places: Vec<_> = problems.iter().map(|p| (p["line"].clone(), p["code"].clone())).collect();
    let expected = [(4, "unexpected_format"), (9, "missing_content")];
    assert_eq!(places, expected.map(|(line, code)| (json!(line), json!(code))));

    let (job, _) = validated(&server, &text_rows(12), Some(&chat_rows(12)), "failed").await;
    assert_eq!(job["error"]["param"], "validation_file");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("the validation file must hold what the training file does"));
}

#[tokio::test]
async fn rows_that_are_cut_are_told_by_line_for_both_files() {
    let server = TestServer::start().await.with_model().await;
    let long = "some words ".repeat(60);
    let mut rows = chat_rows(12);
    // One loses the end of its answer, the other one all of it.
    (rows[2], rows[6]) = (chat_row("q", &long), chat_row(&long, "a"));
    let mut valid = chat_rows(3);
    valid[1] = chat_row(&long, "a");
    let (job, events) = validated(&server, &rows, Some(&valid), "queued").await;
    let cut = finding(&events, "training_file", "truncated");
    assert_eq!((&cut["level"], &cut["data"]["lines"]), (&json!("warn"), &json!([3, 7])));
    assert_eq!((&cut["data"]["n_examples"], &cut["data"]["max_seq_len"]), (&json!(2), &json!(64)));
    let lost = finding(&events, "training_file", "targets_cut");
    assert_eq!(lost["data"]["lines"], json!([7]));
    let text = lost["message"].as_str().unwrap();
    assert!(text.starts_with("Training file: 1 of 12 examples lose every token"), "{text}");
    for what in ["truncated", "targets_cut"] {
        assert_eq!(finding(&events, "validation_file", what)["data"]["lines"], json!([2]));
    }
    let dataset = &job["finetuned"]["dataset"];
    let lines = |file: &str, name: &str| dataset[file][name].clone();
    assert_eq!(lines("training_file", "truncated_lines"), json!([3, 7]));
    assert_eq!(lines("training_file", "lines_targets_cut"), json!([7]));
    assert_eq!(lines("validation_file", "truncated_lines"), json!([2]));
}

#[tokio::test]
async fn every_parameter_of_training_is_taken_and_shown() {
    let server = TestServer::start().await.with_model().await;
    let file = server.upload(chat_rows(12).concat().as_bytes()).await;
    let options = json!({
        "learning_rate": 3e-4, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1,
        "max_grad_norm": 0.5, "max_seq_len": 128, "micro_batch_tokens": 256, "checkpoint_steps": 7,
        "gradient_checkpointing": "mlp", "quantization": "nf4",
        "early_stopping": {"patience": 3, "min_delta": 0.01, "evaluation_steps": 4},
    });
    let body = |options: &Value| {
        json!({"model": MODEL, "training_file": file, "validation_file": file, "seed": 5,
               "hyperparameters": {"n_epochs": 4, "batch_size": 3, "learning_rate_multiplier": 0.5},
               "finetuned": options})
    };
    let job = server.create_job(&body(&options)).await;
    let job = server.job_when(&job, "queued").await;
    assert_eq!(job["seed"], 5);
    let three = json!({"n_epochs": 4, "batch_size": 3, "learning_rate_multiplier": 0.5});
    assert_eq!(job["hyperparameters"], three);
    for (name, value) in options.as_object().unwrap() {
        assert_eq!(&job["finetuned"][name], value, "{name}");
    }

    // A multiplier instead of a rate, a ratio (of 16 steps) instead of steps, and no decay at all.
    let job = server.create_job(&body(&json!({"schedule": "constant", "warmup_ratio": 0.5}))).await;
    let shown = server.job_when(&job, "queued").await["finetuned"].clone();
    assert_eq!((&shown["schedule"], &shown["warmup_steps"]), (&json!("constant"), &json!(8)));
    assert_eq!((&shown["learning_rate"], &shown["max_grad_norm"]), (&json!(2.5e-4), &json!(1.0)));
}
