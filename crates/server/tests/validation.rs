//! A request for a job that is only validated: every fault at once, what the job would be, and nothing created.

mod common;

use common::{MODEL, TestServer, error_of, rows};
use serde_json::{Value, json};

const VALIDATE: &str = "/v1/fine_tuning/jobs/validate";

async fn server() -> TestServer {
    TestServer::start().await.with_model().await
}

async fn validated(server: &TestServer, body: &Value) -> Value {
    let (status, answer) = server.post(VALIDATE, body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["object"], "fine_tuning.job.validation");
    answer
}

/// (code, path) of each problem, sorted by path.
fn places(answer: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let problems = answer["problems"].as_array().unwrap().iter();
    let mut places: Vec<_> =
        problems.map(|problem| (text(&problem["code"]), text(&problem["path"]))).collect();
    places.sort_by(|a, b| a.1.cmp(&b.1));
    places
}

#[tokio::test]
async fn a_good_request_shows_what_the_job_would_be_and_creates_nothing() {
    let server = server().await;
    let training = server.upload(&rows(12)).await;
    let validation = server.upload(&rows(3)).await;
    let body = json!({
        "model": MODEL, "training_file": training, "validation_file": validation,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        "integrations": [{"type": "wandb", "wandb": {"project": "p"}}],
    });
    let answer = validated(&server, &body).await;
    assert_eq!((&answer["valid"], &answer["method"]), (&json!(true), &json!("supervised")));
    assert_eq!((&answer["steps"], &answer["model"]), (&json!(24), &json!(MODEL)));
    let hyperparameters = json!({"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.0});
    assert_eq!(answer["hyperparameters"], hyperparameters);
    assert_eq!(answer["finetuned"]["learning_rate"], 5e-4);
    let reasons = &answer["reasons"];
    assert_eq!(reasons["n_epochs"], "the request says so");
    let batch = reasons["batch_size"].as_str().unwrap();
    assert!(batch.starts_with("auto: every example is a step"), "{batch}");
    let all = answer["finetuned"].as_object().unwrap();
    let unnamed = ["lora", "virtual_tokens", "dataset", "queue_position", "wait_reason"];
    for name in all.keys().filter(|name| !unnamed.contains(&name.as_str())) {
        assert!(reasons[name].is_string(), "no reason for {name}: {reasons}");
    }
    let tokens = answer["dataset"]["training_file"]["tokens_after_truncation"].as_u64().unwrap();
    assert_eq!(answer["trained_tokens"], 2 * tokens);
    assert_eq!(answer["dataset"]["validation_file"]["n_examples"], 3);
    assert!(answer["memory"]["required_bytes"].as_u64().unwrap() > 0);
    let problems = answer["problems"].as_array().unwrap().iter();
    let warnings: Vec<_> =
        problems.map(|p| (&p["severity"], p["code"].as_str().unwrap())).collect();
    // The rows of the validation file are those of the training file.
    let warning = json!("warning");
    let expected = ["integration_without_effect", "few_examples", "leaked"];
    assert_eq!(warnings, expected.map(|code| (&warning, code)));
    let (_, jobs) = server.get("/v1/fine_tuning/jobs").await;
    assert_eq!(jobs["data"], json!([]));
    // The same body makes a job whose values are those that were announced.
    let job = server.create_job(&body).await;
    let queued = server.job_when(&job, "queued").await;
    assert_eq!(queued["hyperparameters"], hyperparameters);
    assert_eq!(queued["integrations"][0]["wandb"]["project"], "p");
    let told = server.messages(&job).await;
    assert!(told.iter().any(|text| text.contains("sends nothing to Weights & Biases")), "{told:?}");
}

#[tokio::test]
async fn every_fault_of_a_request_is_found_at_once() {
    let server = server().await;
    let long = "s".repeat(65);
    let body = json!({
        "model": "gpt-9", "training_file": "file-none", "validation_file": 7, "suffix": long,
        "seed": -1, "colour": "red", "metadata": {"k": 1},
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3, "n_epochs": 0}}},
        "integrations": [{"type": "mlflow"}],
        "finetuned": {"lora": {"rank": 0}, "max_seq_len": "long"},
    });
    let answer = validated(&server, &body).await;
    assert_eq!(answer["valid"], false);
    let expected = [
        ("unknown_parameter", "colour"),
        ("invalid_value", "finetuned.lora.rank"),
        ("invalid_type", "finetuned.max_seq_len"),
        ("invalid_value", "integrations[0].type"),
        ("invalid_type", "metadata.k"),
        ("decimal_above_max_value", "method.dpo.hyperparameters.beta"),
        ("integer_below_min_value", "method.dpo.hyperparameters.n_epochs"),
        ("model_not_available", "model"),
        ("integer_below_min_value", "seed"),
        ("string_above_max_length", "suffix"),
        ("file_not_found", "training_file"),
        ("invalid_type", "validation_file"),
    ];
    let expected: Vec<_> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
    assert_eq!(places(&answer), expected);
    assert_eq!(answer["total_problems"], 12);
    for problem in answer["problems"].as_array().unwrap() {
        assert_eq!((&problem["severity"], &problem["line"]), (&json!("error"), &Value::Null));
        assert!(!problem["remedy"].as_str().unwrap().is_empty(), "{problem}");
    }
    // Creation answers with the first of them.
    let (status, error) = server.post("/v1/fine_tuning/jobs", &body).await;
    assert_eq!(status, 400);
    let (code, param, message) = error_of(&error);
    let first = &answer["problems"][0];
    assert_eq!(
        (&code, &param, &json!(message)),
        (&first["code"], &first["path"], &first["message"])
    );

    let (status, error) = server.post(VALIDATE, &json!([])).await;
    assert_eq!(status, 400, "{error}");
    let empty = validated(&server, &json!({})).await;
    let missing = |field: &str| ("missing_required_parameter".to_owned(), field.to_owned());
    assert_eq!(places(&empty), [missing("model"), missing("training_file")]);
}

