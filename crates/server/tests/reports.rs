//! Reports of jobs over the API: a scripted worker trains, and answers as three contenders.

mod common;

use common::answering::{Answering, DONE, take};
use common::worker::{Worker, metrics};
use common::{MODEL, TestServer, error_of, until};
use domain::engine::{FinishReason, GenerationEvent};
use domain::internal::InferenceTask;
use domain::report::{CheckpointKind, RunReport, StepMetrics};
use serde_json::{Value, json};

fn row(question: &str, answer: &str) -> String {
    let row = json!({"messages": [
        {"role": "system", "content": "One word."},
        {"role": "user", "content": question}, {"role": "assistant", "content": answer}]});
    format!("{row}\n")
}

/// Good things and bad things, in turns.
fn labelled(word: &str, n: usize) -> String {
    let one = |i: usize| match i % 2 {
        0 => row(&format!("Is {word} {i} nice?"), "good"),
        _ => row(&format!("Is {word} {i} foul?"), "bad"),
    };
    (0..n).map(one).collect()
}

async fn create(server: &TestServer, validation: Option<&str>) -> String {
    let training = server.upload(labelled("rose", 12).as_bytes()).await;
    let mut body = json!({"model": MODEL, "training_file": training, "seed": 5});
    if let Some(rows) = validation {
        body["validation_file"] = server.upload(rows.as_bytes()).await.into();
    }
    let job = server.create_job(&body).await;
    server.job_when(&job, "queued").await;
    job
}

/// Trains the job to its end in one step.
async fn train(server: &TestServer, job: &str) {
    let run = Worker::of(server).claim(20).await.expect("a job waits");
    assert_eq!(run.claimed.job_id.as_str(), job);
    let step = StepMetrics { full_valid_loss: Some(0.5), ..metrics(1, 1) };
    assert_eq!(run.report(0, &[RunReport::Step(step.clone())]).await, 204);
    let id = run.checkpoint(CheckpointKind::Final, &step).await;
    let (status, body) =
        run.post("/finish", &json!({"checkpoint_id": id, "trained_tokens": 30})).await;
    assert!(status.is_success(), "{body}");
    server.job_when(job, "succeeded").await;
}

fn path(job: &str) -> String {
    format!("/v1/fine_tuning/jobs/{job}/report")
}

async fn answer(server: &TestServer, task: &InferenceTask, text: &str) {
    let answering = Answering::open(server, task);
    answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
    answering
        .send(serde_json::from_value(json!({"event": "delta", "index": 0, "text": text})).unwrap())
        .await;
    let reason = FinishReason::Stop;
    answering
        .send(
            serde_json::from_value(json!({"event": "finished", "index": 0, "reason": reason}))
                .unwrap(),
        )
        .await;
    answering.send(DONE).await;
    answering.end().await;
}

/// The report once it is made, by a worker that says what `says` says.
async fn made(server: &TestServer, job: &str, says: impl Fn(&InferenceTask) -> String) -> Value {
    let serving = async {
        loop {
            let task = take(server).await;
            answer(server, &task, &says(&task)).await;
        }
    };
    let asking = until("the report is made", async || {
        let (status, report) = server.get(&path(job)).await;
        assert_eq!(status, 200, "{report}");
        assert_ne!(report["status"], "failed", "{report}");
        (report["status"] == "completed").then_some(report)
    });
    tokio::select! {
        report = asking => report,
        () = serving => unreachable!("the worker serves for ever"),
    }
}

fn messages(task: &InferenceTask) -> Vec<Value> {
    let question = serde_json::to_value(&task.question).unwrap();
    question["prompt"]["messages"].as_array().unwrap().clone()
}

/// The tuned model is always right, the base model never, and with examples for nice things only.
fn clever(task: &InferenceTask) -> String {
    let messages = messages(task);
    let question = messages.last().unwrap()["content"].as_str().unwrap();
    let right = if question.contains("nice") { "good" } else { "bad" };
    match (task.adapter.is_some(), messages.len() > 2) {
        (true, _) => right.to_owned(),
        (false, true) => "good\n".to_owned(),
        (false, false) => format!("I think it is {right}."),
    }
}

