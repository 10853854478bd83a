//! Jobs that go on from a tuned model: what is asked, what is kept, and what a worker is told.

mod common;

use common::worker::{Run, Worker, metrics};
use common::{MODEL, TestServer, error_of, rows};
use domain::report::CheckpointKind;
use reqwest::Method;
use serde_json::{Value, json};

async fn body(server: &TestServer, model: &str, options: Value) -> Value {
    let file = server.upload(&rows(12)).await;
    json!({"model": model, "training_file": file, "finetuned": options})
}

/// A job that runs.
async fn running<'a>(server: &'a TestServer, model: &str, options: Value) -> Run<'a> {
    let job = server.create_job(&body(server, model, options).await).await;
    server.job_when(&job, "queued").await;
    Worker::of(server).claim(20).await.expect("a job waits")
}

async fn finish(run: &Run<'_>) -> String {
    let last = run.checkpoint(CheckpointKind::Final, &metrics(4, 4)).await;
    let finish = json!({"checkpoint_id": last, "trained_tokens": 120});
    run.post("/finish", &finish).await.1["fine_tuned_model"].as_str().unwrap().to_owned()
}

async fn tuned(server: &TestServer, options: Value) -> String {
    finish(&running(server, MODEL, options).await).await
}

#[tokio::test]
async fn a_job_goes_on_with_the_shape_and_the_lineage_of_its_start() {
    let server = TestServer::start().await.with_model().await;
    let lora = json!({"lora": {"rank": 5, "rslora": true, "target_modules": ["q_proj", "o_proj"]}});
    let first = tuned(&server, lora).await;
    let run = running(&server, &first, json!({"learning_rate": 1e-5})).await;
    let job = server.get(&format!("/v1/fine_tuning/jobs/{}", run.claimed.job_id)).await.1;
    assert_eq!(job["model"], first, "as it was asked for");
    let h = &run.claimed.hyperparameters;
    assert_eq!((h.lora.rank, h.lora.rslora, h.learning_rate), (5, true, 1e-5));
    assert_eq!(h.lora.target_modules, ["q_proj", "o_proj"]);
    assert_eq!(run.claimed.base_model.id.as_str(), MODEL);
    let start = run.claimed.start_from.as_ref().expect("weights to go on from");
    assert_eq!(start.model_id.as_str(), first);
    assert!(start.files.iter().any(|file| file.name == "adapter_model.safetensors"));
    assert!(start.files.iter().all(|file| file.name != "optimizer.safetensors"));
    let path = format!("/adapters/{first}/files/adapter_config.json");
    let file = Worker::of(&server).request(Method::GET, &path).send().await.unwrap();
    assert_eq!(file.text().await.unwrap(), "adapter_config.json of step 4");

    // It is needed until the job has ended.
    let (status, error) = server.delete(&format!("/v1/models/{first}")).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.contains(run.claimed.job_id.as_str()), "{error}");
    let second = finish(&run).await;
    assert!(second.starts_with("ft:tiny-chat:personal::"), "{second}");
    let shown = server.get(&format!("/v1/models/{second}")).await.1;
    assert_eq!((&shown["root"], &shown["parent"]), (&json!(MODEL), &json!(first)));
    assert_eq!(server.delete(&format!("/v1/models/{first}")).await.0, 200);
    let shown = server.get(&format!("/v1/models/{second}")).await.1;
    assert_eq!(shown["parent"], first, "lineage outlives the model");
}

#[tokio::test]
async fn a_checkpoint_that_a_job_goes_on_from_stays() {
    let server = TestServer::start().await.with_model().await;
    let run = running(&server, MODEL, json!({})).await;
    run.checkpoint(CheckpointKind::Epoch, &metrics(1, 5)).await;
    let list = format!("/v1/fine_tuning/jobs/{}/checkpoints", run.claimed.job_id);
    let model = server.get(&list).await.1["data"][0]["fine_tuned_model_checkpoint"].clone();
    let model = model.as_str().unwrap();
    let body = body(&server, model, json!({})).await;
    let then = server.create_job(&body).await;
    // Only three are kept, but for the one that is needed.
    for step in 2..=5 {
        run.checkpoint(CheckpointKind::Epoch, &metrics(step, 5)).await;
    }
    let steps = async || {
        let list = server.get(&list).await.1;
        let data = list["data"].as_array().unwrap().iter();
        data.map(|one| one["step_number"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(steps().await, [5, 4, 3, 1]);
    let (status, error) = server.delete(&format!("/v1/models/{model}")).await;
    assert_eq!((status.as_u16(), error_of(&error).0), (400, Value::Null));
    let (status, _) = server.post_empty(&format!("/v1/fine_tuning/jobs/{then}/cancel")).await;
    assert_eq!(status, 200);
    run.checkpoint(CheckpointKind::Epoch, &metrics(6, 6)).await;
    assert_eq!(steps().await, [6, 5, 4], "nobody needs it any more");
}

#[tokio::test]
async fn another_shape_than_that_of_the_start_is_refused_at_creation() {
    let server = TestServer::start().await.with_model().await;
    let lora = tuned(&server, json!({"lora": {"rank": 8}})).await;
    let full = tuned(&server, json!({"tuning": "full"})).await;
    for (model, options, param) in [
        (&lora, json!({"lora": {"rank": 4}}), "finetuned.lora.rank"),
        (&lora, json!({"tuning": "full"}), "finetuned.tuning"),
        (&full, json!({"tuning": "lora"}), "finetuned.tuning"),
        (&full, json!({"lora": {"rank": 8}}), "finetuned.lora"),
    ] {
        let body = body(&server, model, options).await;
        let (status, error) = server.post("/v1/fine_tuning/jobs", &body).await;
        assert_eq!((status.as_u16(), error_of(&error).1), (400, json!(param)), "{error}");
    }
    let mut reward = body(&server, &full, json!({})).await;
    reward["method"] = json!({"type": "dpo", "dpo": {"hyperparameters": {"loss_type": "reward"}}});
    let (status, error) = server.post("/v1/fine_tuning/jobs", &reward).await;
    assert_eq!((status.as_u16(), error_of(&error).1), (400, json!("model")), "{error}");
}
