//! Fine-tuning jobs from creation to the tuned model, with a scripted worker.

mod common;

use common::worker::{Run, Worker, adapter_files, metrics};
use common::{MODEL, TestServer, error_of, rows, until};
use domain::report::{CheckpointKind, Level, RunReport, RunStarted, StepMetrics};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn server() -> TestServer {
    TestServer::start().await.with_model().await
}

fn started() -> RunReport {
    RunReport::Started(RunStarted {
        completed_steps: 0,
        total_steps: 4,
        train_examples: 12,
        valid_examples: 0,
        tokens_per_epoch: 300,
        trainable_parameters: 1000,
    })
}

/// A job that waits in the queue.
async fn queued(server: &TestServer, extra: Value) -> String {
    let file = server.upload(&rows(12)).await;
    let mut body = json!({"model": MODEL, "training_file": file});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    let job = server.create_job(&body).await;
    server.job_when(&job, "queued").await;
    job
}

async fn claim<'a>(server: &'a TestServer, job: &str) -> Run<'a> {
    let run = Worker::of(server).claim(20).await.expect("a job waits");
    assert_eq!(run.claimed.job_id.as_str(), job);
    run
}

#[tokio::test]
async fn a_job_goes_from_file_to_model() {
    let server = server().await;
    let training = server.upload(&rows(12)).await;
    let validation = server.upload(&rows(2)).await;
    let request = json!({
        "model": MODEL, "training_file": training, "validation_file": validation,
        "suffix": "my model", "seed": 42, "metadata": {"team": "red"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        "finetuned": {"lora": {"rank": 8}},
    });
    let (status, created) = server.post("/v1/fine_tuning/jobs", &request).await;
    assert_eq!(status, 200, "{created}");
    let requested =
        json!({"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"});
    let job = created["id"].as_str().unwrap().to_owned();
    assert_eq!(
        created,
        json!({
            "id": job, "object": "fine_tuning.job", "model": MODEL,
            "created_at": created["created_at"], "finished_at": null, "fine_tuned_model": null,
            "organization_id": created["organization_id"], "result_files": [],
            "status": "validating_files", "validation_file": validation,
            "training_file": training, "hyperparameters": requested, "trained_tokens": null,
            "error": null, "user_provided_suffix": "my model", "seed": 42,
            "estimated_finish": null, "integrations": [], "metadata": {"team": "red"},
            "usage_metrics": null, "shared_with_openai": false,
            "method": {"type": "supervised", "supervised": {"hyperparameters": requested}},
            "finetuned": null,
        })
    );
    assert!(created["organization_id"].as_str().unwrap().starts_with("org-"));

    let queued = server.job_when(&job, "queued").await;
    let resolved = json!({"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.0});
    assert_eq!(queued["hyperparameters"], resolved);
    assert_eq!(queued["method"]["supervised"]["hyperparameters"], resolved);
    let ours = &queued["finetuned"];
    assert_eq!((&ours["lora"]["rank"], &ours["lora"]["alpha"]), (&json!(8), &json!(16.0)));
    assert_eq!(ours["max_seq_len"], 512, "never more than the model's context");
    assert_eq!(ours["dataset"]["training_file"]["n_examples"], 12);
    assert_eq!((&ours["queue_position"], &ours["learning_rate"]), (&json!(0), &json!(5e-4)));

    let model = train(&server, &job, &training).await;

    let done = server.job_when(&job, "succeeded").await;
    assert_eq!(done["fine_tuned_model"], model);
    assert_eq!((&done["trained_tokens"], &done["estimated_finish"]), (&json!(120), &Value::Null));
    assert!(done["finished_at"].is_i64() && done["error"].is_null());
    check_results(&server, &done).await;
    check_events(&server, &job, &training, &validation, &model).await;
    check_models(&server, &job, &model).await;
}

#[tokio::test]
async fn a_job_s_precision_is_its_own_or_the_first_worker_s() {
    let server = server().await;
    let training = server.upload(&rows(12)).await;
    for (asked, shown, claimed) in
        [(None, "auto", "fp32"), (Some("bf16"), "bf16", "bf16"), (Some("fp32"), "fp32", "fp32")]
    {
        let request = json!({
            "model": MODEL, "training_file": training, "finetuned": {"precision": asked},
        });
        let (status, created) = server.post("/v1/fine_tuning/jobs", &request).await;
        assert_eq!(status, 200, "{created}");
        let job = created["id"].as_str().unwrap();
        assert_eq!(server.job_when(job, "queued").await["finetuned"]["precision"], shown);
        let run = claim(&server, job).await;
        assert_eq!(run.claimed.hyperparameters.precision.as_str(), claimed);
        assert_eq!(run.claimed.base_model.precision.as_str(), claimed);
        assert_eq!(server.job_when(job, "running").await["finetuned"]["precision"], claimed);
        let (status, _) =
            server.post(&format!("/v1/fine_tuning/jobs/{job}/cancel"), &json!({})).await;
        assert_eq!(status, 200);
    }
    let request =
        json!({"model": MODEL, "training_file": training, "finetuned": {"precision": "fp8"}});
    let (status, error) = server.post("/v1/fine_tuning/jobs", &request).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("finetuned.precision")));
}

/// The worker's part; gives the tuned model's name.
async fn train(server: &TestServer, job: &str, training: &str) -> String {
    let run = claim(server, job).await;
    assert_eq!(run.claimed.hyperparameters.seed, 42);
    assert_eq!(run.claimed.base_model.id.as_str(), MODEL);
    let file = run.request(Method::GET, &format!("/files/{training}")).send().await.unwrap();
    assert_eq!(file.bytes().await.unwrap(), rows(12));
    let (status, beat) = run.post("/heartbeat", &json!({"step": 0})).await;
    assert_eq!((status.as_u16(), &beat["directive"]), (200, &json!("continue")));

    let second = StepMetrics {
        valid_loss: Some(1.25),
        valid_mean_token_accuracy: Some(0.25),
        full_valid_loss: Some(1.5),
        full_valid_mean_token_accuracy: Some(0.5),
        ..metrics(2, 4)
    };
    let reports = [started(), RunReport::Step(metrics(1, 4)), RunReport::Step(second.clone())];
    assert_eq!(run.report(0, &reports).await, StatusCode::NO_CONTENT);
    assert_eq!(run.report(0, &reports).await, StatusCode::NO_CONTENT, "a repeat is harmless");
    let running = server.job_when(job, "running").await;
    let left =
        running["estimated_finish"].as_i64().unwrap() - running["created_at"].as_i64().unwrap();
    assert!((39..=60).contains(&left), "{left}");
    run.checkpoint(CheckpointKind::Epoch, &second).await;
    run.report(3, &[RunReport::Step(metrics(3, 4)), RunReport::Step(metrics(4, 4))]).await;
    let last = run.checkpoint(CheckpointKind::Final, &metrics(4, 4)).await;
    let finish = json!({"checkpoint_id": last, "trained_tokens": 120});
    let (status, finished) = run.post("/finish", &finish).await;
    assert_eq!(status, 200, "{finished}");
    let model = finished["fine_tuned_model"].as_str().unwrap().to_owned();
    assert!(model.starts_with("ft:tiny-chat:personal:my-model:"), "{model}");
    assert_eq!(run.post("/finish", &finish).await.1, finished, "a repeat gives the first answer");
    model
}

async fn check_results(server: &TestServer, job: &Value) {
    let ids: Vec<&str> =
        job["result_files"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2);
    let (_, file) = server.get(&format!("/v1/files/{}", ids[0])).await;
    assert_eq!(
        (&file["filename"], &file["purpose"]),
        (&json!("step_metrics.csv"), &json!("fine-tune-results"))
    );
    let csv = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n\
               1,2.0,0.5,,\n2,1.0,0.5,1.25,0.25\n3,0.66667,0.5,,\n4,0.5,0.5,,\n";
    let read = async |id: &str, query: &str| {
        let path = format!("/v1/files/{id}/content{query}");
        server.request(Method::GET, &path).send().await.unwrap().text().await.unwrap()
    };
    assert_eq!(read(ids[0], "?format=csv").await, csv);
    use base64::Engine;
    let plain = base64::engine::general_purpose::STANDARD.decode(read(ids[0], "").await).unwrap();
    assert_eq!(String::from_utf8(plain).unwrap(), csv);
    let all = read(ids[1], "").await;
    assert!(all.starts_with("step,epoch,train_loss,"), "{all}");
    assert_eq!(all.lines().count(), 5);
}

async fn check_events(
    server: &TestServer,
    job: &str,
    training: &str,
    validation: &str,
    model: &str,
) {
    let messages = server.story(job).await;
    let snapshot = messages[6].rsplit(' ').next().unwrap().to_owned();
    assert!(snapshot.ends_with(":ckpt-step-2"), "{snapshot}");
    assert_eq!(
        messages,
        [
            format!("Created fine-tuning job: {job}"),
            format!("Validating training file: {training} and validation file: {validation}"),
            "Files validated, moving job to queued state".to_owned(),
            "Fine-tuning job started".to_owned(),
            "Step 1/4: training loss=2.00".to_owned(),
            "Step 2/4: training loss=1.00, validation loss=1.25, full validation loss=1.50"
                .to_owned(),
            format!("Checkpoint created at step 2 with Snapshot ID: {snapshot}"),
            "Step 3/4: training loss=0.67".to_owned(),
            "Step 4/4: training loss=0.50".to_owned(),
            format!("New fine-tuned model created: {model}"),
            "The job has successfully completed".to_owned(),
        ]
    );
    let path = format!("/v1/fine_tuning/jobs/{job}/events");
    let (_, page) = server.get(&format!("{path}?limit=6")).await;
    assert_eq!((page["data"].as_array().unwrap().len(), &page["has_more"]), (6, &json!(true)));
    let step = &page["data"][5];
    assert_eq!((&step["type"], &step["level"]), (&json!("metrics"), &json!("info")));
    assert_eq!(step["object"], "fine_tuning.job.event");
    for (key, value) in [
        ("step", json!(2)),
        ("total_steps", json!(4)),
        ("train_loss", json!(1.0)),
        ("valid_loss", json!(1.25)),
        ("full_valid_loss", json!(1.5)),
        ("train_mean_token_accuracy", json!(0.5)),
        ("valid_mean_token_accuracy", json!(0.25)),
        ("full_valid_mean_token_accuracy", json!(0.5)),
    ] {
        assert_eq!(step["data"][key], value, "{key}");
    }
    let after = page["last_id"].as_str().unwrap();
    let (_, rest) = server.get(&format!("{path}?after={after}")).await;
    let older = server.messages(job).await.len() - 6;
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (older, &json!(false)));
}

