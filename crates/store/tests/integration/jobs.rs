//! Jobs among very many: their lists, their place in the line, following them, deleting them.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::JobId;
use store::idempotency::{self, Attempt, Created, Once};
use store::jobs::{self, MetadataFilter};
use store::testing::TestStore;
use store::{Conflict, Error, PageQuery, deletion, follow, waiting};

use crate::common::*;

/// 20,000 jobs of the project and as many of others, half of them queued, one in a thousand without metadata.
async fn crowded() -> (TestStore, JobId) {
    let (test, file) = prepared().await;
    let id = queued(&test, new_job(file)).await;
    test.sql(
        "insert into projects (id, organization_id, name)
         select 'proj_' || n, 'org-default', 'x' from generate_series(1, 10) n;
         insert into jobs (id, project_id, base_model, status, created_at, run_after, priority,
                           fine_tuned_model, trained_tokens, finished_at, started_at)
         select 'crowd' || n, case when n % 2 = 0 then 'proj_default' else 'proj_' || (n % 10 + 1) end,
                'tiny-base', case when n % 4 < 2 then 'queued' else 'succeeded' end,
                now() - n * interval '1 second', now() - n * interval '1 second', n % 3,
                case when n % 4 < 2 then null else 'm' end, case when n % 4 < 2 then null else 1000 end,
                case when n % 4 < 2 then null else now() end,
                case when n % 4 < 2 then null else now() - interval '10 seconds' end
         from generate_series(1, 40000) n;
         insert into job_details (job_id, project_id, method, training_file, seed, metadata, hyperparameters,
                                  options)
         select id, project_id, 'supervised', 'file-x', 1,
                case when right(id, 3) = '000' then null
                     else jsonb_build_object('team', substr(id, 6), 'kind', 'usual') end, '{}', '{}'
         from jobs where id like 'crowd%';
         analyze jobs; analyze job_details",
    )
    .await
    .unwrap();
    (test, id)
}

fn holding(key: &str, value: &str) -> MetadataFilter {
    MetadataFilter::Holds(BTreeMap::from([(key.to_owned(), value.to_owned())]))
}

#[tokio::test]
async fn no_list_and_no_position_reads_all_jobs() {
    let (test, id) = crowded().await;
    let page = PageQuery::newest(20);
    let next = PageQuery { after: Some("crowd20000".to_owned()), ..page.clone() };
    for (filter, page, index) in [
        (MetadataFilter::Any, &page, "jobs_project"),
        (MetadataFilter::Any, &next, "jobs_project"),
        (MetadataFilter::Absent, &page, "job_details_plain"),
        (holding("team", "1234"), &page, "job_details_metadata"),
        (holding("team", "1234"), &next, "job_details_metadata"),
        // What most jobs hold is found soonest by walking from the newest on.
        (holding("kind", "usual"), &page, "jobs_project"),
    ] {
        let plan = test.plan_of_a_list(&filter, page).await;
        assert!(plan.contains(index), "{filter:?} {page:?}:\n{plan}");
        for table in ["jobs", "job_details"] {
            assert!(!plan.contains(&format!("Seq Scan on {table}")), "{filter:?}:\n{plan}");
        }
    }
    let plan = test.plan_of_a_position(&id).await;
    assert!(plan.contains("jobs_claim") && !plan.contains("Seq Scan on jobs"), "{plan}");

    let (db, project) = (&test.store.db, &test.project);
    let found = jobs::list(db, project, &holding("team", "1234"), &page).await.unwrap();
    assert_eq!(found.data.len(), 1);
    let plain = jobs::list(db, project, &MetadataFilter::Absent, &page).await.unwrap();
    assert_eq!((plain.data.len(), plain.has_more), (20, true));
    // All queued jobs of the project with a higher priority, and no later one: it is the newest.
    assert_eq!(waiting::position(db, project, &id).await.unwrap(), Some(10_000));
    let line = waiting::line(db, project).await.unwrap();
    assert_eq!((line.queued.len(), line.running.len(), line.workers), (waiting::LINE, 0, 0));
    assert!(line.queued.iter().all(|standing| standing.tokens_left.is_none()));
    let speed = waiting::speeds(db).await.unwrap()[BASE].clone();
    assert_eq!((speed.parameters, speed.tokens_per_second), (7, Some(100.0)));
    // Their settings say nothing else.
    assert_eq!(speed.by_kind, [("lora none".to_owned(), 100.0)].into());
}