#[tokio::test]
async fn faults_of_both_files_carry_line_path_and_remedy() {
    let server = server().await;
    let mut bad = rows(12);
    bad.extend(b"nonsense\n{\"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}\n");
    let training = server.upload(&bad).await;
    let validation = server.upload(b"{\"messages\": []}\n").await;
    let body = json!({"model": MODEL, "training_file": training, "validation_file": validation,
                      "suffix": "s".repeat(65)});
    let answer = validated(&server, &body).await;
    assert_eq!((&answer["valid"], &answer["dataset"]), (&json!(false), &Value::Null));
    let problems = answer["problems"].as_array().unwrap();
    let at = |file: &str, line: u64| {
        let found = problems.iter().find(|p| p["file"] == file && p["line"] == line);
        found.unwrap_or_else(|| panic!("{file} {line}: {answer}"))
    };
    assert_eq!(problems[0]["code"], "string_above_max_length", "the request's faults come first");
    assert_eq!(at("training_file", 13)["code"], "invalid_json");
    let role = at("training_file", 14);
    assert_eq!(
        (&role["code"], &role["path"]),
        (&json!("unrecognized_role"), &json!("messages[0].role"))
    );
    assert!(role["remedy"].as_str().unwrap().contains("assistant"), "{role}");
    assert_eq!(at("validation_file", 1)["severity"], "error");
}

#[tokio::test]
async fn what_is_cut_is_a_warning() {
    let server = server().await;
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(600)},
                                   {"role": "assistant", "content": "yes"}]});
    let mut content = rows(12);
    content.extend(format!("{long}\n").bytes());
    let training = server.upload(&content).await;
    let answer = validated(&server, &json!({"model": MODEL, "training_file": training})).await;
    assert_eq!(answer["valid"], true);
    let warnings = answer["problems"].as_array().unwrap();
    let cut = warnings.iter().find(|problem| problem["code"] == "truncated").unwrap();
    assert_eq!((&cut["severity"], &cut["line"]), (&json!("warning"), &json!(13)));
    assert_eq!(cut["lines"], json!([13]));
}

