//! Runs with something going wrong: engines, leases, servers, files.

use std::time::Duration;

use domain::RunReport;
use domain::report::RunFailure;
use serde_json::{Value, json};

use crate::fake::{End, State};
use crate::runs::steps;
use crate::{Harness, six_steps};

async fn failure_of(script: Value) -> (RunFailure, Harness) {
    let harness = Harness::start(script).await;
    harness.enqueue();
    match harness.fake.end().await {
        End::Failed(failure) => (failure, harness),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_crash_is_gone_on_from_the_last_checkpoint_under_the_same_lease() {
    let harness = Harness::start(json!({"steps": 6, "checkpoint_every": 2, "crash_at": 5})).await;
    harness.enqueue();
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    harness.fake.look(|state| {
        assert_eq!(steps(state), [1, 2, 3, 4, 5, 5, 6], "from step 4 on");
        assert_eq!(state.calls.iter().filter(|call| *call == "claim").count(), 1);
        let told = state.reports.iter().any(|report| {
            matches!(report, RunReport::Message { message, .. } if message.contains("step 4"))
        });
        assert!(told, "the user reads why a step comes twice");
    });
    assert_eq!(harness.notes("base", "starts").len(), 2);
    harness.stop().await;
}

#[tokio::test]
async fn an_engine_that_crashes_without_progress_is_given_up() {
    let script = json!({"steps": 6, "crash_at": 1, "crash_always": true});
    let (failure, harness) = failure_of(script).await;
    assert_eq!((failure.code.as_str(), failure.retryable), ("engine_lost", true));
    harness.idle_again().await;
    assert!(harness.notes("base", "starts").len() >= 4, "three crashes are survived");
    harness.stop().await;
}

#[tokio::test]
async fn crashes_with_progress_between_them_are_not_counted_together() {
    // Dies after every step; every step leaves a checkpoint.
    let script = json!({"steps": 8, "checkpoint_every": 1, "crash_every_start": true});
    let harness = Harness::start(script).await;
    harness.enqueue();
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    harness.fake.look(|state| assert_eq!(steps(state), [1, 2, 3, 4, 5, 6, 7, 8]));
    harness.stop().await;
}

#[tokio::test]
async fn an_engine_that_cannot_start_is_reported_with_its_last_words() {
    let (failure, harness) = failure_of(json!({"refuse_to_start": true})).await;
    assert_eq!(failure.code, "engine_lost");
    assert!(failure.message.contains("this engine refuses to start"), "{}", failure.message);
    harness.stop().await;
}

#[tokio::test]
async fn a_silent_engine_is_killed_and_the_run_resumes() {
    let script = json!({"steps": 6, "checkpoint_every": 2, "hang_at": 3});
    // Long enough for a process to start on a busy machine, even though nothing else is waited for.
    let harness =
        Harness::configured(script, |config| config.stall_limit = Duration::from_secs(2)).await;
    harness.enqueue();
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    harness.fake.look(|state| assert_eq!(steps(state), [1, 2, 3, 3, 4, 5, 6]));
    harness.stop().await;
}

#[tokio::test]
async fn a_lost_lease_stops_the_run_without_a_checkpoint() {
    let harness = Harness::start(json!({"steps": 6, "wait_at": 3})).await;
    harness.enqueue();
    let third = |state: &State| (steps(state).len() == 3).then_some(());
    harness.fake.until("step 3 is reported", third).await;
    harness.fake.change(|state| state.leases.clear());
    harness.idle_again().await;
    let commands = harness.notes("base", "commands").join("\n");
    assert!(commands.contains(r#""command":"stop_run""#), "{commands}");
    assert!(commands.contains(r#""checkpoint":false"#), "{commands}");
    harness.fake.look(|state| {
        assert_eq!((state.ends.len(), state.checkpoints.len()), (0, 0), "nothing more is said");
    });
    let runs = std::fs::read_dir(harness.work_dir.path().join("runs")).unwrap();
    assert_eq!(runs.count(), 0, "the user's files are gone");
    assert_eq!(harness.notes("base", "starts").len(), 1, "the engine stays");
    harness.stop().await;
}

#[tokio::test]
async fn an_engine_that_goes_on_after_a_lost_lease_is_killed() {
    let script = json!({"steps": 6, "wait_at": 3, "deaf": true});
    let grace = Duration::from_millis(50);
    let harness = Harness::configured(script, |config| config.engine_grace = grace).await;
    harness.enqueue();
    let third = |state: &State| (steps(state).len() == 3).then_some(());
    harness.fake.until("step 3 is reported", third).await;
    harness.fake.change(|state| state.leases.clear());
    harness.idle_again().await;
    let pid = harness.notes("base", "starts")[0].split(' ').next().unwrap().to_owned();
    assert!(!std::path::Path::new("/proc").join(&pid).exists(), "process {pid} is gone");
    harness.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_while_the_server_is_away() {
    let harness = Harness::start(six_steps()).await;
    harness.fake.until("the engine is warm", |s| s.claims.last()?.warm_model.clone()).await;
    harness.enqueue();
    let first = |state: &State| (!state.reports.is_empty()).then_some(());
    harness.fake.until("the run has begun", first).await;
    harness.fake.change(|state| state.away = true);
    harness.fake.until("calls fail", |s| (s.turned_away > 20).then_some(())).await;
    harness.fake.change(|state| state.away = false);
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    harness.fake.look(|state| {
        assert_eq!(steps(state), [1, 2, 3, 4, 5, 6]);
        let last = state.checkpoints.iter().rfind(|checkpoint| checkpoint.committed).unwrap();
        assert_eq!(last.begun.step, 6);
    });
    harness.stop().await;
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_recorded_once() {
    let harness = Harness::start(six_steps()).await;
    harness.fake.change(|state| state.lose_replies = 3);
    harness.enqueue();
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    harness.fake.look(|state| {
        assert_eq!(steps(state), [1, 2, 3, 4, 5, 6]);
        assert!(state.repeated > 0, "a batch came again");
    });
    harness.stop().await;
}

#[tokio::test]
async fn a_run_without_a_server_stops_at_a_checkpoint_and_releases_when_it_is_back() {
    let script = json!({"steps": 6, "wait_at": 3});
    let limit = Duration::from_millis(100);
    let harness = Harness::configured(script, |config| config.unreachable_limit = limit).await;
    harness.enqueue();
    let third = |state: &State| (steps(state).len() == 3).then_some(());
    harness.fake.until("step 3 is reported", third).await;
    harness.fake.change(|state| state.away = true);
    // Only a checkpoint can be what is tried: nothing else is waited for at this step.
    let commands = harness.work_dir.path().join("models/digest-of-base/commands");
    harness
        .fake
        .until("the engine is told to stop", |_| {
            let commands = std::fs::read_to_string(&commands).unwrap_or_default();
            commands.contains(r#""checkpoint":true"#).then_some(())
        })
        .await;
    harness.fake.change(|state| state.away = false);
    assert_eq!(harness.fake.end().await, End::Released);
    harness.fake.look(|state| {
        let stored = &state.checkpoints[0];
        assert_eq!((stored.begun.step, stored.committed), (3, true));
    });
    harness.stop().await;
}

#[tokio::test]
async fn reports_that_pile_up_stop_the_run_at_a_checkpoint() {
    // Three steps and their beginning are more than this, and less than twice as much.
    let script = json!({"steps": 6, "wait_at": 3});
    let harness = Harness::configured(script, |config| config.spool_bytes = 600).await;
    harness.fake.change(|state| state.lose_replies = usize::MAX);
    harness.enqueue();
    let commands = harness.work_dir.path().join("models/digest-of-base/commands");
    harness
        .fake
        .until("the engine is told to stop", |_| {
            let commands = std::fs::read_to_string(&commands).unwrap_or_default();
            commands.contains(r#""checkpoint":true"#).then_some(())
        })
        .await;
    harness.fake.change(|state| state.lose_replies = 0);
    assert_eq!(harness.fake.end().await, End::Released);
    harness.fake.look(|state| assert_eq!(steps(state), [1, 2, 3]));
    harness.stop().await;
}

#[tokio::test]
async fn a_download_that_differs_from_its_hash_is_refused() {
    let harness = Harness::start(six_steps()).await;
    let mut run = harness.enqueue();
    run.training_file.sha256 = "00".repeat(32);
    harness.fake.change(|state| {
        state.queue.clear();
        state.queue.push_back(run);
    });
    let End::Failed(failure) = harness.fake.end().await else { panic!("it was taken") };
    assert_eq!((failure.code.as_str(), failure.retryable), ("hash_mismatch", true));
    let trained = harness.notes("base", "commands").iter().any(|line| line.contains("train"));
    assert!(!trained, "the engine never saw it");
    harness.stop().await;
}

#[tokio::test]
async fn the_users_failure_is_passed_on_as_it_is() {
    let reason = json!({
        "code": "loss_diverged", "param": null, "message": "The loss is not finite.",
        "retryable": false
    });
    let (failure, harness) = failure_of(json!({"steps": 6, "fail": reason})).await;
    assert_eq!((failure.code.as_str(), failure.retryable), ("loss_diverged", false));
    harness.stop().await;
}

#[tokio::test]
async fn an_engine_that_lies_fails_the_run() {
    for (lie, code) in [
        ("no_final", "internal_error"),
        ("foreign_checkpoint", "internal_error"),
        ("garbage", "engine_lost"),
    ] {
        let (failure, harness) = failure_of(json!({"steps": 2, "lie": lie})).await;
        assert_eq!(failure.code, code, "{lie}: {}", failure.message);
        harness.stop().await;
    }
}

#[tokio::test]
async fn two_workers_do_not_share_a_folder() {
    let harness = Harness::start(six_steps()).await;
    harness.fake.until("it works", |s| (!s.claims.is_empty()).then_some(())).await;
    let config = worker::Config {
        server_urls: vec![harness.fake.url.clone()],
        work_dir: harness.work_dir.path().to_owned(),
        engine: Some(env!("CARGO_BIN_EXE_scripted-engine").into()),
        ..worker::Config::default()
    };
    let second = worker::run(config, tokio_util::sync::CancellationToken::new()).await;
    assert!(matches!(second, Err(worker::Error::WorkDirInUse(_))));
    harness.stop().await;
}
