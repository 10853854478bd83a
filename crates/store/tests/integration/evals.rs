//! Evaluations: whose turn it is, what a claim may still write, and that every row is recorded once.

use std::time::Duration;

use domain::EvalId;
use serde_json::json;
use store::evals::claims::{self, Claim, Outcome, Wish};
use store::evals::items::{self, Verdict};
use store::evals::runs::{self, ModelUsage, NewRun, RunError, RunRow, RunStatus};
use store::evals::{self, EvalChange, EvalRow, NewEval, OrderBy};
use store::testing::TestStore;
use store::{Error, Order, PageQuery, Project, files, garbage};

use crate::common::{TTL, upload};

const NOW: Duration = Duration::ZERO;

fn new_eval(name: &str) -> NewEval {
    NewEval {
        name: name.to_owned(),
        data_source_config: json!({"type": "logs", "schema": {"b": 1, "a": 2}}),
        testing_criteria: json!([{"type": "string_check"}, {"type": "string_check"}]),
        metadata: None,
    }
}

async fn eval(test: &TestStore, project: &Project) -> EvalRow {
    evals::create(&test.store.db, project, new_eval("e"), None).await.unwrap()
}

fn new_run() -> NewRun {
    NewRun {
        name: "r".to_owned(),
        model: "m".to_owned(),
        data_source: json!({"type": "jsonl"}),
        source_file: None,
        metadata: None,
    }
}

async fn run(test: &TestStore, project: &Project, eval: &EvalId) -> RunRow {
    runs::create(&test.store.db, project, eval, new_run(), None).await.unwrap()
}

async fn claim(test: &TestStore) -> Option<Claim> {
    claims::claim(&test.store.db, TTL).await.unwrap()
}

async fn other_project(test: &TestStore) -> Project {
    let id = "proj_other";
    let insert = format!(
        "insert into projects (id, organization_id, name) values ('{id}', 'org-default', 'o')"
    );
    test.sql(&insert).await.unwrap();
    Project { id: id.into(), ..test.project.clone() }
}

fn outcome(status: Verdict) -> Outcome {
    let usage =
        ModelUsage { invocations: 1, prompt_tokens: 5, completion_tokens: 2, cached_tokens: 0 };
    let passed = match status {
        Verdict::Pass => vec![Some(true), Some(true)],
        Verdict::Fail => vec![Some(true), Some(false)],
        Verdict::Error => vec![None, Some(true)],
    };
    Outcome {
        status,
        datasource_item: json!({"z": "\u{0}", "a": 1}),
        results: json!([]),
        sample: json!({}),
        passed,
        usage: vec![("m".to_owned(), usage)],
    }
}

async fn expire(test: &TestStore) {
    let past = "update eval_runs set claim_until = clock_timestamp() - interval '1 s'
                where claim_until is not null";
    test.sql(past).await.unwrap();
}

fn oldest(limit: u32) -> PageQuery {
    PageQuery { order: Order::Oldest, ..PageQuery::newest(limit) }
}

#[tokio::test]
async fn an_evaluation_keeps_its_definition_and_changes_its_name() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let row = eval(&test, project).await;
    // Not even the order of keys is lost.
    assert_eq!(row.data_source_config.to_string(), r#"{"type":"logs","schema":{"b":1,"a":2}}"#);
    let pairs = |value: &str| Some(Some([("k".to_owned(), value.to_owned())].into()));
    let change = EvalChange { name: Some("new".to_owned()), metadata: pairs("v\0") };
    let changed = evals::update(db, project, &row.id, &change).await.unwrap();
    assert_eq!(
        (changed.name.as_str(), changed.metadata.as_ref().unwrap()["k"].as_str()),
        ("new", "v\u{fffd}")
    );
    assert!(changed.updated_at > row.updated_at && changed.created_at == row.created_at);
    let cleared = EvalChange { name: None, metadata: Some(None) };
    let cleared = evals::update(db, project, &row.id, &cleared).await.unwrap();
    assert_eq!((cleared.name.as_str(), cleared.metadata), ("new", None));
}

#[tokio::test]
async fn lists_go_by_creation_or_by_change() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(eval(&test, project).await.id);
    }
    evals::update(db, project, &ids[0], &EvalChange::default()).await.unwrap();
    let listed = async |by, page: &PageQuery| {
        let page = evals::list(db, project, by, page).await.unwrap();
        (page.data.into_iter().map(|row| row.id).collect::<Vec<_>>(), page.has_more)
    };
    assert_eq!(listed(OrderBy::Created, &oldest(2)).await, (ids[..2].to_vec(), true));
    let rest = PageQuery { after: Some(ids[1].to_string()), ..oldest(2) };
    assert_eq!(listed(OrderBy::Created, &rest).await, (ids[2..].to_vec(), false));
    assert_eq!(listed(OrderBy::Updated, &PageQuery::newest(1)).await, (ids[..1].to_vec(), true));
    let other = other_project(&test).await;
    assert!(evals::list(db, &other, OrderBy::Created, &oldest(9)).await.unwrap().data.is_empty());
    assert!(matches!(evals::get(db, &other, &ids[0]).await, Err(Error::NotFound("eval"))));
}