#[tokio::test]
async fn doubtful_data_is_told_of_in_warnings_figures_and_events() {
    let server = server().await;
    let mut content = rows(20);
    let doubtful = [
        ("Who is it?", "Write to jane.doe@acme.co.uk."),
        ("What is 3 plus one?", "It is 5."),
        ("What is 4 plus one?", "It is 5."),
        ("What is the colour?", "  "),
    ];
    for (question, answer) in doubtful {
        let row = json!({"messages": [{"role": "user", "content": question},
                                      {"role": "assistant", "content": answer}]});
        content.extend(format!("{row}\n").bytes());
    }
    // A faulty row hides nothing of what is said about the others.
    content.extend(b"nonsense\n");
    let training = server.upload(&content).await;
    let answer = validated(&server, &json!({"model": MODEL, "training_file": training})).await;
    assert_eq!((&answer["valid"], &answer["dataset"]), (&json!(false), &Value::Null));
    let lines = |code: &str| {
        let found = answer["problems"].as_array().unwrap().iter().find(|p| p["code"] == code);
        let found = found.unwrap_or_else(|| panic!("{code}: {answer}"));
        assert!(!found["remedy"].as_str().unwrap().is_empty(), "{found}");
        found["lines"].clone()
    };
    assert_eq!(lines("pii_email"), json!([21]));
    assert_eq!(lines("contradiction"), json!([4, 22]));
    assert_eq!(lines("exact_duplicate"), json!([23]));
    assert_eq!(lines("empty_output"), json!([24]));
    let figures = &answer["quality"]["training_file"];
    assert_eq!((&figures["size"], &figures["contradictions"]), (&json!("too_few"), &json!(2)));

    content.truncate(content.len() - "nonsense\n".len());
    let training = server.upload(&content).await;
    let job = server.create_job(&json!({"model": MODEL, "training_file": training})).await;
    server.job_when(&job, "queued").await;
    let told = server.messages(&job).await;
    let expected = "Training file: 1 of 24 examples hold e-mail addresses: line 21";
    assert!(told.iter().any(|text| text == expected), "{told:?}");
}