#[tokio::test]
async fn the_line_tells_who_stands_where_with_how_much_work() {
    let (test, file) = prepared().await;
    let first = queued(&test, new_job(file.clone())).await;
    let urgent = queued(&test, jobs::NewJob { priority: 1, ..new_job(file) }).await;
    let (db, project) = (&test.store.db, &test.project);
    let line = waiting::line(db, project).await.unwrap();
    let standing: Vec<_> = line.queued.iter().map(|s| (s.id.as_str(), s.tokens_left)).collect();
    assert_eq!(standing, [(urgent.as_str(), Some(300)), (first.as_str(), Some(300))]);
    assert_eq!(waiting::position(db, project, &first).await.unwrap(), Some(1));
    let claimed = claim(&test).await;
    assert_eq!(claimed.job.id, urgent);
    let line = waiting::line(db, project).await.unwrap();
    assert_eq!((line.queued.len(), line.running.len(), line.workers), (1, 1, 1));
    assert_eq!(waiting::position(db, project, &urgent).await.unwrap(), None);
}

#[tokio::test]
async fn only_jobs_that_have_moved_come_back_with_their_last_events() {
    let (test, file) = prepared().await;
    let (quiet, moving) =
        (queued(&test, new_job(file.clone())).await, queued(&test, new_job(file)).await);
    let (db, project) = (&test.store.db, &test.project);
    let seen = [(quiet.clone(), 3), (moving.clone(), 3), ("ftjob-gone".into(), 0)];
    let moved = follow::moved(db, &seen, 2).await.unwrap();
    assert_eq!(moved.len(), 1);
    assert!(moved[&JobId::from("ftjob-gone")].progress.is_none());
    store::queue::cancel(db, project, &moving).await.unwrap();
    let moved = follow::moved(db, &[(quiet, 3), (moving.clone(), 0)], 2).await.unwrap();
    assert_eq!(moved.len(), 1);
    let progress = moved[&moving].progress.unwrap();
    assert_eq!((progress.event_seq, progress.has_ended), (4, true));
    let seqs: Vec<i64> = moved[&moving].events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [3, 4]);
    let first = follow::backlog(db, &moving, 0, 2).await.unwrap();
    assert_eq!(first.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(follow::seq_of(db, &moving, first[1].id.as_str()).await.unwrap(), Some(2));
    assert_eq!(follow::seq_of(db, &moving, "ftevent-none").await.unwrap(), None);
}

#[tokio::test]
async fn one_of_two_like_requests_creates() {
    let (test, file) = prepared().await;
    let (db, project) = (&test.store.db, &test.project);
    let once = |attempt, hash: u8| Once {
        created: Created::Job,
        key: "k".to_owned(),
        request_sha256: [hash; 32],
        attempt,
    };
    let create = |once| jobs::create(db, project, new_job(file.clone()), Some(once));
    let (a, b) = tokio::join!(create(once(Attempt::Keyed, 1)), create(once(Attempt::Keyed, 1)));
    let (a, b) = (a.unwrap().id, b.unwrap().id);
    assert_eq!(a, b);
    let other = create(once(Attempt::Keyed, 2)).await;
    assert!(matches!(other, Err(Error::Conflict(Conflict::KeyReused(_)))), "{other:?}");
    assert_eq!(create(once(Attempt::Again, 1)).await.unwrap().id, a);
    assert_ne!(create(once(Attempt::First, 1)).await.unwrap().id, a);
    assert_eq!(test.value("select count(*) from jobs").await, "2");
    // A day later the key is free, and forgotten.
    test.sql("update idempotency set created_at = now() - interval '25 hours'").await.unwrap();
    assert_eq!(idempotency::earlier(db, project, &once(Attempt::Keyed, 9)).await.unwrap(), None);
    assert_eq!(idempotency::expire(db).await.unwrap(), 1);
    create(once(Attempt::Keyed, 9)).await.unwrap();
}

#[tokio::test]
async fn a_deleted_job_leaves_its_models_and_its_usage() {
    let (test, claimed) = running().await;
    let id = claimed.job.id.clone();
    let (db, project) = (&test.store.db, &test.project);
    let alive = deletion::delete(db, project, &id).await;
    assert!(matches!(alive, Err(Error::Conflict(Conflict::JobAlive { .. }))), "{alive:?}");
    let model = succeed(&test, &claimed.lease, 3).await;
    deletion::delete(db, project, &id).await.unwrap();
    assert!(matches!(deletion::delete(db, project, &id).await, Err(Error::NotFound(_))));
    assert!(matches!(jobs::get(db, project, &id).await, Err(Error::NotFound(_))));
    assert!(store::models::resolve(db, project, &model).await.unwrap().adapter.is_some());
    for (table, count) in [("usage", "1"), ("outbox", "1"), ("events", "0"), ("step_metrics", "0")]
    {
        assert_eq!(test.value(&format!("select count(*) from {table}")).await, count, "{table}");
    }
    // Its model can go later, and takes the last of its content with it.
    store::models::delete(&test.store, project, &model).await.unwrap();
    test.sql("update garbage set delete_after = now()").await.unwrap();
    store::garbage::collect(&test.store, 100).await.unwrap();
    assert_eq!(test.value("select count(*) from models").await, "0");
    tokio::time::timeout(Duration::from_secs(1), jobs::count_by_status(db)).await.unwrap().unwrap();
}
