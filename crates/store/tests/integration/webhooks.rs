//! Webhooks: who is told of which end, in the same transaction; whose turn it is; what a claim may still say.

use std::time::Duration;

use domain::{JobId, JobStatus, WebhookEndpointId};
use serde_json::json;
use store::evals::runs::{self, NewRun};
use store::evals::{self, NewEval, claims as eval_claims};
use store::testing::TestStore;
use store::webhooks::claims::{self, Choice, Claim, Sent, Verdict};
use store::webhooks::deliveries::{self, DeliveryRow, DeliveryStatus};
use store::webhooks::{self, EVENT_TYPES, EndpointChange, EndpointRow, NewEndpoint, outbox};
use store::{Conflict, Error, PageQuery, Project, queue};

use crate::common::*;

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

fn new_endpoint(event_types: &[&str]) -> NewEndpoint {
    NewEndpoint {
        name: "e".to_owned(),
        url: "https://hooks.example.com/".to_owned(),
        event_types: event_types.iter().map(|&kind| kind.to_owned()).collect(),
        secret: "whsec_c2VjcmV0".to_owned().into(),
    }
}

async fn endpoint(test: &TestStore, event_types: &[&str]) -> EndpointRow {
    let new = new_endpoint(event_types);
    webhooks::create(&test.store.db, &test.project, new, 10, None).await.unwrap()
}

/// Cancels a new job: the shortest way to an event.
async fn event(test: &TestStore) -> JobId {
    let file = upload(test, b"{}\n").await;
    let job = create(test, new_job(file)).await.id;
    queue::cancel(&test.store.db, &test.project, &job).await.unwrap();
    job
}

async fn log(test: &TestStore, endpoint: &EndpointRow) -> Vec<DeliveryRow> {
    let (db, page) = (&test.store.db, PageQuery::newest(100));
    deliveries::list(db, &test.project, &endpoint.id, None, &page).await.unwrap().data
}

async fn claim(test: &TestStore) -> Option<Claim> {
    claims::claim(&test.store.db, Choice::Any, TTL).await.unwrap()
}

fn sent(verdict: Verdict) -> Sent {
    let is_good = verdict == Verdict::Delivered;
    let error = (!is_good).then(|| "no\0t now".to_owned());
    let duration = Duration::from_millis(7);
    Sent { status_code: Some(if is_good { 200 } else { 500 }), error, duration, verdict }
}

async fn settle(test: &TestStore, claim: &Claim, verdict: Verdict) {
    claims::settle(&test.store.db, claim, sent(verdict)).await.unwrap();
}

/// A store in which a job has been cancelled and an endpoint wants to know it.
async fn due() -> (TestStore, EndpointRow) {
    let (test, _) = prepared().await;
    let endpoint = endpoint(&test, &EVENT_TYPES).await;
    event(&test).await;
    (test, endpoint)
}

