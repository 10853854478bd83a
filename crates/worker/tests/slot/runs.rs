//! Runs that go well, and those that are stopped on wish.

use domain::RunReport;
use domain::internal::CheckpointManifest;
use domain::report::CheckpointKind;
use serde_json::json;

use crate::fake::{End, State, entry};
use crate::{Harness, six_steps};

/// The steps that the server was told of, in order.
pub fn steps(state: &State) -> Vec<u64> {
    let step = |report: &RunReport| match report {
        RunReport::Step(metrics) => Some(metrics.step),
        _ => None,
    };
    state.reports.iter().filter_map(step).collect()
}

#[tokio::test]
async fn a_run_goes_from_claim_to_finish() {
    let harness = Harness::start(json!({"steps": 3})).await;
    harness.enqueue();
    let End::Finished { checkpoint_id, trained_tokens } = harness.fake.end().await else {
        panic!("the run ended otherwise")
    };
    assert_eq!(trained_tokens, 30);
    harness.fake.look(|state| {
        assert_eq!(steps(state), [1, 2, 3]);
        let stored = &state.checkpoints[0];
        assert_eq!((stored.begun.kind, stored.begun.step), (CheckpointKind::Final, 3));
        assert!(stored.committed && stored.id == checkpoint_id);
        assert_eq!(stored.files["adapter_model.safetensors"], b"adapter of step 3");
        let order: Vec<&str> = state
            .calls
            .iter()
            .map(String::as_str)
            .filter(|call| *call != "reports" && !call.starts_with("model file"))
            .collect();
        let expected = [
            "claim",
            "file file-training",
            "begin final 3",
            "put adapter_config.json",
            "put adapter_model.safetensors",
            "put optimizer.safetensors",
            "put state.json",
            "commit",
            "finish",
        ];
        assert_eq!(order, expected);
    });
    assert!(harness.notes("base", "starts")[0].ends_with(" passive"), "OpenMP does not spin");
    harness.stop().await;
}

#[tokio::test]
async fn a_committed_checkpoint_of_an_earlier_attempt_is_gone_on_from() {
    let harness = Harness::start(json!({"steps": 5})).await;
    let mut run = harness.enqueue();
    let id = domain::CheckpointId::new();
    run.resume_from = Some(CheckpointManifest {
        checkpoint_id: id.clone(),
        step: 3,
        files: vec![entry("state.json", b"3")],
    });
    harness.fake.change(|state| {
        state.queue[0] = run;
        state.checkpoints.push(crate::fake::Checkpoint {
            id,
            begun: domain::internal::BeginCheckpoint {
                step: 3,
                kind: CheckpointKind::Resume,
                files: Vec::new(),
                trained_tokens: 30,
                metrics: Default::default(),
            },
            files: [("state.json".to_owned(), b"3".to_vec())].into(),
            committed: true,
        });
    });
    assert!(matches!(harness.fake.end().await, End::Finished { .. }));
    harness.fake.look(|state| assert_eq!(steps(state), [4, 5]));
    harness.stop().await;
}

#[tokio::test]
async fn a_pause_commits_a_checkpoint_and_releases() {
    let harness = Harness::start(json!({"steps": 6, "wait_at": 3})).await;
    harness.enqueue();
    let third = |state: &State| (steps(state) == [1, 2, 3]).then_some(());
    harness.fake.until("step 3 is reported", third).await;
    harness.fake.change(|state| state.pause = true);
    assert_eq!(harness.fake.end().await, End::Released);
    harness.fake.look(|state| {
        let stored = &state.checkpoints[0];
        assert_eq!((stored.begun.step, stored.committed), (3, true));
    });
    harness.stop().await;
}

#[tokio::test]
async fn a_shutdown_commits_a_checkpoint_and_releases() {
    let harness = Harness::start(json!({"steps": 6, "wait_at": 4})).await;
    harness.enqueue();
    let fourth = |state: &State| (steps(state).len() == 4).then_some(());
    harness.fake.until("step 4 is reported", fourth).await;
    let fake = harness.fake.clone();
    harness.stop().await;
    fake.look(|state| {
        assert_eq!(state.ends, [End::Released]);
        let stored = &state.checkpoints[0];
        assert_eq!((stored.begun.step, stored.committed), (4, true));
    });
}

#[tokio::test]
async fn a_shutdown_ends_at_its_budget_when_the_engine_does_not_obey() {
    let script = json!({"steps": 6, "wait_at": 2, "deaf": true});
    let budget = std::time::Duration::from_millis(100);
    let harness = Harness::configured(script, |config| config.drain_budget = budget).await;
    harness.enqueue();
    let second = |state: &State| (steps(state).len() == 2).then_some(());
    harness.fake.until("step 2 is reported", second).await;
    let fake = harness.fake.clone();
    harness.stop().await;
    fake.look(|state| assert_eq!(state.ends, [], "the lease runs out by itself"));
}

#[tokio::test]
async fn an_engine_stays_warm_from_run_to_run() {
    let harness = Harness::start(six_steps()).await;
    harness.enqueue();
    harness.enqueue();
    harness.fake.until("both runs end", |s| (s.ends.len() == 2).then_some(())).await;
    harness.idle_again().await;
    assert_eq!(harness.notes("base", "starts").len(), 1);
    let warm = harness.fake.look(|state| state.claims.last().unwrap().warm_model.clone());
    assert_eq!(warm.as_deref(), Some("base"));
    harness.stop().await;
}

#[tokio::test]
async fn a_run_on_another_base_model_gets_an_engine_with_that() {
    let harness = Harness::start(six_steps()).await;
    crate::add_model(&harness.fake, "other", six_steps());
    harness.enqueue();
    harness.fake.end().await;
    let other = harness.fake.look(|state| state.models[1].0.clone());
    harness.enqueue_on(other);
    harness.fake.until("both runs end", |s| (s.ends.len() == 2).then_some(())).await;
    assert_eq!(harness.notes("other", "starts").len(), 1);
    harness.stop().await;
}

#[tokio::test]
async fn a_worker_that_starts_before_its_server_warms_up_when_that_comes() {
    let harness = Harness::start(json!({"steps": 1})).await;
    harness.fake.change(|state| state.away = true);
    harness.fake.until("it was turned away", |s| (s.turned_away > 3).then_some(())).await;
    harness.fake.change(|state| state.away = false);
    let warm = |state: &State| state.claims.last().and_then(|claim| claim.warm_model.clone());
    assert_eq!(harness.fake.until("the engine is warm", warm).await, "base");
    harness.stop().await;
}
