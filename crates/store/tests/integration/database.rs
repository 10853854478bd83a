//! Trouble with connections: dropped requests, lost connections, exhausted pools.

use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use store::queue::Claimant;
use store::testing::TestStore;
use store::{DatabaseConfig, Db, Error, MIGRATOR, Store, jobs, queue};

use crate::common::*;

/// Connections of this database that wait inside a transaction.
const OPEN_TRANSACTIONS: &str = "select count(*) from pg_stat_activity
     where datname = current_database() and state like 'idle in transaction%'";

#[tokio::test]
async fn dropped_requests_leave_no_transaction_open() {
    let (test, file) = prepared().await;
    for patience in 0..200 {
        let create = jobs::create(&test.store.db, &test.project, new_job(file.clone()), None);
        tokio::time::timeout(Duration::from_micros(patience * 20), create).await.ok();
    }
    // Every transaction that began has also ended; what was begun is whole.
    let start = Instant::now();
    while test.value(OPEN_TRANSACTIONS).await != "0" {
        assert!(start.elapsed() < Duration::from_secs(20), "a transaction is left open");
    }
    assert_invariants(&test).await;
    let halves = "select count(*) from jobs j where not exists
                  (select 1 from job_details d where d.job_id = j.id)";
    assert_eq!(test.value(halves).await, "0");
}

#[tokio::test]
async fn lost_connections_are_replaced() {
    let (test, claimed) = running().await;
    let other = Store::open(&test.database, &test.storage).await.unwrap();
    for _ in 0..3 {
        test.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await
        .unwrap();
        other.db.ping().await.unwrap();
        queue::heartbeat(&other.db, &claimed.lease, TTL, 1).await.unwrap();
        jobs::get(&other.db, &test.project, &claimed.job.id).await.unwrap();
    }
}

#[tokio::test]
async fn an_exhausted_pool_answers_unavailable_and_heartbeats_go_on() {
    let (test, file) = prepared().await;
    let stuck = create(&test, new_job(file.clone())).await.id;
    test.sql("update jobs set run_after = clock_timestamp() + interval '1 hour'").await.unwrap();
    queued(&test, new_job(file)).await;
    let claimed = claim(&test).await;
    let database = DatabaseConfig {
        max_connections: 1,
        acquire_timeout: Duration::from_millis(300),
        ..test.database.clone()
    };
    let small = Store::open(&database, &test.storage).await.unwrap();
    // The only connection of the general pool waits for a row that somebody else has locked.
    let lock = test.hold(&format!("select 1 from jobs where id = '{stuck}' for update")).await;
    let (db, project) = (small.db.clone(), test.project.clone());
    let cancel = tokio::spawn(async move { queue::cancel(&db, &project, &stuck).await });
    let waits = "select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'";
    while test.value(waits).await == "0" {
        tokio::task::yield_now().await;
    }
    let refused = jobs::get(&small.db, &test.project, &claimed.job.id).await;
    assert!(refused.is_err_and(|error| error.is_unavailable()));
    queue::heartbeat(&small.db, &claimed.lease, TTL, 1).await.unwrap();
    small.db.ping().await.unwrap();
    drop(lock);
    cancel.await.unwrap().unwrap();
    jobs::get(&small.db, &test.project, &claimed.job.id).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_database_is_unavailable_in_time() {
    let url = "postgres://nobody@127.0.0.1:1/none";
    let config = DatabaseConfig { url: Some(url.to_owned().into()), ..DatabaseConfig::default() };
    let start = Instant::now();
    let refused = Db::connect(&config, Duration::ZERO).await;
    assert!(refused.is_err_and(|error| error.is_unavailable()));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_wrong_configuration_is_named_without_the_password() {
    let test = TestStore::new().await;
    let missing = Db::connect(&DatabaseConfig::default(), Duration::ZERO).await;
    assert!(matches!(missing, Err(Error::Config(text)) if text.contains("database.url")));
    let url = "mysql://u:hunter2@h/d".to_owned().into();
    let config = DatabaseConfig { url: Some(url), ..DatabaseConfig::default() };
    let wrong = Db::connect(&config, Duration::ZERO).await.expect_err("no Postgres URL");
    assert!(!wrong.to_string().contains("hunter2"), "{wrong}");
    assert!(!format!("{config:?}").contains("hunter2"));
    // A database that does not exist is an error at once, not a reason to wait.
    let mut config = test.database.clone();
    let url = config.url.unwrap();
    config.url = Some(url.expose_secret().replace("finetuned_test_", "finetuned_none_").into());
    let start = Instant::now();
    let absent = Db::connect(&config, Duration::from_secs(20)).await;
    assert!(absent.is_err_and(|error| !error.is_unavailable()));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn migrations_are_numbered_without_gaps() {
    let versions: Vec<_> = MIGRATOR.iter().map(|migration| migration.version).collect();
    let expected: Vec<_> = (1..).take(versions.len()).collect();
    assert_eq!(versions, expected);
}

#[tokio::test]
async fn a_claim_whose_caller_has_gone_is_given_back() {
    let (test, file) = prepared().await;
    let id = queued(&test, new_job(file)).await;
    for patience in 0..150 {
        let patience = Duration::from_micros(patience * 40);
        let claim = queue::claim(&test.store.db, Claimant::cold("w"), TTL);
        if let Ok(Ok(Some(claimed))) = tokio::time::timeout(patience, claim).await {
            queue::release(&test.store.db, &claimed.lease).await.unwrap();
        }
    }
    let status = format!("select status from jobs where id = '{id}'");
    let start = Instant::now();
    while test.value(&status).await != "queued" {
        assert!(start.elapsed() < Duration::from_secs(20), "the job is leased to nobody");
    }
}
