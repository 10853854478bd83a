//! Two projects: what one lets the other use, and what it takes away again.

mod common;

use common::worker::{Worker, metrics};
use common::{MODEL, TestServer, body, error_of, rows, until};
use domain::report::CheckpointKind;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use store::{KeyKind, Project, keys, projects};

const OTHER_KEY: &str = "the other project's key 0123456789";

/// A server with a tuned model of one checkpoint, and another project.
async fn two_projects() -> (TestServer, String, Project) {
    let server = TestServer::start().await.with_model().await;
    let (db, project) = (&server.data.store.db, &server.data.project);
    let other = projects::create(db, project, "Other").await.unwrap();
    keys::create(db, &other, KeyKind::Project, "other", OTHER_KEY).await.unwrap();
    let model = tuned(&server).await;
    (server, model, other)
}

async fn tuned(server: &TestServer) -> String {
    let file = server.upload(&rows(12)).await;
    server.create_job(&json!({"model": MODEL, "training_file": file})).await;
    let run = Worker::of(server).claim(20).await.expect("a job waits");
    let last = run.checkpoint(CheckpointKind::Final, &metrics(4, 4)).await;
    let finish = json!({"checkpoint_id": last, "trained_tokens": 120});
    run.post("/finish", &finish).await.1["fine_tuned_model"].as_str().unwrap().to_owned()
}

async fn as_other(
    server: &TestServer,
    method: Method,
    path: &str,
    json: Option<Value>,
) -> (StatusCode, Value) {
    let request = server.http.request(method, format!("{}{path}", server.base));
    let mut request = request.header("authorization", format!("Bearer {OTHER_KEY}"));
    if let Some(json) = json {
        request = request.json(&json);
    }
    body(request.send().await.unwrap()).await
}

fn path(model: &str) -> String {
    format!("/v1/fine_tuning/checkpoints/{model}/permissions")
}