async fn check_models(server: &TestServer, job: &str, model: &str) {
    let (_, list) = server.get(&format!("/v1/fine_tuning/jobs/{job}/checkpoints")).await;
    let checkpoints = list["data"].as_array().unwrap();
    let steps: Vec<&Value> = checkpoints.iter().map(|c| &c["step_number"]).collect();
    assert_eq!(steps, [&json!(4), &json!(2)]);
    assert_eq!(checkpoints[0]["fine_tuned_model_checkpoint"], model, "the last one is the model");
    let second = &checkpoints[1];
    assert_eq!(
        (&second["object"], &second["fine_tuning_job_id"]),
        (&json!("fine_tuning.job.checkpoint"), &json!(job))
    );
    assert_eq!(second["metrics"]["full_valid_loss"], 1.5);
    assert!(second["metrics"]["step"].is_u64());
    let snapshot = second["fine_tuned_model_checkpoint"].as_str().unwrap();
    for id in [model, snapshot] {
        let (status, shown) = server.get(&format!("/v1/models/{id}")).await;
        assert_eq!((status.as_u16(), &shown["parent"]), (200, &json!(MODEL)));
        assert_eq!(shown["owned_by"], "personal");
        assert_eq!((&shown["root"], &shown["fine_tuning_job_id"]), (&json!(MODEL), &json!(job)));
        assert_eq!(shown["step_number"], if id == model { 4 } else { 2 });
        assert_eq!((&shown["tuning"], &shown["max_model_len"]), (&json!("lora"), &json!(512)));
    }
    let worker = Worker::of(server);
    let path = format!("/adapters/{model}/files/adapter_config.json");
    let adapter = worker.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(adapter.text().await.unwrap(), "adapter_config.json of step 4");
    let base = worker.request(Method::GET, "/models/tiny-chat").send().await.unwrap();
    let base: domain::internal::BaseModel = base.json().await.unwrap();
    assert!(base.files.iter().any(|file| file.name == "tokenizer.json"));
    let weights = worker.request(Method::GET, "/models/tiny-chat/files/model.safetensors");
    assert_eq!(weights.send().await.unwrap().text().await.unwrap(), "no weights");
    let (status, gone) = server.delete(&format!("/v1/models/{model}")).await;
    assert_eq!(
        (status.as_u16(), gone),
        (200, json!({"id": model, "object": "model", "deleted": true}))
    );
    assert_eq!(server.get(&format!("/v1/models/{model}")).await.0, 404);
}