#[tokio::test]
async fn a_report_compares_the_tuned_model_with_what_it_was_tuned_from() {
    let server = TestServer::start().await.with_model().await;
    let job = create(&server, Some(&labelled("tulip", 20))).await;
    train(&server, &job).await;
    let report = made(&server, &job, clever).await;
    assert_eq!(
        (&report["object"], &report["job_id"]),
        (&json!("fine_tuning.job.report"), &json!(job))
    );
    assert_eq!(
        (&report["task"], &report["primary_metric"]),
        (&json!("classification"), &json!("accuracy"))
    );
    assert_eq!((&report["held_out"]["rows"], &report["held_out"]["of"]), (&json!(20), &json!(20)));
    let of = |name: &str| {
        let contenders = report["contenders"].as_array().unwrap();
        contenders.iter().find(|contender| contender["name"] == name).unwrap().clone()
    };
    for (name, accuracy, shots) in [("tuned", 1.0, 0), ("base", 0.0, 0), ("few_shot", 0.5, 4)] {
        let found = of(name);
        assert_eq!(found["metrics"]["accuracy"], accuracy, "{found}");
        assert_eq!(found["metrics"]["exact_match"], accuracy, "{found}");
        assert_eq!(found["examples_in_prompt"], shots, "{found}");
    }
    assert_eq!(of("base")["model"], MODEL);
    assert!(of("tuned")["model"].as_str().unwrap().starts_with("ft:"));
    // Labels are as common as each other, so they stand by the alphabet; the last column is no label.
    assert_eq!(
        of("tuned")["confusion"],
        json!({"labels": ["bad", "good"], "counts": [[10, 0, 0], [0, 10, 0]]})
    );
    assert_eq!(of("base")["confusion"]["counts"], json!([[0, 0, 10], [0, 0, 10]]));
    assert_eq!(of("few_shot")["labels"][1]["precision"], 0.5);
    let comparison = &report["comparison"];
    let base = &comparison["base"];
    assert_eq!((&base["won"], &base["lost"], &base["tied"]), (&json!(20), &json!(0), &json!(0)));
    assert_eq!(
        (&base["difference"], &base["low"], &base["high"]),
        (&json!(1.0), &json!(1.0), &json!(1.0))
    );
    assert_eq!(base["sign_test_p"].as_f64().unwrap(), 2f64.powi(-19));
    let few_shot = &comparison["few_shot"];
    assert_eq!((&few_shot["won"], &few_shot["tied"]), (&json!(10), &json!(10)));
    assert!(few_shot["low"].as_f64().unwrap() > 0.2 && few_shot["high"].as_f64().unwrap() < 0.8);
    let verdict = report["verdict"].as_str().unwrap();
    assert!(
        verdict.starts_with(
            "On 20 held-out rows (accuracy): the tuned model 100.0 %, the base model 0.0 %"
        ),
        "{verdict}"
    );
    assert!(verdict.contains("is better than the base model (+100.0 points"), "{verdict}");
    let first = &report["rows"][0];
    assert_eq!((&first["row"], &first["expected"]), (&json!(1), &json!("good")));
    assert_eq!(first["input"][1]["content"], "Is tulip 0 nice?");
    assert_eq!(
        (&first["tuned"]["text"], &first["tuned"]["scores"]["accuracy"]),
        (&json!("good"), &json!(1.0))
    );
    assert_eq!(first["base"]["scores"]["accuracy"], 0.0);
    assert_eq!(report["loss"]["tuned"], 0.5);
    assert_eq!(report["curves"][0]["full_valid_loss"], 0.5);
}

#[tokio::test]
async fn a_report_is_made_anew_with_other_rows_and_is_gone_with_its_job() {
    let server = TestServer::start().await.with_model().await;
    let job = create(&server, Some(&labelled("tulip", 20))).await;
    train(&server, &job).await;
    let wish = json!({"rows": 6, "few_shot": 0, "seed": 1});
    let (status, begun) = server.post(&path(&job), &wish).await;
    assert_eq!((status.as_u16(), &begun["verdict"]), (200, &Value::Null), "{begun}");
    let report = made(&server, &job, clever).await;
    assert_eq!((&report["held_out"]["rows"], &report["held_out"]["of"]), (&json!(6), &json!(20)));
    assert_eq!(report["contenders"].as_array().unwrap().len(), 2);
    assert_eq!(report["comparison"]["few_shot"], Value::Null);
    // What is made stays, and the same wish comes to the same rows.
    assert_eq!(server.get(&path(&job)).await.1, report);
    server.post(&path(&job), &wish).await;
    assert_eq!(made(&server, &job, clever).await["rows"], report["rows"]);
    for (body, param) in [
        (json!({"rows": 0}), "rows"),
        (json!({"rows": 1001}), "rows"),
        (json!({"few_shot": 33}), "few_shot"),
        (json!({"seed": -1}), "seed"),
        (json!({"other": 1}), "other"),
    ] {
        let (status, error) = server.post(&path(&job), &body).await;
        assert_eq!((status.as_u16(), error_of(&error).1), (400, json!(param)), "{error}");
    }
    assert_eq!(server.delete(&format!("/v1/fine_tuning/jobs/{job}")).await.0, 200);
    let (status, error) = server.get(&path(&job)).await;
    assert_eq!(
        (status.as_u16(), error_of(&error).0),
        (404, json!("fine_tune_not_found")),
        "{error}"
    );
}

#[tokio::test]
async fn without_held_out_rows_or_a_model_there_is_no_report_and_the_reason_is_told() {
    let server = TestServer::start().await.with_model().await;
    let job = create(&server, None).await;
    let (status, report) = server.get(&path(&job)).await;
    assert_eq!((status.as_u16(), &report["status"]), (200, &json!("not_available")));
    let reason = |report: &Value| report["reason"].as_str().unwrap().to_owned();
    assert!(reason(&report).starts_with("The job is queued."), "{report}");
    train(&server, &job).await;
    let (_, report) = server.get(&path(&job)).await;
    assert!(reason(&report).starts_with("Nothing was held out"), "{report}");
    let (status, error) = server.post(&path(&job), &json!({})).await;
    assert_eq!(status, 400);
    assert!(error_of(&error).2.starts_with("Nothing was held out"), "{error}");
    for unknown in
        [server.get(&path("ftjob-none")).await, server.post(&path("ftjob-none"), &json!({})).await]
    {
        assert_eq!(
            (unknown.0.as_u16(), error_of(&unknown.1).0),
            (404, json!("fine_tune_not_found"))
        );
    }
}

#[tokio::test]
async fn a_model_that_cannot_be_asked_fails_the_report_and_not_the_model() {
    let server = TestServer::start().await.with_model().await;
    let job = create(&server, Some(&labelled("tulip", 10))).await;
    train(&server, &job).await;
    let (_, done) = server.get(&format!("/v1/fine_tuning/jobs/{job}")).await;
    let model = done["fine_tuned_model"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/v1/models/{model}")).await.0, 200);
    let report = until("the report has failed", async || {
        let (_, report) = server.get(&path(&job)).await;
        (report["status"] == "failed").then_some(report)
    })
    .await;
    assert_eq!(
        (&report["error"]["code"], &report["verdict"]),
        (&json!("model_not_found"), &Value::Null)
    );
}