#[tokio::test]
async fn a_page_of_large_rows_ends_early() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let eval = eval(&test, project).await;
    for _ in 0..4 {
        let data_source = json!({"text": "x".repeat(5 << 20)});
        let new = NewRun { data_source, ..new_run() };
        runs::create(db, project, &eval.id, new, None).await.unwrap();
    }
    let page = runs::list(db, project, &eval.id, None, &oldest(20)).await.unwrap();
    assert_eq!((page.data.len(), page.has_more), (2, true));
    let after = Some(page.data[1].id.to_string());
    let rest = PageQuery { after, ..oldest(20) };
    let page = runs::list(db, project, &eval.id, None, &rest).await.unwrap();
    assert_eq!((page.data.len(), page.has_more), (2, false));
}

#[tokio::test]
async fn a_run_is_recorded_row_by_row_and_completed() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let eval = eval(&test, project).await;
    let row = run(&test, project, &eval.id).await;
    let claim = claim(&test).await.unwrap();
    assert_eq!((&claim.run.id, claim.run.status), (&row.id, RunStatus::InProgress));
    assert_eq!((&claim.project, &claim.testing_criteria), (project, &eval.testing_criteria));
    claims::set_items(db, &claim, 3).await.unwrap();
    let first = vec![outcome(Verdict::Pass), outcome(Verdict::Fail)];
    claims::record(db, &claim, 0, first).await.unwrap();
    claims::record(db, &claim, 2, vec![outcome(Verdict::Error)]).await.unwrap();
    let done = claims::finish(db, &claim, None).await.unwrap();
    assert_eq!(done.status, RunStatus::Completed);
    assert_eq!((done.items, done.total), (Some(3), 3));
    assert_eq!((done.passed, done.failed, done.errored), (1, 1, 1));
    let counted: Vec<_> = done.tallies.criteria.iter().map(|c| (c.passed, c.failed)).collect();
    assert_eq!(counted, [(2, 0), (2, 1)]);
    assert_eq!(done.tallies.usage["m"].prompt_tokens, 15);

    let of = (&eval.id, &row.id);
    let all = items::list(db, project, of, None, &oldest(2)).await.unwrap();
    assert!(all.has_more && all.data[0].item == 0 && all.data[1].status == Verdict::Fail);
    assert_eq!(all.data[0].datasource_item, json!({"z": "\u{0}", "a": 1}));
    let after = PageQuery { after: Some(all.data[1].id.to_string()), ..oldest(2) };
    let rest = items::list(db, project, of, None, &after).await.unwrap();
    assert_eq!(rest.data.iter().map(|item| item.item).collect::<Vec<_>>(), [2]);
    let failed = items::list(db, project, of, Some(Verdict::Fail), &oldest(9)).await.unwrap();
    assert_eq!(failed.data.len(), 1);
    assert_eq!(items::get(db, project, of, &failed.data[0].id).await.unwrap(), failed.data[0]);
    let other = other_project(&test).await;
    assert!(matches!(items::list(db, &other, of, None, &oldest(9)).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_claim_that_is_over_writes_nothing() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let eval = eval(&test, project).await;
    run(&test, project, &eval.id).await;
    let dead = claim(&test).await.unwrap();
    claims::record(db, &dead, 0, vec![outcome(Verdict::Pass)]).await.unwrap();
    assert!(claim(&test).await.is_none(), "nobody else may take it meanwhile");
    expire(&test).await;
    let next = claim(&test).await.unwrap();
    assert_eq!(next.run.total, 1, "it goes on behind what is recorded");
    let late = [
        claims::record(db, &dead, 1, vec![outcome(Verdict::Pass)]).await,
        claims::set_items(db, &dead, 9).await,
        claims::extend(db, &dead, TTL).await.map(|_| ()),
        claims::release(db, &dead, NOW).await,
        claims::finish(db, &dead, None).await.map(|_| ()),
    ];
    for refused in late {
        assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    }
    // A row that is recorded already is refused to the present claim too.
    let again = claims::record(db, &next, 0, vec![outcome(Verdict::Pass)]).await;
    assert!(matches!(again, Err(Error::Inconsistent(_))));
    claims::record(db, &next, 1, vec![outcome(Verdict::Pass)]).await.unwrap();
    assert_eq!(
        test.value("select string_agg(item::text, ',' order by item) from eval_output_items").await,
        "0,1"
    );
}

#[tokio::test]
async fn a_canceled_or_deleted_run_loses_its_claim() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let eval = eval(&test, project).await;
    let row = run(&test, project, &eval.id).await;
    let held = claim(&test).await.unwrap();
    let canceled = runs::cancel(db, project, &eval.id, &row.id).await.unwrap();
    assert_eq!(canceled.status, RunStatus::Canceled);
    assert!(matches!(claims::extend(db, &held, TTL).await, Err(Error::LeaseLost)));
    // Once more is harmless; one that has ended otherwise is a conflict.
    assert_eq!(runs::cancel(db, project, &eval.id, &row.id).await.unwrap(), canceled);
    let done = run(&test, project, &eval.id).await;
    let held = claim(&test).await.unwrap();
    claims::finish(db, &held, None).await.unwrap();
    let refused = runs::cancel(db, project, &eval.id, &done.id).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict(_)), "{refused}");

    run(&test, project, &eval.id).await;
    let held = claim(&test).await.unwrap();
    claims::record(db, &held, 0, vec![outcome(Verdict::Pass)]).await.unwrap();
    evals::delete(db, project, &eval.id).await.unwrap();
    let refused = claims::record(db, &held, 1, vec![outcome(Verdict::Pass)]).await;
    assert!(matches!(refused, Err(Error::LeaseLost)));
    let left = "select (select count(*) from eval_runs) + (select count(*) from eval_output_items)";
    assert_eq!(test.value(left).await, "0");
}