#[tokio::test]
async fn a_worker_that_waits_gets_a_new_job_at_once() {
    let server = server().await;
    let file = server.upload(&rows(12)).await;
    let worker = Worker::of(&server);
    let claiming = worker.claim(20);
    let body = json!({"model": MODEL, "training_file": file});
    let creating = server.create_job(&body);
    let (run, job) = tokio::join!(claiming, creating);
    assert_eq!(run.unwrap().claimed.job_id.as_str(), job);
    assert!(Worker::of(&server).claim(0).await.is_none(), "it runs once");
}

#[tokio::test]
async fn a_cancelled_run_loses_its_lease() {
    let server = server().await;
    let job = queued(&server, json!({})).await;
    let run = claim(&server, &job).await;
    let (status, cancelled) =
        server.post_empty(&format!("/v1/fine_tuning/jobs/{job}/cancel")).await;
    assert_eq!((status.as_u16(), &cancelled["status"]), (200, &json!("cancelled")));
    for (path, body) in [
        ("/heartbeat", json!({"step": 1})),
        ("/reports", json!({"first_seq": 0, "reports": [started()]})),
        ("/release", json!({})),
        ("/fail", json!({"code": "x", "param": null, "message": "y", "retryable": true})),
        ("/finish", json!({"checkpoint_id": "ftckpt_x", "trained_tokens": 1})),
    ] {
        let (status, error) = run.post(path, &body).await;
        assert_eq!((status.as_u16(), &error["code"]), (409, &json!("lease_lost")), "{path}");
    }
    let (status, error) = server.post_empty(&format!("/v1/fine_tuning/jobs/{job}/cancel")).await;
    assert_eq!(status, 400, "no 409: clients would try again and again");
    assert!(error_of(&error).2.contains("cancelled"));
}

