//! Each change of a job's state, and what it leaves.

use std::time::Duration;

use crate::common::*;
use domain::JobStatus::*;
use domain::internal::{Directive, FinishRun};
use domain::report::{CheckpointKind, Level, RunFailure};
use store::jobs::{Desired, JobError};
use store::queue::{self, Claimant, Note, Validation};
use store::{Conflict, Error};

fn failure(retryable: bool) -> RunFailure {
    let (code, message) = ("loss_diverged".to_owned(), "The loss is not finite.".to_owned());
    RunFailure { code, param: None, message, retryable }
}

#[tokio::test]
async fn a_job_walks_from_creation_to_success() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    let created = create(&test, new_job(file.clone())).await;
    assert_eq!((created.status, created.seed), (ValidatingFiles, 42));

    let validation = claim_validation(&test).await;
    assert_eq!(validation.training_file.id, file);
    assert!(queue::claim_validation(db, TTL).await.unwrap().is_none(), "it is claimed already");
    assert!(
        queue::claim(db, Claimant::cold("w"), TTL).await.unwrap().is_none(),
        "it is not queued yet"
    );
    queue::extend_validation(db, &validation, TTL).await.unwrap();
    assert_eq!(queue::finish_validation(db, &validation, passed()).await.unwrap(), Queued);
    assert_eq!(store::waiting::position(db, &test.project, &created.id).await.unwrap(), Some(0));

    let claimed = claim(&test).await;
    let lease = claimed.lease.clone();
    assert_eq!(claimed.hyperparameters, resolved());
    assert_eq!(claimed.base_model.files.len(), 2);
    assert_eq!(queue::heartbeat(db, &lease, TTL, 0).await.unwrap(), Directive::Continue);
    let mut reports = vec![started()];
    reports.extend(steps(1..=3));
    queue::record_reports(db, &lease, &batch(0, reports)).await.unwrap();
    let seen = job(&test, &created.id).await;
    assert_eq!((seen.status, seen.progress.unwrap().step), (Running, 3));
    assert!(seen.started_at.is_some());

    let model = succeed(&test, &lease, 3).await;
    let done = job(&test, &created.id).await;
    assert_eq!((done.status, done.trained_tokens), (Succeeded, Some(300)));
    assert_eq!(done.fine_tuned_model.as_ref(), Some(&model));
    assert!(model.as_str().starts_with("ft:tiny-base:personal:mine:"), "{model}");
    let id = &created.id;
    assert_eq!(
        messages(&test, id).await,
        [
            format!("Created fine-tuning job: {id}"),
            format!("Validating training file: {file}"),
            "Files validated, moving job to queued state".to_owned(),
            "Fine-tuning job started".to_owned(),
            "Step 1/30: training loss=1.00".to_owned(),
            "Step 2/30: training loss=0.50".to_owned(),
            "Step 3/30: training loss=0.33".to_owned(),
            format!("New fine-tuned model created: {model}"),
            "The job has successfully completed".to_owned(),
        ]
    );
    assert_invariants(&test).await;
}

#[tokio::test]
async fn failed_validation_names_the_error() {
    let (test, file) = prepared().await;
    let created = create(&test, new_job(file)).await;
    let claim = claim_validation(&test).await;
    let error = JobError {
        code: "invalid_n_examples".to_owned(),
        param: Some("training_file".to_owned()),
        message: "Training file has 3 example(s)\0, but must have at least 10".to_owned(),
    };
    let failed = Validation::Failed { error, data: serde_json::json!({ "problems": ["a\0b"] }) };
    let status = queue::finish_validation(&test.store.db, &claim, failed).await.unwrap();
    assert_eq!(status, Failed);
    let row = job(&test, &created.id).await;
    let error = row.error.expect("a failed job has an error");
    assert_eq!(error.param.as_deref(), Some("training_file"));
    assert_eq!(messages(&test, &created.id).await.last(), Some(&error.message));
    assert_invariants(&test).await;
}

#[tokio::test]
async fn validation_passes_from_a_dead_server_to_another() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    let created = create(&test, new_job(file)).await;
    let first = queue::claim_validation(db, Duration::ZERO).await.unwrap().unwrap();
    let second = claim_validation(&test).await;
    assert_eq!(second.job.crashes, 1);
    let late = queue::finish_validation(db, &first, passed()).await;
    assert!(matches!(late, Err(Error::LeaseLost)), "{late:?}");
    queue::finish_validation(db, &second, passed()).await.unwrap();
    assert_eq!(job(&test, &created.id).await.crashes, 0);
    let heard = messages(&test, &created.id).await;
    let validating = heard.iter().filter(|text| text.starts_with("Validating")).count();
    assert_eq!(validating, 1, "{heard:?}");
}