#[tokio::test]
async fn every_end_is_told_to_the_endpoints_that_want_it_and_to_no_other() {
    let (test, claimed) = running().await;
    let other = Project { id: "proj_other".into(), ..test.project.clone() };
    let insert = "insert into projects (id, organization_id, name) values ('proj_other', 'org-default', 'o')";
    test.sql(insert).await.unwrap();
    let all = endpoint(&test, &EVENT_TYPES).await;
    let evals_only = endpoint(&test, &["eval.run.canceled", "eval.run.succeeded"]).await;
    let new = new_endpoint(&EVENT_TYPES);
    let theirs = webhooks::create(&test.store.db, &other, new, 10, None).await.unwrap();

    succeed(&test, &claimed.lease, 3).await;
    let cancelled = event(&test).await;
    let new = NewEval {
        name: "e".to_owned(),
        data_source_config: json!({}),
        testing_criteria: json!([]),
        metadata: None,
    };
    let eval = evals::create(&test.store.db, &test.project, new, None).await.unwrap();
    let mut runs_made = Vec::new();
    for _ in 0..2 {
        let new = NewRun {
            name: "r".to_owned(),
            model: String::new(),
            data_source: json!({}),
            source_file: None,
            metadata: None,
        };
        runs_made.push(
            runs::create(&test.store.db, &test.project, &eval.id, new, None).await.unwrap().id,
        );
    }
    let turn = eval_claims::claim(&test.store.db, TTL).await.unwrap().unwrap();
    eval_claims::finish(&test.store.db, &turn, None).await.unwrap();
    runs::cancel(&test.store.db, &test.project, &eval.id, &runs_made[1]).await.unwrap();

    let told = async |endpoint: &EndpointRow| {
        let rows = log(&test, endpoint).await;
        rows.into_iter().rev().map(|row| (row.event_type, row.subject)).collect::<Vec<_>>()
    };
    let pair = |kind: &str, subject: &str| (kind.to_owned(), subject.to_owned());
    let of_runs = [
        pair("eval.run.succeeded", runs_made[0].as_str()),
        pair("eval.run.canceled", runs_made[1].as_str()),
    ];
    let of_jobs = [
        pair("fine_tuning.job.succeeded", claimed.job.id.as_str()),
        pair("fine_tuning.job.cancelled", cancelled.as_str()),
    ];
    assert_eq!(told(&all).await, [of_jobs.as_slice(), &of_runs].concat());
    assert_eq!(told(&evals_only).await, of_runs);
    let page = PageQuery::newest(9);
    let none = deliveries::list(&test.store.db, &other, &theirs.id, None, &page).await.unwrap();
    assert!(none.data.is_empty());
    let foreign = deliveries::list(&test.store.db, &other, &all.id, None, &page).await;
    assert!(matches!(foreign, Err(Error::NotFound("webhook endpoint"))));
}