#[tokio::test]
async fn pause_and_resume_take_any_kind_of_empty_body() {
    let server = server().await;
    let job = queued(&server, json!({})).await;
    let run = claim(&server, &job).await;
    run.report(0, &[started(), RunReport::Step(metrics(1, 4))]).await;
    let path = |action: &str| format!("/v1/fine_tuning/jobs/{job}/{action}");
    // As the Python client sends it: a content type and no body.
    let request = server.request(Method::POST, &path("pause"));
    let request = request.header("content-type", "application/json").header("content-length", "0");
    let (status, body) = common::body(request.send().await.unwrap()).await;
    assert_eq!((status.as_u16(), &body["status"]), (200, &json!("running")));
    assert_eq!(run.post("/heartbeat", &json!({"step": 1})).await.1["directive"], "pause");
    run.checkpoint(CheckpointKind::Resume, &metrics(1, 4)).await;
    assert_eq!(run.post("/release", &json!({})).await.0, StatusCode::NO_CONTENT);
    server.job_when(&job, "paused").await;
    let (status, body) = server.post(&path("resume"), &json!({})).await;
    assert_eq!((status.as_u16(), &body["status"]), (200, &json!("queued")));
    let run = claim(&server, &job).await;
    let resume_from = run.claimed.resume_from.as_ref().expect("a committed checkpoint");
    assert_eq!(resume_from.step, 1);
    let id = &resume_from.checkpoint_id;
    let state = run.request(Method::GET, &format!("/checkpoints/{id}/files/state.json"));
    assert_eq!(state.send().await.unwrap().text().await.unwrap(), "state.json of step 1");
    let (status, error) = server.post_empty("/v1/fine_tuning/jobs/ftjob-none/resume").await;
    let expected = (
        json!("fine_tune_not_found"),
        json!("fine_tune_id"),
        "Could not find fine tune: ftjob-none".to_owned(),
    );
    assert_eq!((status.as_u16(), error_of(&error)), (404, expected));
}