#[tokio::test]
async fn projects_take_turns_and_give_way() {
    let test = TestStore::new().await;
    let db = &test.store.db;
    let (busy, other) = (test.project.clone(), other_project(&test).await);
    let (of_busy, of_other) = (eval(&test, &busy).await.id, eval(&test, &other).await.id);
    for _ in 0..3 {
        run(&test, &busy, &of_busy).await;
    }
    let first = claim(&test).await.unwrap();
    let second = claim(&test).await.unwrap();
    assert_eq!((&first.project, &second.project), (&busy, &busy));
    assert_eq!(claims::extend(db, &first, TTL).await.unwrap(), Wish::GoOn);
    let waiting = run(&test, &other, &of_other).await;
    // It has just been created, and the first claim is young.
    assert_eq!(claims::extend(db, &first, TTL).await.unwrap(), Wish::GoOn);
    test.sql("update eval_runs set claimed_at = claimed_at - interval '1 min', run_after = run_after - interval '1 min'")
        .await
        .unwrap();
    assert_eq!(claims::extend(db, &first, TTL).await.unwrap(), Wish::GiveWay);
    claims::release(db, &first, NOW).await.unwrap();
    let next = claim(&test).await.unwrap();
    assert_eq!(next.run.id, waiting.id, "the project without any running goes first");
    assert_eq!(claims::extend(db, &second, TTL).await.unwrap(), Wish::GoOn);
    // One each now: the turn is the one's whose latest is the longest ago.
    run(&test, &other, &of_other).await;
    assert_eq!(claim(&test).await.unwrap().project, busy);
}

#[tokio::test]
async fn a_run_whose_servers_die_again_and_again_fails() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let eval = eval(&test, project).await;
    let row = run(&test, project, &eval.id).await;
    for _ in 0..5 {
        assert!(claim(&test).await.is_some());
        expire(&test).await;
    }
    assert!(claim(&test).await.is_none());
    let failed = runs::get(db, project, &eval.id, &row.id).await.unwrap();
    assert_eq!(
        (failed.status, failed.error.unwrap().code.as_str()),
        (RunStatus::Failed, "server_error")
    );

    // Progress forgives, and giving back is no crash.
    let row = run(&test, project, &eval.id).await;
    for place in 0..7 {
        let held = claim(&test).await.unwrap();
        claims::record(db, &held, place, vec![outcome(Verdict::Pass)]).await.unwrap();
        if place % 2 == 0 {
            expire(&test).await
        } else {
            claims::release(db, &held, NOW).await.unwrap()
        }
    }
    let held = claim(&test).await.unwrap();
    let error = RunError { code: "c".to_owned(), message: "m\0".to_owned() };
    claims::finish(db, &held, Some(error)).await.unwrap();
    let failed = runs::get(db, project, &eval.id, &row.id).await.unwrap();
    assert_eq!((failed.total, failed.error.unwrap().message.as_str()), (7, "m\u{fffd}"));
}