#[tokio::test]
async fn rows_that_something_is_said_about_can_be_downloaded() {
    let server = server().await;
    let mut content = rows(20);
    content.extend(rows(1));
    content.extend(b"nonsense\n");
    let training = server.upload(&content).await;
    let validation = server.upload(&rows(2)).await;
    let body = json!({"model": MODEL, "training_file": training, "validation_file": validation});
    let download = async |query: &str| {
        let path = format!("{VALIDATE}/bad_lines{query}");
        let request = server.request(reqwest::Method::POST, &path).json(&body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/jsonl");
        let text = answer.text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let row = |n: usize| String::from_utf8(rows(n)).unwrap().lines().last().unwrap().to_owned();
    let repeated = json!({"line": 21, "problems": ["exact_duplicate"], "row": row(1)});
    let faulty = json!({"line": 22, "problems": ["invalid_json"], "row": "nonsense"});
    assert_eq!(download("").await, [repeated, faulty]);
    let leaked = |n: usize| json!({"line": n, "problems": ["leaked"], "row": row(n)});
    assert_eq!(download("?file=validation_file").await, [leaked(1), leaked(2)]);

    let refusal = async |query: &str, body: &Value| {
        let (status, error) = server.post(&format!("{VALIDATE}/bad_lines{query}"), body).await;
        assert_eq!(status, 400, "{error}");
        error_of(&error).1
    };
    assert_eq!(refusal("?file=test_file", &body).await, "file");
    assert_eq!(refusal("", &json!({"model": MODEL})).await, "training_file");
    let alone = json!({"model": MODEL, "training_file": training});
    assert_eq!(refusal("?file=validation_file", &alone).await, "file");
    let (_, jobs) = server.get("/v1/fine_tuning/jobs").await;
    assert_eq!(jobs["data"], json!([]));
}

#[tokio::test]
async fn a_good_request_is_priced_and_advised_on() {
    let price = server::HostedPrice {
        provider: "Elsewhere".to_owned(),
        model: "up to 16B".to_owned(),
        up_to_parameters: Some(16e9),
        per_million_tokens: 0.5,
        currency: "USD".to_owned(),
        as_of: "2026-01".to_owned(),
        source: "its price list".to_owned(),
    };
    let server = TestServer::with(|config| {
        config.device_memory = bytesize::ByteSize::gib(1);
        config.costs.gpu_hour_price = 2.0;
        config.costs.hosted = vec![price];
    });
    let server = server.await.with_model().await;
    let training = server.upload(&rows(12)).await;
    let validation = server.upload(&rows(3)).await;
    let mut body = json!({"model": MODEL, "training_file": training});
    let answer = validated(&server, &body).await;
    let number = |value: &Value| value.as_f64().unwrap();
    let here = &answer["cost"]["here"];
    assert_eq!(number(&here["amount"]), number(&answer["estimated_seconds"]) / 3600.0 * 2.0);
    let elsewhere = &answer["cost"]["hosted"][0];
    assert_eq!(number(&elsewhere["amount"]), number(&answer["trained_tokens"]) / 1e6 * 0.5);
    assert_eq!(elsewhere["as_of"], "2026-01");
    let advice = &answer["advice"];
    assert_eq!(
        (&advice["method"]["tuning"], &advice["memory_bytes"]),
        (&json!("lora"), &json!(1 << 30))
    );
    assert_eq!(
        (&advice["method"]["is_chosen"], advice["alternatives"].as_array().unwrap().len()),
        (&json!(true), 5)
    );
    // What the memory estimate says of the job is what stands among the alternatives.
    let lora = &advice["alternatives"][1];
    assert_eq!((&lora["tuning"], &lora["fits"]), (&json!("lora"), &json!("whole")));
    assert_eq!(lora["required_bytes"], answer["memory"]["required_bytes"]);
    assert_eq!(advice["settings"][0]["field"], "validation_file");
    body["validation_file"] = json!(validation);
    let answer = validated(&server, &body).await;
    assert_eq!(answer["advice"]["settings"][0]["field"], "finetuned.early_stopping");
}

#[tokio::test]
async fn reinforcement_is_checked_and_then_refused() {
    let server = server().await;
    let training = server.upload(&rows(12)).await;
    let request = |block: Value, validation: Value| {
        json!({"model": MODEL, "training_file": training, "validation_file": validation,
               "method": {"type": "reinforcement", "reinforcement": block}})
    };
    let refusal = async |body: &Value| {
        let (status, error) = server.post("/v1/fine_tuning/jobs", body).await;
        assert_eq!(status, 400, "{error}");
        error_of(&error)
    };
    let grader = json!({"type": "string_check", "name": "g", "operation": "eq",
                        "input": "{{sample.output_text}}", "reference": "{{item.answer}}"});
    let (_, param, _) = refusal(&request(json!({}), json!(training))).await;
    assert_eq!(param, "method.reinforcement.grader");
    let label = json!({"grader": {"type": "label_model"}});
    let (_, param, _) = refusal(&request(label, json!(training))).await;
    assert_eq!(param, "method.reinforcement.grader.type");
    let (code, param, _) = refusal(&request(json!({"grader": grader}), Value::Null)).await;
    assert_eq!((code, param), (json!("missing_required_parameter"), json!("validation_file")));
    let (_, param, message) = refusal(&request(json!({"grader": grader}), json!(training))).await;
    assert_eq!(param, "method.type");
    assert!(message.contains("'reinforcement' is not available"), "{message}");
    let answer = validated(&server, &request(json!({"grader": grader}), Value::Null)).await;
    assert_eq!(answer["total_problems"], 2);
}