#[tokio::test]
async fn a_failed_run_tells_why() {
    let server = server().await;
    let job = queued(&server, json!({})).await;
    let run = claim(&server, &job).await;
    let note = RunReport::Message { level: Level::Warn, message: "loss is rising".to_owned() };
    run.report(0, &[started(), note]).await;
    let failure = json!({"code": "loss_diverged", "param": null, "message": "The loss became infinite.",
                         "retryable": false});
    assert_eq!(run.post("/fail", &failure).await.0, StatusCode::NO_CONTENT);
    let failed = server.job_when(&job, "failed").await;
    let error =
        json!({"code": "loss_diverged", "message": "The loss became infinite.", "param": null});
    assert_eq!((&failed["error"], &failed["result_files"]), (&error, &json!([])));
    let messages = server.story(&job).await;
    assert_eq!(messages[4..], ["loss is rising", "The loss became infinite."]);
}

#[tokio::test]
async fn a_checkpoint_file_must_be_what_was_announced() {
    let server = server().await;
    let job = queued(&server, json!({})).await;
    let run = claim(&server, &job).await;
    run.report(0, &[started(), RunReport::Step(metrics(1, 4))]).await;
    let files = adapter_files(1);
    let id = run.begin(CheckpointKind::Final, &metrics(1, 4), &files).await;
    let (name, content) = &files[0];
    let mut other = content.clone();
    other[0] ^= 1;
    for wrong in [&other[..], &content[..3], b""] {
        let (status, error) = run.put(&id, name, wrong).await;
        assert_eq!((status.as_u16(), &error["code"]), (422, &json!("hash_mismatch")));
    }
    let commit = format!("/checkpoints/{id}/commit");
    assert!(run.post(&commit, &json!({})).await.0.is_client_error(), "files are missing");
    let finish = json!({"checkpoint_id": id, "trained_tokens": 1});
    assert!(run.post("/finish", &finish).await.0.is_client_error(), "nothing is committed");
    for (name, content) in &files {
        assert_eq!(run.put(&id, name, content).await.0, StatusCode::NO_CONTENT);
    }
    assert_eq!(run.post(&commit, &json!({})).await.0, StatusCode::NO_CONTENT);
    // Whatever happens to the blob behind the server's back, no broken model comes to be.
    let is_adapter =
        |path: &&std::path::PathBuf| std::fs::read(path).is_ok_and(|bytes| bytes == files[0].1);
    let blobs = server.blobs();
    std::fs::write(blobs.iter().find(is_adapter).unwrap(), b"spoiled").unwrap();
    let (status, error) = run.post("/finish", &finish).await;
    assert_eq!((status.as_u16(), &error["code"]), (422, &json!("hash_mismatch")));
    assert_eq!(server.get(&format!("/v1/fine_tuning/jobs/{job}")).await.1["status"], "running");
}

