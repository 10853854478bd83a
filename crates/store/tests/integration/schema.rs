//! What the database itself refuses, whatever statement comes along; and that it agrees with `domain`.

use domain::JobStatus;
use store::testing::TestStore;

use crate::common::*;

/// An update that gives a job everything that a status demands.
fn update_to(status: JobStatus) -> String {
    let lease = match status {
        JobStatus::Running => {
            "lease_token = gen_random_uuid(), worker_id = 'w', lease_until = now(),
             heartbeat_at = now(), fence = fence + 1"
        }
        _ => "lease_token = null, worker_id = null, lease_until = null, heartbeat_at = null",
    };
    let desired = match status {
        JobStatus::Paused => "pause",
        JobStatus::Cancelled => "cancel",
        _ => "run",
    };
    let finished = if status.is_terminal() { "now()" } else { "null" };
    let (model, tokens) =
        if status == JobStatus::Succeeded { ("'m'", "1") } else { ("null", "null") };
    let error = if status == JobStatus::Failed { "'x'" } else { "null" };
    format!(
        "update jobs set status = '{status}', desired = '{desired}', finished_at = {finished},
         fine_tuned_model = {model}, trained_tokens = {tokens}, error_code = {error}, {lease}"
    )
}

#[tokio::test]
async fn the_database_allows_exactly_the_transitions_of_the_domain() {
    let test = TestStore::new().await;
    for from in JobStatus::ALL {
        for to in JobStatus::ALL.into_iter().filter(|to| *to != from) {
            // The start is put there past the trigger.
            let start = update_to(from);
            test.sql(&format!(
                "delete from jobs;
                 insert into jobs (id, project_id, base_model) values ('j', 'proj_default', 'b');
                 alter table jobs disable trigger jobs_guard;
                 {start};
                 alter table jobs enable trigger jobs_guard"
            ))
            .await
            .unwrap();
            let outcome = test.sql(&update_to(to)).await;
            assert_eq!(outcome.is_ok(), from.may_become(to), "{from} -> {to}: {outcome:?}");
            if let Err(refusal) = outcome {
                assert!(refusal.contains("cannot go from"), "{refusal}");
            }
        }
    }
}

#[tokio::test]
async fn states_and_columns_are_bound_to_each_other() {
    let (test, claimed) = running().await;
    let id = &claimed.job.id;
    for (broken, constraint) in [
        ("status = 'queued'", "jobs_lease_exactly_while_running"),
        ("lease_until = null", "jobs_lease_whole_or_absent"),
        ("worker_id = null", "jobs_lease_whole_or_absent"),
        ("validating_until = now()", "jobs_claim_only_while_validating"),
        ("finished_at = now()", "jobs_finished_exactly_when_terminal"),
        ("fine_tuned_model = 'm'", "jobs_model_exactly_when_succeeded"),
        ("trained_tokens = 1", "jobs_tokens_exactly_when_succeeded"),
        ("error_code = 'x'", "jobs_error_exactly_when_failed"),
        ("desired = 'cancel'", "jobs_cancelled_exactly_when_desired"),
        ("desired = 'later'", "jobs_desired_check"),
        ("status = 'done'", "cannot go from running to done"),
        ("fence = fence - 1", "counter went back"),
        ("event_seq = event_seq - 1", "counter went back"),
        ("committed_step = -1", "counter went back"),
        ("lease_token = gen_random_uuid()", "higher fence"),
        ("project_id = 'proj_other'", "never changes its project"),
    ] {
        let outcome = test.sql(&format!("update jobs set {broken} where id = '{id}'")).await;
        let refusal = outcome.expect_err(broken);
        assert!(refusal.contains(constraint), "{broken}: {refusal}");
    }
    // A lease column is not enough either.
    let waiting = "update jobs set status = 'paused', lease_token = null, worker_id = null,
                   lease_until = null, heartbeat_at = null";
    let refusal = test.sql(waiting).await.expect_err("paused without the wish");
    assert!(refusal.contains("jobs_paused_is_desired"), "{refusal}");
}

#[tokio::test]
async fn every_change_of_a_job_raises_its_version() {
    let (test, claimed) = running().await;
    let before = job(&test, &claimed.job.id).await.version;
    test.sql("update jobs set heartbeat_at = clock_timestamp()").await.unwrap();
    assert_eq!(job(&test, &claimed.job.id).await.version, before + 1);
}

#[tokio::test]
async fn events_usage_and_models_refuse_doubles() {
    let (test, claimed) = running().await;
    succeed(&test, &claimed.lease, 3).await;
    for (broken, constraint) in [
        ("insert into events select * from events limit 1", "events_pkey"),
        ("insert into usage select * from usage", "usage_pkey"),
        ("update usage set to_step = from_step", "usage_tile_has_length"),
        ("insert into models select * from models", "models_pkey"),
        (
            "insert into outbox select 'evt_2', project_id, job_id, type, payload from outbox",
            "outbox",
        ),
        ("update checkpoints set state = 'writing'", "checkpoints_model_is_committed"),
        ("update checkpoints set committed_at = null", "checkpoints_committed_has_time"),
    ] {
        let refusal = test.sql(broken).await.expect_err(broken);
        assert!(refusal.contains(constraint), "{broken}: {refusal}");
    }
}

#[tokio::test]
async fn every_table_belongs_to_a_project() {
    let test = TestStore::new().await;
    let homeless =
        "select string_agg(t.table_name, ',' order by 1) from information_schema.tables t
         where t.table_schema = 'public' and t.table_name <> '_sqlx_migrations' and not exists (
             select 1 from information_schema.columns c
             where c.table_name = t.table_name and c.column_name = 'project_id')";
    assert_eq!(test.value(homeless).await, "organizations,projects");
}

#[tokio::test]
async fn what_a_heartbeat_changes_stands_in_no_index() {
    let test = TestStore::new().await;
    let indexed = "select count(*) from pg_index i join pg_attribute a
         on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
         where i.indrelid = 'jobs'::regclass
           and a.attname in ('lease_until', 'heartbeat_at', 'heartbeat_step', 'version')";
    assert_eq!(test.value(indexed).await, "0");
}

#[tokio::test]
async fn migrating_again_or_from_two_servers_changes_nothing() {
    let test = TestStore::new().await;
    let (a, b) = tokio::join!(test.store.migrate(), test.store.migrate());
    a.and(b).unwrap();
    // A database that a later version has migrated is accepted.
    test.sql(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
              values (9999, 'from the future', true, '', 0)",
    )
    .await
    .unwrap();
    test.store.migrate().await.unwrap();
}
