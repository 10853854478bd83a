//! Leases: who gets which job, and that a lost lease can change nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::*;
use domain::JobStatus::*;
use domain::hyperparameters::Precision;
use domain::internal::FinishRun;
use domain::report::{CheckpointKind, RunFailure};
use futures::future::join_all;
use store::queue::{self, Claimant, Lease};
use store::reaper::{self, Reaper};
use store::testing::TestStore;
use store::{Error, LeaseConfig, Project, Store};

#[tokio::test]
async fn sixteen_claimers_get_sixteen_different_jobs() {
    let (test, file) = prepared().await;
    for _ in 0..16 {
        queued(&test, new_job(file.clone())).await;
    }
    // Two servers, each with pools of its own.
    let second = Store::open(&test.database, &test.storage).await.unwrap();
    let claims = (0..24).map(|n| {
        let db = if n % 2 == 0 { test.store.db.clone() } else { second.db.clone() };
        async move {
            let worker = format!("w{n}");
            queue::claim(&db, Claimant::cold(&worker), TTL).await.unwrap()
        }
    });
    let claimed: Vec<_> = join_all(claims).await.into_iter().flatten().collect();
    let distinct: BTreeSet<_> = claimed.iter().map(|claimed| claimed.job.id.clone()).collect();
    assert_eq!((claimed.len(), distinct.len()), (16, 16));
    assert_invariants(&test).await;
}

#[tokio::test]
async fn of_many_claimers_of_one_job_one_wins() {
    let (test, file) = prepared().await;
    queued(&test, new_job(file)).await;
    let claims = (0..32).map(|_| queue::claim(&test.store.db, Claimant::cold("w"), TTL));
    let won = join_all(claims).await.into_iter().filter(|claim| claim.as_ref().unwrap().is_some());
    assert_eq!(won.count(), 1);
}

/// Every effect of a worker, tried with a lease that is lost.
async fn assert_powerless(test: &TestStore, lease: &Lease, checkpoint: &str) {
    let (db, id) = (&test.store.db, checkpoint.into());
    let begin = begin(9, CheckpointKind::Epoch);
    let finish = FinishRun { checkpoint_id: checkpoint.into(), trained_tokens: 900 };
    let (code, message) = ("x".to_owned(), "x".to_owned());
    let failure = RunFailure { code, param: None, message, retryable: false };
    let file = content("state.json", 3);
    let put = queue::put_checkpoint_file(&test.store, lease, &id, "state.json", body(&file));
    let before = fingerprint(test).await;
    for (what, outcome) in [
        ("heartbeat", queue::heartbeat(db, lease, TTL, 1).await.map(|_| ())),
        ("reports", queue::record_reports(db, lease, &batch(0, steps(1..=1))).await),
        ("begin", queue::begin_checkpoint(db, lease, &begin).await.map(|_| ())),
        ("put", put.await),
        ("commit", queue::commit_checkpoint(&test.store, lease, &id).await),
        ("finish", queue::finish(db, lease, &finish, Vec::new()).await.map(|_| ())),
        ("fail", queue::fail(db, lease, &failure).await.map(|_| ())),
        ("release", queue::release(db, lease).await.map(|_| ())),
        ("job", queue::leased_job(db, lease).await.map(|_| ())),
        ("file", queue::leased_file(db, lease, &"file-x".into()).await.map(|_| ())),
        (
            "checkpoint file",
            queue::leased_checkpoint_file(db, lease, &id, "state.json").await.map(|_| ()),
        ),
    ] {
        assert!(matches!(outcome, Err(Error::LeaseLost)), "{what}: {outcome:?}");
    }
    assert_eq!(fingerprint(test).await, before, "something was written");
}

/// Everything that a worker could have changed.
async fn fingerprint(test: &TestStore) -> String {
    test.value(
        "select md5((select string_agg(j::text, '|' order by id) from jobs j)
         || coalesce((select string_agg(e::text, '|' order by job_id, seq) from events e), '')
         || coalesce((select string_agg(c::text, '|' order by id) from checkpoints c), '')
         || coalesce((select string_agg(u::text, '|' order by job_id, from_step) from usage u), '')
         || coalesce((select string_agg(m::text, '|' order by id) from models m), '')
         || coalesce((select string_agg(s::text, '|' order by job_id, step) from step_metrics s), '')
         || coalesce((select string_agg(o::text, '|' order by id) from outbox o), ''))",
    )
    .await
}