#[tokio::test]
async fn jobs_are_listed_by_page_and_by_metadata() {
    let server = server().await;
    let red = queued(&server, json!({"metadata": {"team": "red", "note": ""}})).await;
    let blue = queued(&server, json!({"metadata": {"team": "blue"}})).await;
    let plain = queued(&server, json!({})).await;
    let list = async |query: &str| {
        let (status, list) = server.get(&format!("/v1/fine_tuning/jobs{query}")).await;
        assert_eq!(status, 200, "{list}");
        let jobs = list["data"].as_array().unwrap().iter();
        let ids: Vec<String> = jobs.map(|job| job["id"].as_str().unwrap().to_owned()).collect();
        (ids, list["has_more"].as_bool().unwrap())
    };
    let all = vec![plain.clone(), blue.clone(), red.clone()];
    assert_eq!(list("").await, (all.clone(), false));
    assert_eq!(list("?limit=0").await, (all.clone(), false));
    assert_eq!(list("?limit=1").await, (all[..1].to_vec(), true));
    assert_eq!(list(&format!("?after={plain}")).await, (all[1..].to_vec(), false));
    assert_eq!(list("?after=ftjob-none").await, (vec![], false));
    assert_eq!(list("?metadata%5Bteam%5D=red").await, (vec![red.clone()], false));
    assert_eq!(list("?metadata[note]=").await, (vec![red.clone()], false));
    assert_eq!(list("?metadata[team]=red&metadata[note]=x").await, (vec![], false));
    assert_eq!(list("?metadata=null").await, (vec![plain], false));
}