#[tokio::test]
async fn an_end_whose_message_cannot_be_written_does_not_happen() {
    let (test, file) = prepared().await;
    endpoint(&test, &EVENT_TYPES).await;
    test.sql(
        "create function refuse() returns trigger language plpgsql as $$
             begin raise exception 'no room'; end $$;
         create trigger refuse before insert on webhook_deliveries
             for each row execute function refuse()",
    )
    .await
    .unwrap();
    let id = create(&test, new_job(file)).await.id;
    queue::cancel(&test.store.db, &test.project, &id).await.unwrap_err();
    assert_eq!(job(&test, &id).await.status, JobStatus::ValidatingFiles);
    assert_eq!(test.value("select count(*) from outbox").await, "0");
    test.sql("drop trigger refuse on webhook_deliveries").await.unwrap();
    queue::cancel(&test.store.db, &test.project, &id).await.unwrap();
    assert_eq!(test.value("select count(*) from webhook_deliveries").await, "1");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn an_endpoint_is_held_by_one_server_and_its_word_counts_until_another_takes_over() {
    let (test, endpoint) = due().await;
    event(&test).await;
    let first = claims::claim(&test.store.db, Choice::Any, NOW).await.unwrap().unwrap();
    let second = claim(&test).await.expect("the first claim has run out");
    assert_eq!(first.delivery, second.delivery);
    assert_eq!(first.event, second.event);
    assert!(claim(&test).await.is_none(), "an endpoint gets one request at a time");
    let late = claims::settle(&test.store.db, &first, sent(Verdict::Delivered)).await;
    assert!(matches!(late, Err(Error::LeaseLost)), "{late:?}");
    assert!(matches!(claims::release(&test.store.db, &first).await, Err(Error::LeaseLost)));
    settle(&test, &second, Verdict::Delivered).await;
    let again = claims::settle(&test.store.db, &second, sent(Verdict::Delivered)).await;
    assert!(matches!(again, Err(Error::LeaseLost)));
    let [_, told] = log(&test, &endpoint).await.try_into().unwrap();
    assert_eq!((told.status, told.attempts.len()), (DeliveryStatus::Delivered, 1));
    let other = claim(&test).await.expect("the second event");
    assert_ne!(other.event.id, second.event.id);
    claims::release(&test.store.db, &other).await.unwrap();
    assert_eq!(claim(&test).await.unwrap().delivery, other.delivery);
}

#[tokio::test]
async fn two_servers_never_claim_the_same_endpoint() {
    let (test, _) = prepared().await;
    for _ in 0..4 {
        endpoint(&test, &EVENT_TYPES).await;
    }
    event(&test).await;
    let ask = || claims::claim(&test.store.db, Choice::Any, TTL);
    let mut held = Vec::new();
    // Those who find a row locked pass it over, and come again.
    while held.len() < 4 {
        let (a, b, c) = tokio::join!(ask(), ask(), ask());
        held.extend([a, b, c].into_iter().filter_map(|claim| claim.unwrap()));
    }
    let mut endpoints: Vec<_> = held.iter().map(|claim| claim.endpoint.id.clone()).collect();
    endpoints.sort();
    endpoints.dedup();
    assert_eq!(endpoints.len(), 4);
    assert!(claim(&test).await.is_none());
}

#[tokio::test]
async fn a_delivery_is_tried_again_when_its_time_has_come_and_given_up_at_the_end() {
    let (test, endpoint) = due().await;
    let event_id = log(&test, &endpoint).await[0].event_id.clone();
    for tries in 0..3 {
        let turn = claim(&test).await.unwrap();
        assert_eq!((turn.tries, &turn.event.id), (tries, &event_id));
        let verdict = if tries < 2 { Verdict::RetryIn(HOUR) } else { Verdict::GiveUp };
        settle(&test, &turn, verdict).await;
        assert!(claim(&test).await.is_none());
        test.sql(
            "update webhook_deliveries set next_attempt_at = clock_timestamp() - interval '1 s'
                  where status = 'pending'",
        )
        .await
        .unwrap();
        test.sql("update webhook_endpoints set rest_until = clock_timestamp()").await.unwrap();
    }
    let [row] = log(&test, &endpoint).await.try_into().unwrap();
    assert_eq!((row.status, row.next_attempt_at), (DeliveryStatus::Failed, None));
    assert!(row.finished_at.is_some());
    let [first, ..] = row.attempts.as_slice() else { panic!("no attempts") };
    assert_eq!(row.attempts.len(), 3);
    assert_eq!((first.status_code, first.duration_ms), (Some(500), 7));
    assert_eq!(first.error.as_deref(), Some("no\u{fffd}t now"));
    assert!(claim(&test).await.is_none());
}

#[tokio::test]
async fn an_endpoint_that_fails_rests_and_holds_up_no_other() {
    let (test, failing) = due().await;
    for _ in 0..3 {
        let turn = claim(&test).await.unwrap();
        assert_eq!(turn.endpoint.id, failing.id);
        settle(&test, &turn, Verdict::RetryIn(NOW)).await;
    }
    assert!(claim(&test).await.is_none(), "it rests after the third failure");
    // That long from some moment between the claim and now.
    let rests = async |time: &str| {
        let query = format!(
            "select rest_until between claimed_at + interval '{time}' and clock_timestamp() + interval '{time}'
             from webhook_endpoints"
        );
        test.value(&query).await == "true"
    };
    assert!(rests("5 s").await);
    test.sql("update webhook_endpoints set failures = 40, rest_until = clock_timestamp()")
        .await
        .unwrap();
    let none = claims::claim(&test.store.db, Choice::Healthy, TTL).await.unwrap();
    assert!(none.is_none(), "it is not healthy");
    let turn = claim(&test).await.unwrap();
    settle(&test, &turn, Verdict::RetryIn(NOW)).await;
    assert!(rests("300 s").await);
    let healthy = endpoint(&test, &EVENT_TYPES).await;
    event(&test).await;
    let turn = claims::claim(&test.store.db, Choice::Healthy, TTL).await.unwrap().unwrap();
    assert_eq!(turn.endpoint.id, healthy.id);
    test.sql("update webhook_endpoints set rest_until = clock_timestamp()").await.unwrap();
    let turn = claim(&test).await.unwrap();
    assert_eq!(turn.endpoint.failures, 41);
    settle(&test, &turn, Verdict::Delivered).await;
    let failing = webhooks::get(&test.store.db, &test.project, &failing.id).await.unwrap();
    assert_eq!(failing.failures, 0);
}

#[tokio::test]
async fn a_receiver_that_is_gone_gets_nothing_until_its_url_is_set_again() {
    let (test, gone) = due().await;
    event(&test).await;
    let turn = claim(&test).await.unwrap();
    settle(&test, &turn, Verdict::Gone).await;
    event(&test).await;
    let rows = log(&test, &gone).await;
    assert_eq!(rows.len(), 2, "a disabled endpoint is told nothing");
    assert!(rows.iter().all(|row| row.status == DeliveryStatus::Failed));
    assert!(claim(&test).await.is_none());
    let (db, project) = (&test.store.db, &test.project);
    let refused = deliveries::redeliver(db, project, &gone.id, &rows[0].id).await;
    assert!(
        matches!(refused, Err(Error::Conflict(Conflict::WebhookDisabled { .. }))),
        "{refused:?}"
    );
    let named = EndpointChange { name: Some("n".to_owned()), ..EndpointChange::default() };
    let row = webhooks::update(db, project, &gone.id, &named).await.unwrap();
    assert!(row.disabled.is_some_and(|disabled| disabled.reason.contains("410")));
    let url = EndpointChange { url: Some(gone.url.clone()), ..EndpointChange::default() };
    let row = webhooks::update(db, project, &gone.id, &url).await.unwrap();
    assert!(row.disabled.is_none() && row.failures == 0);
    deliveries::redeliver(db, project, &gone.id, &rows[0].id).await.unwrap();
    assert_eq!(claim(&test).await.unwrap().delivery, rows[0].id);
}

#[tokio::test]
async fn a_delivery_that_is_wanted_anew_is_due_even_if_an_attempt_on_its_way_fails() {
    let (test, endpoint) = due().await;
    let (db, project) = (&test.store.db, &test.project);
    let turn = claim(&test).await.unwrap();
    settle(&test, &turn, Verdict::RetryIn(NOW)).await;
    let turn = claim(&test).await.unwrap();
    let row = deliveries::redeliver(db, project, &endpoint.id, &turn.delivery).await.unwrap();
    assert_eq!((row.status, &row.event_id), (DeliveryStatus::Pending, &turn.event.id));
    settle(&test, &turn, Verdict::GiveUp).await;
    let again = claim(&test).await.expect("still due");
    assert_eq!((again.tries, &again.event), (0, &turn.event));
    settle(&test, &again, Verdict::Delivered).await;
    let [row] = log(&test, &endpoint).await.try_into().unwrap();
    assert_eq!((row.status, row.attempts.len()), (DeliveryStatus::Delivered, 3));
    let unknown = deliveries::redeliver(db, project, &endpoint.id, &"whd_x".into()).await;
    assert!(matches!(unknown, Err(Error::NotFound("webhook delivery"))));
}

#[tokio::test]
async fn the_log_is_pruned_and_what_is_pending_stays() {
    let (test, endpoint) = due().await;
    let turn = claim(&test).await.unwrap();
    settle(&test, &turn, Verdict::Delivered).await;
    let pending = event(&test).await;
    outbox::expire(&test.store.db, HOUR).await.unwrap();
    assert_eq!(log(&test, &endpoint).await.len(), 2);
    outbox::expire(&test.store.db, NOW).await.unwrap();
    let [row] = log(&test, &endpoint).await.try_into().unwrap();
    assert_eq!(row.subject, pending.as_str());
    assert_eq!(test.value("select count(*) from outbox").await, "1");
}

#[tokio::test]
async fn a_project_has_so_many_endpoints_and_sees_no_others() {
    let (test, _) = prepared().await;
    let (db, project) = (&test.store.db, &test.project);
    let make = || webhooks::create(db, project, new_endpoint(&EVENT_TYPES), 2, None);
    let (a, b, c) = tokio::join!(make(), make(), make());
    let made: Vec<_> = [a, b, c].into_iter().filter_map(Result::ok).collect();
    assert_eq!(made.len(), 2);
    let refused = make().await.unwrap_err();
    assert!(matches!(refused, Error::Conflict(Conflict::TooManyWebhookEndpoints(2))));
    let other = Project { id: "proj_other".into(), ..project.clone() };
    let id: &WebhookEndpointId = &made[0].id;
    let change = EndpointChange::default();
    assert!(webhooks::get(db, &other, id).await.is_err());
    assert!(webhooks::update(db, &other, id, &change).await.is_err());
    assert!(webhooks::rotate_secret(db, &other, id, &"x".to_owned().into(), None).await.is_err());
    assert!(webhooks::delete(db, &other, id).await.is_err());
    assert!(webhooks::list(db, &other, &PageQuery::newest(9)).await.unwrap().data.is_empty());
    let page = PageQuery { after: Some(made[1].id.to_string()), ..PageQuery::newest(1) };
    let newest = webhooks::list(db, project, &PageQuery::newest(1)).await.unwrap();
    assert!(newest.has_more);
    let rest = webhooks::list(db, project, &page).await.unwrap();
    assert!(rest.data.len() <= 1);
    webhooks::delete(db, project, id).await.unwrap();
    make().await.unwrap();
}

#[tokio::test]
async fn changes_move_the_time_of_change_and_nothing_else_does() {
    let (test, endpoint) = due().await;
    let (db, project) = (&test.store.db, &test.project);
    let same = EndpointChange {
        name: Some(endpoint.name.clone()),
        url: Some(endpoint.url.clone()),
        event_types: Some(endpoint.event_types.clone()),
    };
    let row = webhooks::update(db, project, &endpoint.id, &same).await.unwrap();
    assert_eq!(row.updated_at, endpoint.updated_at);
    let turn = claim(&test).await.unwrap();
    settle(&test, &turn, Verdict::Delivered).await;
    let row = webhooks::get(db, project, &endpoint.id).await.unwrap();
    assert_eq!(row.updated_at, endpoint.updated_at);
    let fewer = EndpointChange {
        event_types: Some(vec!["eval.run.failed".to_owned()]),
        ..EndpointChange::default()
    };
    let row = webhooks::update(db, project, &endpoint.id, &fewer).await.unwrap();
    assert_eq!(row.event_types, ["eval.run.failed"]);
    assert!(row.updated_at > endpoint.updated_at);
}

#[tokio::test]
async fn an_old_secret_signs_until_its_time_is_over() {
    let (test, endpoint) = due().await;
    let (db, project) = (&test.store.db, &test.project);
    let rotate = async |secret: &str, keep: Option<Duration>| {
        let secret = secret.to_owned().into();
        let row = webhooks::rotate_secret(db, project, &endpoint.id, &secret, keep).await.unwrap();
        row.secrets().count()
    };
    assert_eq!(rotate("whsec_Mg==", Some(HOUR)).await, 2);
    assert_eq!(claim(&test).await.unwrap().endpoint.secrets().count(), 2);
    assert_eq!(rotate("whsec_Mw==", Some(NOW)).await, 1);
    assert_eq!(rotate("whsec_NA==", Some(HOUR)).await, 2);
    assert_eq!(rotate("whsec_NQ==", None).await, 1);
}