#[tokio::test]
async fn validation_that_kills_every_server_fails_the_job() {
    let (test, file) = prepared().await;
    let created = create(&test, new_job(file)).await;
    for _ in 0..6 {
        queue::claim_validation(&test.store.db, Duration::ZERO).await.unwrap();
    }
    let row = job(&test, &created.id).await;
    assert_eq!((row.status, row.error.unwrap().code.as_str()), (Failed, "internal_error"));
}

#[tokio::test]
async fn released_validation_waits_and_counts_as_no_crash() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    create(&test, new_job(file)).await;
    let claim = claim_validation(&test).await;
    queue::release_validation(db, &claim, TTL).await.unwrap();
    assert!(queue::claim_validation(db, TTL).await.unwrap().is_none(), "it waits");
    test.sql("update jobs set run_after = clock_timestamp()").await.unwrap();
    assert_eq!(claim_validation(&test).await.job.crashes, 0);
}

#[tokio::test]
async fn notes_of_validation_become_events() {
    let (test, file) = prepared().await;
    let created = create(&test, new_job(file)).await;
    let claim = claim_validation(&test).await;
    let data = serde_json::json!({"lines": [3, 8]});
    let message = "2 examples were cut".to_owned();
    let notes = vec![Note { level: Level::Warn, message, data: data.clone() }];
    let passed = Validation::Passed {
        hyperparameters: Box::new(resolved()),
        planned_tokens: 0,
        dataset: serde_json::Value::Null,
        notes,
    };
    queue::finish_validation(&test.store.db, &claim, passed).await.unwrap();
    let all = &store::PageQuery::newest(1000);
    let (db, project) = (&test.store.db, &test.project);
    let events: store::Page<_> = store::events::list(db, project, &created.id, all).await.unwrap();
    let note = events.data.iter().find(|event| event.message == "2 examples were cut").unwrap();
    assert_eq!(note.data, Some(data));
}