#[tokio::test]
async fn an_idempotency_key_makes_one_job() {
    let server = server().await;
    let file = server.upload(&rows(12)).await;
    let create = async |epochs: u32| {
        let body = json!({"model": MODEL, "training_file": file,
                          "hyperparameters": {"n_epochs": epochs}});
        let request = server.request(Method::POST, "/v1/fine_tuning/jobs").json(&body);
        common::body(request.header("idempotency-key", "k 1").send().await.unwrap()).await
    };
    let (first, second) = tokio::join!(create(2), create(2));
    assert_eq!((first.0.as_u16(), second.0.as_u16()), (200, 200), "{} {}", first.1, second.1);
    assert_eq!(first.1["id"], second.1["id"]);
    let (status, error) = create(3).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains("Idempotency-Key"));
    let (_, jobs) = server.get("/v1/fine_tuning/jobs").await;
    assert_eq!(jobs["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_retry_of_a_client_makes_no_second_job() {
    let server = server().await;
    let file = server.upload(&rows(12)).await;
    let create = async |tries: &str, suffix: &str| {
        let body = json!({"model": MODEL, "training_file": file, "suffix": suffix});
        let request = server.request(Method::POST, "/v1/fine_tuning/jobs").json(&body);
        let request = request.header("x-stainless-retry-count", tries);
        let (status, job) = common::body(request.send().await.unwrap()).await;
        assert_eq!(status, 200, "{job}");
        job["id"].as_str().unwrap().to_owned()
    };
    let first = create("0", "a").await;
    assert_eq!(create("1", "a").await, first);
    assert_eq!(create("2", "a").await, first);
    assert_ne!(create("1", "b").await, first, "another body");
    let second = create("0", "a").await;
    assert_ne!(second, first, "who asks twice gets two");
    assert_eq!(create("1", "a").await, second);
    server
        .data
        .sql("update idempotency set created_at = now() - interval '16 minutes'")
        .await
        .unwrap();
    assert_ne!(create("1", "a").await, second, "too late to be the same request");
}

#[tokio::test]
async fn a_repeated_key_is_answered_even_when_the_file_is_gone() {
    let server = server().await;
    let file = server.upload(&rows(12)).await;
    let body = json!({"model": MODEL, "training_file": file});
    let create = async || {
        let request = server.request(Method::POST, "/v1/fine_tuning/jobs").json(&body);
        common::body(request.header("idempotency-key", "k").send().await.unwrap()).await
    };
    let (_, job) = create().await;
    let id = job["id"].as_str().unwrap();
    server.post_empty(&format!("/v1/fine_tuning/jobs/{id}/cancel")).await;
    assert_eq!(server.delete(&format!("/v1/files/{file}")).await.0, 200);
    let (status, again) = create().await;
    assert_eq!(
        (status.as_u16(), &again["id"], &again["status"]),
        (200, &job["id"], &json!("cancelled"))
    );
    // A deleted job is nobody's answer.
    assert_eq!(server.delete(&format!("/v1/fine_tuning/jobs/{id}")).await.0, 200);
    assert_eq!(create().await.0, 404);
}

#[tokio::test]
async fn metadata_can_be_replaced_and_removed() {
    let server = server().await;
    let job = queued(&server, json!({"metadata": {"team": "red"}})).await;
    let path = format!("/v1/fine_tuning/jobs/{job}");
    let (status, shown) = server.post(&path, &json!({"metadata": {"note": "x"}})).await;
    assert_eq!((status.as_u16(), &shown["metadata"]), (200, &json!({"note": "x"})));
    let (_, list) = server.get("/v1/fine_tuning/jobs?metadata[note]=x").await;
    assert_eq!(list["data"][0]["id"], json!(job));
    let (_, shown) = server.post(&path, &json!({"metadata": null})).await;
    assert_eq!(shown["metadata"], Value::Null);
    for (body, param) in [
        (json!({}), "metadata"),
        (json!({"metadata": {"k": 1}}), "metadata.k"),
        (json!({"metadata": {}, "suffix": "x"}), "suffix"),
        (json!({"metadata": {"k": "v".repeat(513)}}), "metadata.k"),
    ] {
        let (status, error) = server.post(&path, &body).await;
        assert_eq!((status.as_u16(), error_of(&error).1), (400, json!(param)));
    }
    let (status, _) =
        server.post("/v1/fine_tuning/jobs/ftjob-none", &json!({"metadata": null})).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_job_that_has_ended_can_be_deleted_and_its_model_stays() {
    let server = server().await;
    let job =
        queued(&server, json!({"seed": 42, "suffix": "my model", "metadata": {"team": "red"}}))
            .await;
    let path = format!("/v1/fine_tuning/jobs/{job}");
    let (status, error) = server.delete(&path).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains("Cancel it first"), "{error}");
    let (_, shown) = server.get(&path).await;
    let training = shown["training_file"].as_str().unwrap().to_owned();
    let model = train(&server, &job, &training).await;
    let done = server.job_when(&job, "succeeded").await;
    let result = done["result_files"][0].as_str().unwrap().to_owned();

    let (status, deleted) = server.delete(&path).await;
    let expected = json!({"id": job, "object": "fine_tuning.job", "deleted": true});
    assert_eq!((status.as_u16(), deleted), (200, expected));
    for gone in [&path, &format!("{path}/events"), &format!("{path}/checkpoints")] {
        assert_eq!(server.get(gone).await.0, 404, "{gone}");
    }
    assert_eq!(server.delete(&path).await.0, 404);
    assert_eq!(server.post_empty(&format!("{path}/cancel")).await.0, 404);
    assert_eq!(server.get(&format!("/v1/files/{result}")).await.0, 404);
    let (_, list) = server.get("/v1/fine_tuning/jobs").await;
    assert_eq!(list["data"], json!([]));
    // The model answers as before, from its files, and can be deleted.
    let adapter = format!("/adapters/{model}/files/adapter_config.json");
    let adapter = Worker::of(&server).request(Method::GET, &adapter).send().await.unwrap();
    assert_eq!(adapter.status(), 200);
    let models = format!("/v1/models/{model}");
    assert_eq!(server.get(&models).await.0, 200);
    assert_eq!(server.delete(&models).await.0, 200);
    for (what, left) in [("events", "0"), ("step_metrics", "0"), ("usage", "2")] {
        let count = server.data.value(&format!("select count(*) from {what}")).await;
        assert_eq!(count, left, "{what}");
    }
}

#[tokio::test]
async fn a_file_in_use_cannot_be_deleted() {
    let server = server().await;
    let job = queued(&server, json!({})).await;
    let (_, shown) = server.get(&format!("/v1/fine_tuning/jobs/{job}")).await;
    let file = shown["training_file"].as_str().unwrap();
    let (status, error) = server.delete(&format!("/v1/files/{file}")).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains(&job));
    server.post_empty(&format!("/v1/fine_tuning/jobs/{job}/cancel")).await;
    assert_eq!(server.delete(&format!("/v1/files/{file}")).await.0, 200);
    let (_, shown) = server.get(&format!("/v1/fine_tuning/jobs/{job}")).await;
    assert_eq!(shown["training_file"], file, "the job stays readable");
}

