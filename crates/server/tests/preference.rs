//! Jobs of the method `dpo`: what the request may say, what the job shows, and which rows are taken.

mod common;

use common::{MODEL, TestServer, error_of, rows};
use domain::hyperparameters::Tuning;
use serde_json::{Value, json};

fn pairs(n: usize) -> Vec<u8> {
    let answer = |text: String| json!([{"role": "assistant", "content": text}]);
    let row = |i: usize| {
        json!({
            "input": {"messages": [{"role": "user", "content": format!("question {i}")}]},
            "preferred_output": answer(format!("good {i}")),
            "non_preferred_output": answer(format!("bad {i}")),
        })
    };
    (0..n).map(|i| row(i).to_string() + "\n").collect::<String>().into_bytes()
}

fn body(file: &str, hyperparameters: Value) -> Value {
    json!({
        "model": MODEL,
        "training_file": file,
        "method": {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
    })
}

#[tokio::test]
async fn what_is_asked_for_is_resolved_and_shown() {
    let server = TestServer::start().await.with_model().await;
    let file = server.upload(&pairs(12)).await;
    let job = server.create_job(&body(&file, json!({"n_epochs": 2}))).await;
    let job = server.job_when(&job, "queued").await;
    let shown = &job["method"]["dpo"]["hyperparameters"];
    assert_eq!(job["method"]["type"], "dpo");
    assert_eq!(shown["beta"], 0.1);
    assert_eq!(shown["loss_type"], "sigmoid");
    assert_eq!(shown["label_smoothing"], 0.0);
    assert_eq!((&shown["n_epochs"], &shown["batch_size"]), (&json!(2), &json!(1)));
    assert_eq!(shown.get("gamma"), None, "{shown}");
    // OpenAI's three are where strict clients look for them, and nothing else is.
    assert_eq!(job["hyperparameters"].as_object().unwrap().len(), 3);

    let supervised = server.upload(&rows(12)).await;
    let other = json!({"model": MODEL, "training_file": supervised});
    let other = server.create_job(&other).await;
    let other = server.job_when(&other, "queued").await;
    let rate = |job: &Value| job["finetuned"]["learning_rate"].as_f64().unwrap();
    assert!((rate(&other) / rate(&job) - 20.0).abs() < 1e-9, "a preference job learns slower");

    let simpo = json!({"loss_type": "simpo", "beta": 2.5, "gamma": 1.25, "label_smoothing": 0.1});
    let job = server.create_job(&body(&file, simpo.clone())).await;
    let job = server.job_when(&job, "queued").await;
    for (name, value) in simpo.as_object().unwrap() {
        assert_eq!(&job["method"]["dpo"]["hyperparameters"][name], value);
    }
}

#[tokio::test]
async fn a_reward_model_has_its_own_numbers_and_lora() {
    let server = TestServer::with(|config| config.training.tuning = Some(Tuning::Prefix)).await;
    let server = server.with_model().await;
    let file = server.upload(&pairs(12)).await;
    let job = body(&file, json!({"loss_type": "reward", "center_coefficient": 0.01}));
    let job = server.create_job(&job).await;
    let job = server.job_when(&job, "queued").await;
    let shown = &job["method"]["dpo"]["hyperparameters"];
    assert_eq!((&shown["loss_type"], &shown["gamma"]), (&json!("reward"), &json!(0.0)));
    assert_eq!(shown["center_coefficient"], 0.01);
    assert_eq!(shown.get("beta"), None, "{shown}");
    assert_eq!(job["finetuned"]["tuning"], "lora");
    let mut whole = body(&file, json!({"loss_type": "reward"}));
    whole["finetuned"] = json!({"tuning": "full"});
    let (status, error) = server.post("/v1/fine_tuning/jobs", &whole).await;
    let (code, param, message) = error_of(&error);
    assert_eq!((status.as_u16(), code), (400, json!("invalid_value")));
    assert_eq!(param, "finetuned.tuning");
    assert!(message.contains("'lora'"), "{message}");
}

#[tokio::test]
async fn wrong_hyperparameters_are_refused_by_path() {
    let server = TestServer::start().await.with_model().await;
    let file = server.upload(&pairs(12)).await;
    for (object, code, param) in [
        (json!({"beta": 0}), "decimal_below_min_value", "beta"),
        (json!({"beta": 3}), "decimal_above_max_value", "beta"),
        (json!({"beta": []}), "invalid_type", "beta"),
        (json!({"loss_type": "dpop"}), "invalid_value", "loss_type"),
        (json!({"loss_type": "ipo", "gamma": 1}), "invalid_value", "gamma"),
        (json!({"loss_type": "reward", "beta": 0.1}), "invalid_value", "beta"),
        (json!({"label_smoothing": 0.6}), "invalid_value", "label_smoothing"),
        (json!({"batch_size": 0}), "integer_below_min_value", "batch_size"),
        (json!({"compute_multiplier": 1}), "unknown_parameter", "compute_multiplier"),
    ] {
        let (status, error) = server.post("/v1/fine_tuning/jobs", &body(&file, object)).await;
        let (got, at, message) = error_of(&error);
        assert_eq!(status, 400, "{message}");
        assert_eq!(at, json!(format!("method.dpo.hyperparameters.{param}")), "{message}");
        assert_eq!(got, json!(code), "{message}");
    }
}

#[tokio::test]
async fn every_fault_of_the_rows_is_told_with_line_and_path() {
    let server = TestServer::start().await.with_model().await;
    let mut lines: Vec<String> =
        String::from_utf8(pairs(12)).unwrap().lines().map(str::to_owned).collect();
    lines[2] = lines[2].replace("\"preferred_output\"", "\"chosen_output\"");
    lines[4] = lines[4].replace("\"role\":\"user\"", "\"role\":\"robot\"");
    lines[6] = lines[6].replace("bad 6", "<|im_end|>");
    let file = server.upload(lines.join("\n").as_bytes()).await;
    let job = server.create_job(&body(&file, json!({}))).await;
    let job_object = server.job_when(&job, "failed").await;
    assert_eq!(job_object["error"]["param"], "training_file");
    let events = server.get(&format!("/v1/fine_tuning/jobs/{job}/events")).await.1;
    let problems = events["data"][0]["data"]["problems"].as_array().unwrap();
    let places: Vec<(u64, &str)> = problems
        .iter()
        .map(|p| (p["line"].as_u64().unwrap(), p["path"].as_str().unwrap()))
        .collect();
    for place in [
        (3, "chosen_output"),
        (3, "preferred_output"),
        (5, "input.messages[0].role"),
        (7, "non_preferred_output[0].content"),
    ] {
        assert!(places.contains(&place), "{place:?} is not in {places:?}");
    }
}

#[tokio::test]
async fn rows_of_the_other_method_are_refused_with_the_way_out() {
    let server = TestServer::start().await.with_model().await;
    let (chat, preference) = (server.upload(&rows(12)).await, server.upload(&pairs(12)).await);
    let message = async |body: &Value| {
        let job = server.create_job(body).await;
        let job = server.job_when(&job, "failed").await;
        job["error"]["message"].as_str().unwrap().to_owned()
    };
    let wrong = message(&body(&chat, json!({}))).await;
    assert!(wrong.contains("Example 1 is missing key 'input'"), "{wrong}");
    assert!(wrong.contains("method 'supervised'"), "{wrong}");
    let wrong = message(&json!({"model": MODEL, "training_file": preference})).await;
    assert!(wrong.contains("Example 1 is missing key 'messages'"), "{wrong}");
    assert!(wrong.contains("method 'dpo'"), "{wrong}");
}

#[tokio::test]
async fn labelled_answers_are_rows_of_kto_alone() {
    let server = TestServer::start().await.with_model().await;
    let row = |i: usize| {
        let label = i.is_multiple_of(2);
        json!({"prompt": format!("question {i}"), "completion": "answer", "label": label})
    };
    let rows: String = (0..12).map(|i| row(i).to_string() + "\n").collect();
    let file = server.upload(rows.as_bytes()).await;
    let job = server.create_job(&body(&file, json!({"loss_type": "kto"}))).await;
    let job = server.job_when(&job, "queued").await;
    let shown = &job["method"]["dpo"]["hyperparameters"];
    assert_eq!((&shown["loss_type"], &shown["batch_size"]), (&json!("kto"), &json!(8)));
    assert_eq!(shown["undesirable_weight"], 1.0);
    let job = server.create_job(&body(&file, json!({}))).await;
    let job = server.job_when(&job, "failed").await;
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("loss_type 'kto'"), "{message}");
}

#[tokio::test]
async fn older_names_and_equal_answers_are_remarked_upon() {
    let server = TestServer::start().await.with_model().await;
    let text = String::from_utf8(pairs(12)).unwrap();
    let text = text.replace("preferred_output", "preferred_completion").replace("bad 3", "good 3");
    let file = server.upload(text.as_bytes()).await;
    let job = server.create_job(&body(&file, json!({}))).await;
    server.job_when(&job, "queued").await;
    let messages = server.messages(&job).await.join("\n");
    assert!(messages.contains("1 of 12 examples have two equal answers"), "{messages}");
    assert!(messages.contains("which were read as 'preferred_output'"), "{messages}");
}