async fn names(server: &TestServer) -> Vec<String> {
    let (_, list) = as_other(server, Method::GET, "/v1/models", None).await;
    let models = list["data"].as_array().unwrap();
    models.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_permission_opens_the_model_and_its_end_closes_it() {
    let (server, model, other) = two_projects().await;
    let shown = format!("/v1/models/{model}");
    assert_eq!(as_other(&server, Method::GET, &shown, None).await.0, 404);
    assert_eq!(names(&server).await, [MODEL]);
    let chat = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
    let ask = || as_other(&server, Method::POST, "/v1/chat/completions", Some(chat.clone()));
    assert_eq!(ask().await.0, 404);

    let (status, given) =
        server.post(&path(&model), &json!({"project_ids": [other.id.as_str()]})).await;
    assert_eq!(status, 200, "{given}");
    let permission = &given["data"][0];
    let id = permission["id"].as_str().unwrap();
    assert!(id.starts_with("cp_"), "{id}");
    assert_eq!(permission["object"], "checkpoint.permission");
    assert_eq!(permission["project_id"], other.id.as_str());
    assert_eq!((&given["last_id"], &given["has_more"]), (&json!(id), &json!(false)));

    let (status, seen) = as_other(&server, Method::GET, &shown, None).await;
    assert_eq!((status.as_u16(), &seen["owned_by"]), (200, &json!("personal")));
    assert!(names(&server).await.contains(&model));
    // No worker answers here; but it is not unknown any more, and its base is found.
    let (db, name) = (&server.data.store.db, model.as_str().into());
    let resolved = store::models::resolve(db, &other, &name).await.unwrap();
    assert!(resolved.adapter.is_some());
    // Using is not owning.
    let refusals = [
        as_other(&server, Method::DELETE, &shown, None).await,
        as_other(&server, Method::GET, &path(&model), None).await,
    ];
    for (status, error) in refusals {
        assert_eq!(status, 403, "{error}");
    }

    let again = server.post(&path(&model), &json!({"project_ids": [other.id.as_str()]})).await;
    assert_eq!(again.1["data"][0]["id"], id, "given already");
    let (status, gone) = server.delete(&format!("{}/{id}", path(&model))).await;
    let deleted = json!({"id": id, "object": "checkpoint.permission", "deleted": true});
    assert_eq!((status.as_u16(), gone), (200, deleted));
    assert_eq!(server.delete(&format!("{}/{id}", path(&model))).await.0, 404);
    assert_eq!(as_other(&server, Method::GET, &shown, None).await.0, 404);
    assert_eq!(ask().await.0, 404);
}

#[tokio::test]
async fn permissions_are_listed_by_page_project_and_order() {
    let (server, model, other) = two_projects().await;
    let (db, project) = (&server.data.store.db, &server.data.project);
    let mut ids = vec![other.id.to_string()];
    for name in ["b", "c"] {
        ids.push(projects::create(db, project, name).await.unwrap().id.to_string());
    }
    let (_, given) = server.post(&path(&model), &json!({"project_ids": ids})).await;
    let data = given["data"].as_array().unwrap();
    assert_eq!(
        data.iter().map(|one| &one["project_id"]).collect::<Vec<_>>(),
        [&ids[0], &ids[1], &ids[2]]
    );
    // By the checkpoint's id, too, and with the colons encoded.
    let job = server.get(&format!("/v1/models/{model}")).await.1["fine_tuning_job_id"].clone();
    let list = format!("/v1/fine_tuning/jobs/{}/checkpoints", job.as_str().unwrap());
    let checkpoint = server.get(&list).await.1["data"][0]["id"].as_str().unwrap().to_owned();
    for name in [model.clone(), model.replace(':', "%3A"), checkpoint] {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let query = format!("{}?limit=2&order=ascending{after}", path(&name));
            let (status, page) = server.get(&query).await;
            assert_eq!(status, 200, "{page}");
            let rows = page["data"].as_array().unwrap();
            seen.extend(rows.iter().map(|row| row["project_id"].as_str().unwrap().to_owned()));
            if page["has_more"] == false {
                break;
            }
            after = format!("&after={}", page["last_id"].as_str().unwrap());
        }
        assert_eq!(seen, ids, "{name}");
    }
    let (_, newest) = server.get(&format!("{}?order=descending&limit=1", path(&model))).await;
    assert_eq!(newest["data"][0]["project_id"], ids[2]);
    let (_, one) = server.get(&format!("{}?project_id={}", path(&model), ids[1])).await;
    assert_eq!(
        (one["data"].as_array().unwrap().len(), &one["data"][0]["project_id"]),
        (1, &json!(ids[1]))
    );
    let (_, none) = server.get(&format!("{}?project_id=proj_none", path(&model))).await;
    assert_eq!(none["data"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_whole() {
    let (server, model, other) = two_projects().await;
    let projects = json!({"project_ids": [other.id.as_str(), "proj_unknown"]});
    for (name, body, status, param) in [
        (model.as_str(), &projects, 400, json!("project_ids")),
        (model.as_str(), &json!({"project_ids": []}), 400, json!("project_ids")),
        (model.as_str(), &json!({"project_ids": other.id.as_str()}), 400, json!("project_ids")),
        (model.as_str(), &json!({"project_ids": ["a\0b"]}), 400, json!("project_ids[0]")),
        (model.as_str(), &json!({}), 400, json!("project_ids")),
        (model.as_str(), &json!({"project_ids": ["x"], "y": 1}), 400, json!("y")),
        (MODEL, &json!({"project_ids": ["x"]}), 400, json!("fine_tuned_model_checkpoint")),
        ("ft:unknown", &json!({"project_ids": ["x"]}), 404, json!("model")),
        ("ftckpt_unknown", &json!({"project_ids": ["x"]}), 404, json!("model")),
    ] {
        let (found, error) = server.post(&path(name), body).await;
        assert_eq!((found.as_u16(), error_of(&error).1), (status, param), "{name} {body} {error}");
    }
    assert_eq!(server.get(&path(&model)).await.1["data"], json!([]), "nothing was given");
    assert_eq!(as_other(&server, Method::GET, &path(&model), None).await.0, 404);
}

#[tokio::test]
async fn a_deleted_model_takes_its_permissions_along() {
    let (server, model, other) = two_projects().await;
    server.post(&path(&model), &json!({"project_ids": [other.id.as_str()]})).await;
    let (status, gone) = server.delete(&format!("/v1/models/{model}")).await;
    assert_eq!(status, 200, "{gone}");
    until("no permission is left", async || {
        let left = server.data.value("select count(*) from checkpoint_permissions").await;
        (left == "0").then_some(())
    })
    .await;
}