#[tokio::test]
async fn a_silent_worker_loses_its_run() {
    let server = TestServer::with(|config| {
        config.lease.ttl = std::time::Duration::from_millis(200);
        config.lease.reap_every = std::time::Duration::from_millis(50);
        config.lease.grace = std::time::Duration::from_millis(50);
    })
    .await
    .with_model()
    .await;
    let job = queued(&server, json!({})).await;
    let run = claim(&server, &job).await;
    until("the lease is lost", async || {
        let (status, error) = run.post("/reports", &json!({"first_seq": 0, "reports": []})).await;
        (status == 409 && error["code"] == "lease_lost").then_some(())
    })
    .await;
    let (_, shown) = server.get(&format!("/v1/fine_tuning/jobs/{job}")).await;
    assert_eq!(shown["status"], "queued");
}

#[tokio::test]
async fn memory_is_estimated_before_there_is_a_job() {
    let server = TestServer::start().await.with_model().await;
    let estimate = async |extra: Value| {
        let mut body = json!({"model": MODEL});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        server.post("/v1/fine_tuning/estimate", &body).await
    };
    let (status, plain) = estimate(json!({})).await;
    assert_eq!((status, &plain["object"]), (StatusCode::OK, &json!("fine_tuning.estimate")));
    // Embedding 300 × 64; two layers of q, k, v, o, the MLP and two norms; the final norm.
    let layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64;
    assert_eq!(plain["parameters"], 300 * 64 + 2 * layer + 64);
    assert_eq!(plain["weights_bytes"], plain["parameters"].as_u64().unwrap() * 4);
    let required = |body: &Value| body["required_bytes"].as_u64().unwrap();
    let (_, high) = estimate(json!({"finetuned": {"lora": {"rank": 64}}})).await;
    let (_, low) = estimate(json!({"finetuned": {"gradient_checkpointing": "full"}})).await;
    assert!(required(&low) < required(&plain) && required(&plain) < required(&high));

    let (status, error) = estimate(json!({"model": "gpt-9"})).await;
    assert_eq!((status.as_u16(), error_of(&error).0), (400, json!("model_not_available")));
    let (status, error) = estimate(json!({"finetuned": {"lora": {"rank": 0}}})).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("finetuned.lora.rank")));
}