#[tokio::test]
async fn runs_need_their_eval_and_their_file() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let eval = eval(&test, project).await;
    let create = async |project: &Project, eval: &EvalId, file: Option<&str>| {
        let new = NewRun { source_file: file.map(Into::into), ..new_run() };
        runs::create(db, project, eval, new, None).await
    };
    assert!(matches!(create(project, &"eval_x".into(), None).await, Err(Error::NotFound("eval"))));
    assert!(matches!(
        create(project, &eval.id, Some("file-x")).await,
        Err(Error::NotFound("file"))
    ));
    let file = upload(&test, b"{}").await;
    let other = other_project(&test).await;
    let foreign = evals::create(db, &other, new_eval("o"), None).await.unwrap();
    let refused = create(&other, &foreign.id, Some(file.as_str())).await;
    assert!(matches!(refused, Err(Error::NotFound("file"))));
    let made = create(project, &eval.id, Some(file.as_str())).await.unwrap();
    assert_eq!(made.status, RunStatus::Queued);
    // Until the run has ended, its file stays: deleted by nobody, and read beyond its time.
    let refused = files::delete(&test.store, project, &file).await.unwrap_err();
    assert!(refused.to_string().contains(made.id.as_str()), "{refused}");
    test.sql("update files set expires_at = created_at").await.unwrap();
    garbage::collect(&test.store, 9).await.unwrap();
    assert_eq!(files::of_run(db, project, &file).await.unwrap().id, file);
    runs::cancel(db, project, &eval.id, &made.id).await.unwrap();
    garbage::collect(&test.store, 9).await.unwrap();
    assert!(files::of_run(db, project, &file).await.is_err());
    let by = async |status| {
        runs::list(db, project, &eval.id, Some(status), &oldest(5)).await.unwrap().data.len()
    };
    assert_eq!((by(RunStatus::Canceled).await, by(RunStatus::Completed).await), (1, 0));
}

#[tokio::test]
async fn the_database_allows_only_the_ways_of_a_run() {
    let test = TestStore::new().await;
    let eval = eval(&test, &test.project).await;
    let row = run(&test, &test.project, &eval.id).await;
    let set = async |change: &str| {
        test.sql(&format!("update eval_runs set {change} where id = '{}'", row.id)).await
    };
    for (broken, why) in [
        ("status = 'completed', finished_at = now()", "cannot go from queued to completed"),
        ("status = 'cancelled'", "cannot go from queued to cancelled"),
        ("claim_until = now()", "eval_runs_claim_only_in_progress"),
        ("finished_at = now()", "eval_runs_finished_exactly_when_terminal"),
        ("error = '{}'", "eval_runs_error_exactly_when_failed"),
        ("total = 1", "eval_runs_counts_add_up"),
        ("fence = -1", "a counter went back"),
    ] {
        let refusal = set(broken).await.expect_err(broken);
        assert!(refusal.contains(why), "{broken}: {refusal}");
    }
    set("status = 'canceled', finished_at = now()").await.unwrap();
    let refusal = set("status = 'queued', finished_at = null").await.unwrap_err();
    assert!(refusal.contains("cannot go from canceled to queued"), "{refusal}");
}

#[tokio::test]
async fn lists_and_claims_use_their_indexes() {
    let test = TestStore::new().await;
    let plan = async |statement: &str| {
        let all = format!("select string_agg(line, ' ') from plan_of($q${statement}$q$) line");
        test.value(&all).await
    };
    test.sql(
        "create function plan_of(statement text) returns setof text language plpgsql as $$
         begin set local enable_seqscan = off; set local enable_sort = off;
               return query execute 'explain ' || statement; end $$",
    )
    .await
    .unwrap();
    for (statement, index) in [
        (
            "select id from evals where project_id = 'p' order by created_at, id limit 2",
            "evals_created",
        ),
        (
            "select id from evals where project_id = 'p' order by updated_at desc, id desc limit 2",
            "evals_updated",
        ),
        (
            "select id from eval_runs where eval_id = 'e' order by created_at, id limit 2",
            "eval_runs_list",
        ),
        (
            "select id from eval_runs where eval_id = 'e' and status = 'failed' order by created_at, id limit 2",
            "eval_runs_by_status",
        ),
        (
            "select id from eval_output_items where run_id = 'r' order by item limit 2",
            "eval_output_items_pkey",
        ),
        (
            "select id from eval_output_items where run_id = 'r' and status = 'fail' order by item limit 2",
            "eval_output_items_by_status",
        ),
    ] {
        let plan = plan(statement).await;
        assert!(plan.contains(index) && !plan.contains("Sort"), "{statement}: {plan}");
    }
}