/// A job whose worker fell silent with a checkpoint uploaded and not committed.
async fn silent() -> (TestStore, Lease, String) {
    let (test, claimed) = running().await;
    let begin = begin(3, CheckpointKind::Final);
    let id = queue::begin_checkpoint(&test.store.db, &claimed.lease, &begin).await.unwrap();
    put_files(&test, &claimed.lease, &id, 3).await.unwrap();
    test.sql("update jobs set lease_until = clock_timestamp() - interval '1 hour'").await.unwrap();
    let reaped = reaper::reap(&test.store.db, Duration::from_secs(15)).await.unwrap();
    assert_eq!(reaped.iter().map(|reaped| reaped.status).collect::<Vec<_>>(), [Queued]);
    (test, claimed.lease, id.to_string())
}

#[tokio::test]
async fn a_reaped_lease_can_write_nothing() {
    let (test, lease, checkpoint) = silent().await;
    assert_powerless(&test, &lease, &checkpoint).await;
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_superseded_lease_can_write_nothing() {
    let (test, lease, checkpoint) = silent().await;
    test.sql("update jobs set run_after = clock_timestamp()").await.unwrap();
    let next = claim(&test).await;
    assert_powerless(&test, &lease, &checkpoint).await;
    // Nor can the old token with the new fence, or the new token with the old fence.
    let mixed = Lease { fence: next.lease.fence, ..lease.clone() };
    assert_powerless(&test, &mixed, &checkpoint).await;
    let mixed = Lease { token: next.lease.token, ..lease };
    assert_powerless(&test, &mixed, &checkpoint).await;
    succeed(&test, &next.lease, 3).await;
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_cancelled_lease_can_write_nothing() {
    let (test, claimed) = running().await;
    let begin = begin(3, CheckpointKind::Final);
    let id = queue::begin_checkpoint(&test.store.db, &claimed.lease, &begin).await.unwrap();
    queue::cancel(&test.store.db, &test.project, &claimed.job.id).await.unwrap();
    assert_powerless(&test, &claimed.lease, id.as_str()).await;
}

#[tokio::test]
async fn a_checkpoint_of_an_earlier_lease_cannot_be_committed_by_a_later_one() {
    let (test, _, checkpoint) = silent().await;
    test.sql("update jobs set run_after = clock_timestamp()").await.unwrap();
    let next = claim(&test).await;
    let foreign =
        queue::commit_checkpoint(&test.store, &next.lease, &checkpoint.as_str().into()).await;
    assert!(matches!(foreign, Err(Error::NotFound("checkpoint"))), "{foreign:?}");
}

#[tokio::test]
async fn a_late_heartbeat_before_the_reaper_renews() {
    let (test, claimed) = running().await;
    let db = &test.store.db;
    test.sql("update jobs set lease_until = clock_timestamp() - interval '1 hour'").await.unwrap();
    queue::heartbeat(db, &claimed.lease, TTL, 5).await.unwrap();
    assert!(reaper::reap(db, Duration::ZERO).await.unwrap().is_empty());
    assert_eq!(job(&test, &claimed.job.id).await.status, Running);
}

#[tokio::test]
async fn the_reaper_leaves_the_time_of_grace() {
    let (test, _claimed) = running().await;
    test.sql("update jobs set lease_until = clock_timestamp() - interval '10 s'").await.unwrap();
    let db = &test.store.db;
    assert!(reaper::reap(db, Duration::from_secs(60)).await.unwrap().is_empty());
    assert_eq!(reaper::reap(db, Duration::from_secs(5)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_reaper_pauses_what_was_to_be_paused_and_fails_what_crashed_too_often() {
    let (test, claimed) = running().await;
    let (db, id) = (&test.store.db, &claimed.job.id);
    queue::pause(db, &test.project, id).await.unwrap();
    test.sql("update jobs set lease_until = clock_timestamp() - interval '1 h'").await.unwrap();
    assert_eq!(reaper::reap(db, Duration::ZERO).await.unwrap()[0].status, Paused);
    queue::resume(db, &test.project, id).await.unwrap();
    claim(&test).await;
    test.sql("update jobs set crashes = 4, lease_until = clock_timestamp() - interval '1 h'")
        .await
        .unwrap();
    assert_eq!(reaper::reap(db, Duration::ZERO).await.unwrap()[0].status, Failed);
    assert_eq!(job(&test, id).await.error.unwrap().code, "worker_lost");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn two_reapers_take_a_run_back_once() {
    let (test, claimed) = running().await;
    test.sql("update jobs set lease_until = clock_timestamp() - interval '1 h'").await.unwrap();
    let db = &test.store.db;
    let (a, b) = tokio::join!(reaper::reap(db, Duration::ZERO), reaper::reap(db, Duration::ZERO));
    assert_eq!(a.unwrap().len() + b.unwrap().len(), 1);
    assert_eq!(job(&test, &claimed.job.id).await.crashes, 1);
}

#[tokio::test]
async fn the_reaper_warms_up_for_one_lease_after_every_doubt() {
    let (test, _claimed) = running().await;
    let db = &test.store.db;
    test.sql("update jobs set lease_until = clock_timestamp() - interval '1 h'").await.unwrap();
    let mut reaper = Reaper::new(LeaseConfig::default());
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    for seconds in [0, 10, 20, 30, 40, 50] {
        let early = reaper.tick_at(db, at(seconds)).await.unwrap();
        assert!(early.is_empty(), "acted after {seconds} s");
    }
    // This process stood still: what it saw before counts no more.
    assert!(reaper.tick_at(db, at(500)).await.unwrap().is_empty());
    for seconds in [510, 530, 559] {
        assert!(reaper.tick_at(db, at(seconds)).await.unwrap().is_empty());
    }
    assert_eq!(reaper.tick_at(db, at(560)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_unreachable_database_resets_the_reaper() {
    let (test, _claimed) = running().await;
    test.sql("update jobs set lease_until = clock_timestamp() - interval '1 h'").await.unwrap();
    let mut reaper = Reaper::new(LeaseConfig::default());
    let start = Instant::now();
    reaper.tick_at(&test.store.db, start).await.unwrap();
    let closed = Store::open(&test.database, &test.storage).await.unwrap();
    closed.db.close().await;
    let outage = reaper.tick_at(&closed.db, start + Duration::from_secs(30)).await;
    assert!(outage.is_err_and(|error| error.is_unavailable()));
    let after = reaper.tick_at(&test.store.db, start + Duration::from_secs(61)).await.unwrap();
    assert!(after.is_empty());
}

#[tokio::test]
async fn projects_take_turns_whoever_queues_more() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    for _ in 0..6 {
        queued(&test, new_job(file.clone())).await;
    }
    // The second project's only job comes last, and has a lower priority.
    test.sql(
        "insert into projects (id, organization_id, name) values ('proj_b', 'org-default', 'b')",
    )
    .await
    .unwrap();
    let other = Project { id: "proj_b".into(), ..test.project.clone() };
    let content = bytes::Bytes::from_static(b"{}\n");
    let uploaded = store::files::upload_bytes(&test.store, &other, content).await.unwrap();
    let mut new = new_job(uploaded.commit(new_file(), None).await.unwrap().id);
    new.priority = -1;
    let late = store::jobs::create(db, &other, new, None).await.unwrap();
    let validation = claim_validation(&test).await;
    queue::finish_validation(db, &validation, passed()).await.unwrap();

    let (first, second) = (claim(&test).await, claim(&test).await);
    let served = [&first.job.id, &second.job.id];
    assert!(served.contains(&&late.id), "the second slot goes to the other project");
    // With a single slot, where nobody has anything running, the turns alternate too.
    queue::release(db, &first.lease).await.unwrap();
    queue::release(db, &second.lease).await.unwrap();
    let mut projects = BTreeSet::new();
    for _ in 0..2 {
        let claimed = claim(&test).await;
        projects.insert(claimed.job.project_id);
        queue::release(db, &claimed.lease).await.unwrap();
    }
    assert_eq!(projects.len(), 2);
}

#[tokio::test]
async fn within_a_project_priority_then_warmth_then_age_decide() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    let old = queued(&test, new_job(file.clone())).await;
    let young = queued(&test, new_job(file.clone())).await;
    let urgent = queued(&test, store::jobs::NewJob { priority: 5, ..new_job(file) }).await;
    test.sql(&format!(
        "update jobs set base_model = 'warm' where id = '{young}';
         insert into base_models (id, project_id, upload_id, digest, architecture, parameters, files)
         select 'warm', project_id, 'other', digest, architecture, parameters, files
         from base_models"
    ))
    .await
    .unwrap();
    let claimant = Claimant { warm_model: Some("warm"), ..Claimant::cold("w") };
    let next = || async { queue::claim(db, claimant, TTL).await.unwrap().unwrap() };
    assert_eq!(next().await.job.id, urgent);
    let preferred = next().await;
    assert_eq!(preferred.job.id, young);
    queue::release(db, &preferred.lease).await.unwrap();
    // But nobody waits for ever because others are warm.
    test.sql(&format!(
        "update jobs set run_after = clock_timestamp() - interval '6 minutes' where id = '{old}'"
    ))
    .await
    .unwrap();
    assert_eq!(next().await.job.id, old);
}

#[tokio::test]
async fn the_first_worker_decides_the_precision_and_all_others_keep_it() {
    let (test, file) = prepared().await;
    let db = &test.store.db;
    let id = queued(&test, new_job(file.clone())).await;
    let auto = |id: &domain::JobId| {
        format!(
            "update job_details set resolved = jsonb_set(resolved, '{{precision}}', '\"auto\"')
             where job_id = '{id}'"
        )
    };
    test.sql(&auto(&id)).await.unwrap();
    let (gpu, cpu) =
        (Claimant { precision: Precision::Bf16, ..Claimant::cold("gpu") }, Claimant::cold("cpu"));
    let first = queue::claim(db, gpu, TTL).await.unwrap().unwrap();
    assert_eq!(first.job.id, id);
    let stored = || async {
        let text =
            format!("select resolved ->> 'precision' from job_details where job_id = '{id}'");
        test.value(&text).await
    };
    assert_eq!(stored().await, "bf16");
    assert_eq!(first.base_model.variant().as_str(), "tiny-base@bf16");
    queue::release(db, &first.lease).await.unwrap();
    let second = queue::claim(db, cpu, TTL).await.unwrap().unwrap();
    assert_eq!((second.job.id, second.hyperparameters.precision), (id.clone(), Precision::Bf16));
    assert_eq!(stored().await, "bf16");
    queue::release(db, &second.lease).await.unwrap();
    // Warm in bf16, the worker is given the job that its engine can go on with.
    let young = queued(&test, new_job(file)).await;
    test.sql(&auto(&young)).await.unwrap();
    test.sql(&format!(
        "update job_details set resolved = resolved - 'precision' where job_id = '{id}'"
    ))
    .await
    .unwrap();
    let warm = Claimant { warm_model: Some("tiny-base@bf16"), ..gpu };
    assert_eq!(queue::claim(db, warm, TTL).await.unwrap().unwrap().job.id, young);
}

#[tokio::test]
async fn the_claim_finds_its_job_by_index() {
    let (test, file) = prepared().await;
    let id = create(&test, new_job(file)).await.id;
    test.sql(&format!(
        "insert into jobs (id, project_id, base_model, status, fine_tuned_model, trained_tokens,
                           finished_at)
         select 'old' || n, 'proj_default', 'x', 'succeeded', 'm', 1, now()
         from generate_series(1, 20000) n;
         update jobs set status = 'queued' where id = '{id}';
         analyze jobs"
    ))
    .await
    .unwrap();
    let plan = test.plan_of_the_claim().await;
    assert!(plan.contains("jobs_claim"), "{plan}");
    assert!(plan.contains("jobs_running"), "{plan}");
    assert!(!plan.contains("Seq Scan on jobs"), "{plan}");
}

#[tokio::test]
async fn a_poisoned_row_fails_alone() {
    let (test, file) = prepared().await;
    let bad = queued(&test, new_job(file.clone())).await;
    let good = queued(&test, new_job(file)).await;
    test.sql(&format!("update job_details set resolved = '{{}}' where job_id = '{bad}'"))
        .await
        .unwrap();
    assert!(queue::claim(&test.store.db, Claimant::cold("w"), TTL).await.unwrap().is_none());
    assert_eq!(claim(&test).await.job.id, good);
    assert_eq!(test.value(&format!("select status from jobs where id = '{bad}'")).await, "failed");
}