#[tokio::test]
async fn a_deterministic_failure_ends_the_job() {
    let (test, claimed) = running().await;
    let db = &test.store.db;
    let status = queue::fail(db, &claimed.lease, &failure(false)).await.unwrap();
    assert_eq!(status, Failed);
    assert_eq!(job(&test, &claimed.job.id).await.error.unwrap().code, "loss_diverged");
    let again = queue::fail(db, &claimed.lease, &failure(false)).await.unwrap();
    assert_eq!(again, Failed, "a repeated call gives the same answer");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_retryable_failure_queues_the_job_with_a_delay() {
    let (test, claimed) = running().await;
    let db = &test.store.db;
    let status = queue::fail(db, &claimed.lease, &failure(true)).await.unwrap();
    assert_eq!(status, Queued);
    assert!(queue::claim(db, Claimant::cold("w"), TTL).await.unwrap().is_none(), "back-off");
    let again = queue::fail(db, &claimed.lease, &failure(true)).await.unwrap();
    assert_eq!((again, job(&test, &claimed.job.id).await.crashes), (Queued, 1));
}

#[tokio::test]
async fn five_crashes_without_progress_fail_the_job() {
    let (test, mut claimed) = running().await;
    let db = &test.store.db;
    for crash in 1..=5 {
        let status = queue::fail(db, &claimed.lease, &failure(true)).await.unwrap();
        assert_eq!(status, if crash < 5 { Queued } else { Failed }, "crash {crash}");
        if crash < 5 {
            test.sql("update jobs set run_after = clock_timestamp()").await.unwrap();
            claimed = claim(&test).await;
        }
    }
    assert_invariants(&test).await;
}

#[tokio::test]
async fn crashes_with_progress_never_use_up_the_budget() {
    let (test, mut claimed) = running().await;
    for step in 1..=12 {
        checkpoint(&test, &claimed.lease, step, CheckpointKind::Resume).await;
        let status = queue::fail(&test.store.db, &claimed.lease, &failure(true)).await.unwrap();
        assert_eq!(status, Queued, "step {step}");
        test.sql("update jobs set run_after = clock_timestamp()").await.unwrap();
        claimed = claim(&test).await;
        assert_eq!(claimed.resume_from.as_ref().unwrap().step, step);
    }
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_drained_run_is_claimable_at_once() {
    let (test, claimed) = running().await;
    let db = &test.store.db;
    assert_eq!(queue::release(db, &claimed.lease).await.unwrap(), Queued);
    assert_eq!(queue::release(db, &claimed.lease).await.unwrap(), Queued, "again is harmless");
    let next = claim(&test).await;
    assert_eq!((next.job.crashes, next.job.attempts), (0, 2));
    assert!(next.lease.fence > claimed.lease.fence);
}

#[tokio::test]
async fn pause_and_resume_of_a_running_job() {
    let (test, claimed) = running().await;
    let (db, id) = (&test.store.db, &claimed.job.id);
    let asked = queue::pause(db, &test.project, id).await.unwrap();
    assert_eq!((asked.status, asked.desired), (Running, Desired::Pause));
    let told = queue::heartbeat(db, &claimed.lease, TTL, 1).await.unwrap();
    assert_eq!(told, Directive::Pause);
    checkpoint(&test, &claimed.lease, 7, CheckpointKind::Resume).await;
    assert_eq!(queue::release(db, &claimed.lease).await.unwrap(), Paused);
    assert!(queue::claim(db, Claimant::cold("w"), TTL).await.unwrap().is_none());
    assert_eq!(queue::resume(db, &test.project, id).await.unwrap().status, Queued);
    assert_eq!(claim(&test).await.resume_from.unwrap().step, 7);
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_request_to_pause_can_be_taken_back() {
    let (test, claimed) = running().await;
    let (db, id) = (&test.store.db, &claimed.job.id);
    queue::pause(db, &test.project, id).await.unwrap();
    queue::resume(db, &test.project, id).await.unwrap();
    let told = queue::heartbeat(db, &claimed.lease, TTL, 1).await.unwrap();
    assert_eq!(told, Directive::Continue);
}

#[tokio::test]
async fn a_queued_job_is_paused_at_once() {
    let (test, file) = prepared().await;
    let id = queued(&test, new_job(file)).await;
    let paused = queue::pause(&test.store.db, &test.project, &id).await.unwrap();
    assert_eq!(paused.status, Paused);
    let again = queue::pause(&test.store.db, &test.project, &id).await.unwrap();
    assert_eq!((again.status, again.event_seq), (Paused, paused.event_seq));
}

#[tokio::test]
async fn a_job_being_validated_cannot_be_paused() {
    let (test, file) = prepared().await;
    let id = create(&test, new_job(file)).await.id;
    let refused = queue::pause(&test.store.db, &test.project, &id).await;
    assert!(matches!(refused, Err(Error::Conflict(Conflict::JobState { .. }))), "{refused:?}");
}

#[tokio::test]
async fn cancel_ends_a_job_in_every_status_that_is_not_terminal() {
    let (test, file) = prepared().await;
    let (db, project) = (&test.store.db, &test.project);
    let validating = create(&test, new_job(file.clone())).await.id;
    assert_eq!(queue::cancel(db, project, &validating).await.unwrap().status, Cancelled);
    let waiting = queued(&test, new_job(file.clone())).await;
    assert_eq!(queue::cancel(db, project, &waiting).await.unwrap().status, Cancelled);
    let paused = queued(&test, new_job(file.clone())).await;
    queue::pause(db, project, &paused).await.unwrap();
    assert_eq!(queue::cancel(db, project, &paused).await.unwrap().status, Cancelled);
    let running = queued(&test, new_job(file)).await;
    let lease = claim(&test).await.lease;
    assert_eq!(queue::cancel(db, project, &running).await.unwrap().status, Cancelled);
    let beat = queue::heartbeat(db, &lease, TTL, 1).await;
    assert!(matches!(beat, Err(Error::LeaseLost)), "{beat:?}");
    let again = queue::cancel(db, project, &running).await;
    assert!(matches!(again, Err(Error::Conflict(Conflict::JobEnded { .. }))), "{again:?}");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn cancel_during_validation_voids_the_claim() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    let id = create(&test, new_job(file)).await.id;
    let claim = claim_validation(&test).await;
    queue::cancel(db, &test.project, &id).await.unwrap();
    for late in [
        queue::extend_validation(db, &claim, TTL).await,
        queue::release_validation(db, &claim, TTL).await,
        queue::finish_validation(db, &claim, passed()).await.map(|_| ()),
    ] {
        assert!(matches!(late, Err(Error::LeaseLost)), "{late:?}");
    }
}

#[tokio::test]
async fn of_cancel_and_finish_exactly_one_wins() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    for round in 0..8 {
        let id = queued(&test, new_job(file.clone())).await;
        let lease = claim(&test).await.lease;
        let checkpoint_id = checkpoint(&test, &lease, 3, CheckpointKind::Final).await;
        let finish = FinishRun { checkpoint_id, trained_tokens: 300 };
        let (finished, cancelled) = tokio::join!(
            queue::finish(db, &lease, &finish, Vec::new()),
            queue::cancel(db, &test.project, &id),
        );
        assert_ne!(finished.is_ok(), cancelled.is_ok(), "round {round}");
        let row = job(&test, &id).await;
        assert_eq!(row.status, if finished.is_ok() { Succeeded } else { Cancelled });
        let count = format!("select count(*) from models where job_id = '{id}'");
        assert_eq!(test.value(&count).await, i32::from(finished.is_ok()).to_string());
    }
    assert_invariants(&test).await;
}
