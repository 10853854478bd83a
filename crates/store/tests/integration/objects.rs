//! Files, keys, base models, lists.

use std::time::{Duration, Instant};

use crate::blobs::files_below;
use crate::common::*;
use bytes::Bytes;
use futures::StreamExt;
use store::base_models::{self, NewBaseModel};
use store::files::{self, NewFile};
use store::jobs::{self, MetadataFilter};
use store::testing::TestStore;
use store::{
    BlobKey, Conflict, Error, KeyKind, Order, PageQuery, Project, garbage, keys, projects, queue,
};

/// Every file in the folder of the blobs: objects, parts, leftovers.
fn blobs(test: &TestStore) -> Vec<String> {
    files_below(test.blobs.path())
}

async fn other_project(test: &TestStore) -> Project {
    test.sql(
        "insert into projects (id, organization_id, name) values ('proj_b', 'org-default', 'b')",
    )
    .await
    .unwrap();
    Project { id: "proj_b".into(), ..test.project.clone() }
}

#[tokio::test]
async fn a_key_opens_its_project_until_it_is_revoked() {
    let test = TestStore::new().await;
    let (db, project) = (&test.store.db, &test.project);
    let secret = "sk-a secret with spaces";
    let key = keys::create(db, project, KeyKind::Project, "first", secret).await.unwrap();
    assert_eq!((key.last_four.as_str(), key.name.as_str()), ("aces", "first"));
    let again = keys::create(db, project, KeyKind::Project, "second", secret).await.unwrap();
    assert_eq!(again, key, "the same secret is the same key");
    let principal = keys::authenticate(db, secret).await.unwrap().expect("a known key");
    assert_eq!((&principal.project, &principal.key_id), (project, &key.id));
    assert_eq!(principal.kind, KeyKind::Project);
    assert!(keys::authenticate(db, "sk-a secret").await.unwrap().is_none());
    let other_kind = keys::create(db, project, KeyKind::Worker, "w", secret).await;
    assert!(matches!(other_kind, Err(Error::Conflict(_))), "{other_kind:?}");
    keys::revoke(db, project, &key.id).await.unwrap();
    assert!(keys::authenticate(db, secret).await.unwrap().is_none());
    assert!(keys::create(db, project, KeyKind::Project, "x", secret).await.is_err());
    assert!(keys::list(db, project).await.unwrap()[0].revoked_at.is_some());
}

#[tokio::test]
async fn the_database_never_holds_a_secret() {
    let test = TestStore::new().await;
    let secret = "canary-secret-0123456789";
    keys::create(&test.store.db, &test.project, KeyKind::Worker, "w", secret).await.unwrap();
    let held = "select count(*) from api_keys k where k::text like '%canary%'";
    assert_eq!(test.value(held).await, "0");
    let short = keys::create(&test.store.db, &test.project, KeyKind::Project, "s", "abc").await;
    assert_eq!(short.unwrap().last_four, "", "of a short secret nothing is shown");
}

#[tokio::test]
async fn keys_of_another_project_cannot_be_revoked() {
    let test = TestStore::new().await;
    let db = &test.store.db;
    let key = keys::create(db, &test.project, KeyKind::Project, "k", "secret-1").await.unwrap();
    let other = other_project(&test).await;
    let refused = keys::revoke(db, &other, &key.id).await;
    assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    assert!(keys::list(db, &other).await.unwrap().is_empty());
    assert!(keys::authenticate(db, "secret-1").await.unwrap().is_some());
}

#[tokio::test]
async fn an_upload_is_visible_once_it_is_committed() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    let content = Bytes::from_static(b"{\"messages\":[]}\n");
    let uploaded = files::upload_bytes(store, project, content.clone()).await.unwrap();
    let id = uploaded.id().clone();
    assert!(files::get(&store.db, project, &id).await.is_err());
    let row = uploaded.commit(new_file(), None).await.unwrap();
    assert_eq!((row.bytes, row.sha256.clone()), (16, hex(&content)));
    assert_eq!(files::get(&store.db, project, &id).await.unwrap(), row);
    let (_, reader) = files::open(store, project, &id, Some(2..10)).await.unwrap();
    let part: Vec<_> = reader.stream.collect().await;
    assert_eq!(part.into_iter().collect::<Result<Vec<_>, _>>().unwrap().concat(), content[2..10]);
    // Nothing is left to clean up.
    test.sql("update garbage set delete_after = clock_timestamp()").await.unwrap();
    assert_eq!(garbage::collect(store, 10).await.unwrap(), 0);
    assert_eq!(blobs(&test).len(), 1);
}

#[tokio::test]
async fn an_upload_that_is_too_large_or_breaks_off_leaves_nothing() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    let large = body(&[7; 1001]);
    let refused = files::upload(store, project, large, 1000).await;
    assert!(matches!(refused, Err(Error::TooLarge { limit: 1000 })));
    let broken = futures::stream::iter([
        Ok(Bytes::from(vec![1; 9_000_000])),
        Err(std::io::Error::other("connection reset")),
    ]);
    let refused = files::upload(store, project, broken, u64::MAX).await;
    assert!(matches!(refused, Err(Error::Body(_))));
    // Dropped while it waits for more.
    let stalled = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![1; 9_000_000]))])
        .chain(futures::stream::pending());
    let upload = files::upload(store, project, Box::pin(stalled), u64::MAX);
    assert!(tokio::time::timeout(Duration::from_millis(300), upload).await.is_err());
    drop(files::upload_bytes(store, project, Bytes::from_static(b"forgotten")).await.unwrap());
    // The clean-up runs in tasks of its own.
    let (start, rows) = (Instant::now(), "select count(*) from garbage");
    while !blobs(&test).is_empty() || test.value(rows).await != "0" {
        let left =
            (blobs(&test), test.value("select string_agg(g::text, ' ') from garbage g").await);
        assert!(start.elapsed() < Duration::from_secs(20), "{left:?}");
    }
}

#[tokio::test]
async fn what_a_killed_server_leaves_of_an_upload_is_collected() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    let uploaded = files::upload_bytes(store, project, Bytes::from_static(b"x")).await.unwrap();
    let key = BlobKey::File { project: project.id.clone(), file: uploaded.id().clone() };
    // As if the process had died: the guard never runs, and a part lies beside the blob.
    std::mem::forget(uploaded);
    std::fs::write(test.blobs.path().join(format!("{}#1", key.path())), b"part").unwrap();
    assert_eq!(garbage::collect(store, 10).await.unwrap(), 0, "not yet");
    test.sql("update garbage set delete_after = clock_timestamp()").await.unwrap();
    assert_eq!(garbage::collect(store, 10).await.unwrap(), 1);
    assert_eq!(blobs(&test).len(), 0);
}

#[tokio::test]
async fn an_upload_that_was_collected_cannot_be_committed() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    let uploaded = files::upload_bytes(store, project, Bytes::from_static(b"x")).await.unwrap();
    test.sql("update garbage set delete_after = clock_timestamp()").await.unwrap();
    garbage::collect(store, 10).await.unwrap();
    assert!(uploaded.commit(new_file(), None).await.is_err());
    assert_eq!(test.value("select count(*) from files").await, "0");
}

#[tokio::test]
async fn files_are_listed_by_purpose_order_and_page() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    let mut ids = Vec::new();
    for purpose in ["fine-tune", "fine-tune", "batch", "fine-tune"] {
        let new = NewFile { purpose: purpose.to_owned(), ..new_file() };
        let upload = files::upload_bytes(store, project, Bytes::from_static(b"x")).await.unwrap();
        ids.push(upload.commit(new, None).await.unwrap().id);
    }
    let db = &store.db;
    let newest = PageQuery::newest(2);
    let first = files::list(db, project, None, &newest).await.unwrap();
    let got: Vec<_> = first.data.iter().map(|row| &row.id).collect();
    assert_eq!((got, first.has_more), (vec![&ids[3], &ids[2]], true));
    let oldest = |after: Option<&str>| PageQuery {
        after: after.map(str::to_owned),
        limit: 2,
        order: Order::Oldest,
    };
    let page = files::list(db, project, Some("fine-tune"), &oldest(None)).await.unwrap();
    let got: Vec<_> = page.data.iter().map(|row| &row.id).collect();
    assert_eq!((got, page.has_more), (vec![&ids[0], &ids[1]], true));
    let after = oldest(Some(ids[1].as_str()));
    let page = files::list(db, project, Some("fine-tune"), &after).await.unwrap();
    let got: Vec<_> = page.data.iter().map(|row| &row.id).collect();
    assert_eq!((got, page.has_more), (vec![&ids[3]], false));
    let unknown = files::list(db, project, Some("other"), &newest).await.unwrap();
    assert!(unknown.data.is_empty());
}

#[tokio::test]
async fn an_expired_file_is_gone_and_its_content_collected() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    let upload = files::upload_bytes(store, project, Bytes::from_static(b"x")).await.unwrap();
    let new = NewFile { expires_after: Some(Duration::from_secs(3600)), ..new_file() };
    let row = upload.commit(new, None).await.unwrap();
    assert!(row.expires_at.is_some());
    test.sql("update files set expires_at = clock_timestamp()").await.unwrap();
    assert!(files::get(&store.db, project, &row.id).await.is_err());
    let page = PageQuery::newest(5);
    assert!(files::list(&store.db, project, None, &page).await.unwrap().data.is_empty());
    assert_eq!(garbage::collect(store, 10).await.unwrap(), 1);
    assert_eq!(blobs(&test).len(), 0);
}

#[tokio::test]
async fn a_file_in_use_cannot_be_deleted() {
    let (test, file) = prepared().await;
    let (store, project) = (&test.store, &test.project);
    let id = create(&test, new_job(file.clone())).await.id;
    let refused = files::delete(store, project, &file).await;
    let in_use = Conflict::FileInUse(id.clone());
    assert!(matches!(&refused, Err(Error::Conflict(conflict)) if *conflict == in_use));
    queue::cancel(&store.db, project, &id).await.unwrap();
    files::delete(store, project, &file).await.unwrap();
    assert!(files::get(&store.db, project, &file).await.is_err());
    assert_eq!(job(&test, &id).await.training_file, file, "the job stays readable");
    assert!(matches!(files::delete(store, project, &file).await, Err(Error::NotFound("file"))));
    let key = BlobKey::File { project: project.id.clone(), file };
    assert_eq!(store.blobs.head(&key).await.unwrap(), None);
}

#[tokio::test]
async fn a_job_and_the_deletion_of_its_file_exclude_each_other() {
    let (test, _) = prepared().await;
    let (store, project) = (&test.store, &test.project);
    for _ in 0..8 {
        let file = upload(&test, b"{}\n").await;
        let (created, deleted) = tokio::join!(
            jobs::create(&store.db, project, new_job(file.clone()), None),
            files::delete(store, project, &file),
        );
        assert_ne!(created.is_ok(), deleted.is_ok());
    }
}

#[tokio::test]
async fn odd_ids_and_names_do_no_harm() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    for id in ["", "\0", "' or 1=1 --", "../../etc/passwd", "file-\u{202e}"] {
        let found = files::get(&store.db, project, &id.into()).await;
        assert!(matches!(found, Err(Error::NotFound(_))), "{id:?}: {found:?}");
    }
    let upload = files::upload_bytes(store, project, Bytes::from_static(b"x")).await.unwrap();
    let new = NewFile { filename: "../\0ü.jsonl".to_owned(), ..new_file() };
    assert_eq!(upload.commit(new, None).await.unwrap().filename, "../\u{fffd}ü.jsonl");
}

#[tokio::test]
async fn a_base_model_is_registered_once() {
    let test = TestStore::new().await;
    let (store, project) = (&test.store, &test.project);
    base_model(&test).await;
    base_model(&test).await;
    let row = base_models::get(&store.db, project, &BASE.into()).await.unwrap();
    let names: Vec<_> = row.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    let (key, file) = row.blob_key("model.safetensors").unwrap();
    assert_eq!(store.blobs.get_bytes(&key, 100).await.unwrap(), "weights");
    assert_eq!((file.bytes, file.sha256.as_str()), (7, hex(b"weights").as_str()));
    assert!(row.blob_key("other").is_err());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), b"other").unwrap();
    let new = || NewBaseModel { id: BASE.into(), architecture: "llama".into(), parameters: 1 };
    let other = base_models::register(store, project, new(), folder.path()).await;
    assert!(matches!(other, Err(Error::Conflict(Conflict::Exists(_)))), "{other:?}");
    assert_eq!(blobs(&test).len(), 2);
    assert_eq!(test.value("select count(*) from garbage").await, "0");
    let theirs = other_project(&test).await;
    assert_eq!(base_models::list(&store.db, &theirs).await.unwrap(), [row]);
}

#[tokio::test]
async fn a_folder_with_odd_names_is_no_base_model() {
    let test = TestStore::new().await;
    let folder = tempfile::tempdir().unwrap();
    let new = || NewBaseModel { id: BASE.into(), architecture: "llama".into(), parameters: 1 };
    let empty = base_models::register(&test.store, &test.project, new(), folder.path()).await;
    assert!(matches!(empty, Err(Error::Config(_))), "{empty:?}");
    std::fs::write(folder.path().join("with space"), b"x").unwrap();
    let odd = base_models::register(&test.store, &test.project, new(), folder.path()).await;
    assert!(odd.is_err_and(|error| error.to_string().contains("with space")));
    assert_eq!(blobs(&test).len(), 0);
}

#[tokio::test]
async fn a_base_model_in_use_cannot_be_removed() {
    let (test, file) = prepared().await;
    let (store, project) = (&test.store, &test.project);
    let id = create(&test, new_job(file)).await.id;
    let refused = base_models::remove(store, project, &BASE.into()).await;
    assert!(matches!(refused, Err(Error::Conflict(Conflict::ModelInUse(_)))), "{refused:?}");
    queue::cancel(&store.db, project, &id).await.unwrap();
    base_models::remove(store, project, &BASE.into()).await.unwrap();
    assert!(base_models::list_for_workers(&store.db).await.unwrap().is_empty());
    // The same content again is a new upload: the removal of the old one cannot touch it.
    base_model(&test).await;
    test.sql("update garbage set delete_after = clock_timestamp()").await.unwrap();
    assert_eq!(garbage::collect(store, 10).await.unwrap(), 2);
    let row = base_models::get_for_workers(&store.db, &BASE.into()).await.unwrap();
    let (key, _) = row.blob_key("config.json").unwrap();
    assert!(store.blobs.head(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages_and_by_metadata() {
    let (test, file) = prepared().await;
    let (db, project) = (&test.store.db, &test.project);
    let mut ids = Vec::new();
    for n in 0..5 {
        let mut new = new_job(file.clone());
        new.metadata =
            (n > 0).then(|| [("n".to_owned(), (n % 2).to_string())].into_iter().collect());
        ids.insert(0, create(&test, new).await.id);
    }
    let any = MetadataFilter::Any;
    let first = jobs::list(db, project, &any, &PageQuery::newest(2)).await.unwrap();
    let listed: Vec<_> = first.data.iter().map(|job| job.id.clone()).collect();
    assert_eq!((listed.as_slice(), first.has_more), (&ids[..2], true));
    let after = PageQuery { after: Some(ids[1].to_string()), ..PageQuery::newest(10) };
    let rest = jobs::list(db, project, &any, &after).await.unwrap();
    let listed: Vec<_> = rest.data.iter().map(|job| job.id.clone()).collect();
    assert_eq!((listed.as_slice(), rest.has_more), (&ids[2..], false));
    let unknown = PageQuery { after: Some("ftjob-none".to_owned()), ..PageQuery::newest(10) };
    assert!(jobs::list(db, project, &any, &unknown).await.unwrap().data.is_empty());

    let odd = MetadataFilter::Holds([("n".to_owned(), "1".to_owned())].into_iter().collect());
    let page = PageQuery::newest(10);
    assert_eq!(jobs::list(db, project, &odd, &page).await.unwrap().data.len(), 2);
    let absent = jobs::list(db, project, &MetadataFilter::Absent, &page).await.unwrap();
    assert_eq!(absent.data.len(), 1);
    let counts = jobs::count_by_status(db).await.unwrap();
    assert_eq!(counts, [(domain::JobStatus::ValidatingFiles, 5)]);
}

#[tokio::test]
async fn a_job_needs_its_files_and_its_model() {
    let (test, file) = prepared().await;
    let (db, project) = (&test.store.db, &test.project);
    let mut no_file = new_job("file-none".into());
    no_file.suffix = None;
    let mut no_validation = new_job(file.clone());
    no_validation.validation_file = Some("file-none".into());
    let mut no_model = new_job(file);
    no_model.base_model = "none".into();
    for (new, what) in
        [(no_file, "training file"), (no_validation, "validation file"), (no_model, "model")]
    {
        let refused = jobs::create(db, project, new, None).await;
        assert!(matches!(refused, Err(Error::NotFound(it)) if it == what), "{what}: {refused:?}");
    }
    assert_eq!(test.value("select count(*) from jobs").await, "0");
}

#[tokio::test]
async fn another_projects_objects_cannot_be_seen_or_changed() {
    let (test, claimed) = running().await;
    let other = other_project(&test).await;
    let (db, id) = (&test.store.db, &claimed.job.id);
    let model = succeed(&test, &claimed.lease, 3).await;
    let page = PageQuery::newest(5);
    let file = &claimed.training_file.id;
    for seen in [
        jobs::get(db, &other, id).await.map(|_| ()),
        queue::cancel(db, &other, id).await.map(|_| ()),
        queue::pause(db, &other, id).await.map(|_| ()),
        queue::resume(db, &other, id).await.map(|_| ()),
        store::events::list(db, &other, id, &page).await.map(|_| ()),
        store::events::since(db, &other, id, 0, 5).await.map(|_| ()),
        store::checkpoints::list(db, &other, id, &page).await.map(|_| ()),
        files::get(db, &other, file).await.map(|_| ()),
        files::delete(&test.store, &other, file).await,
        jobs::create(db, &other, new_job(file.clone()), None).await.map(|_| ()),
        store::models::get(db, &other, &model).await.map(|_| ()),
        store::models::resolve(db, &other, &model).await.map(|_| ()),
        store::models::delete(&test.store, &other, &model).await,
        base_models::remove(&test.store, &other, &BASE.into()).await,
    ] {
        assert!(matches!(seen, Err(Error::NotFound(_))), "{seen:?}");
    }
    let mine = jobs::list(db, &other, &MetadataFilter::Any, &page).await.unwrap();
    assert!(mine.data.is_empty());
    let default = projects::default_project(db).await.unwrap();
    assert_eq!(default, test.project);
}

#[tokio::test]
async fn completions_belong_to_their_project_and_go_with_age() {
    use store::completions::{self, Metadata, NewCompletion};
    let test = TestStore::new().await;
    let (db, other) = (&test.store.db, other_project(&test).await);
    let new = |id: &str| NewCompletion {
        id: id.to_owned(),
        model: "m".to_owned(),
        metadata: Metadata::from([("a".to_owned(), "b".to_owned())]),
        request: serde_json::json!({}),
        completion: serde_json::json!({"id": id}),
    };
    completions::insert(db, &test.project, &new("chatcmpl-1")).await.unwrap();
    completions::insert(db, &test.project, &new("chatcmpl-2")).await.unwrap();
    let page = PageQuery { after: None, limit: 10, order: Order::Oldest };
    let none = Metadata::new();
    let ids = async |project: &Project, page: &PageQuery| {
        let rows = completions::list(db, project, Some("m"), &none, page).await.unwrap();
        rows.data.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&test.project, &page).await, ["chatcmpl-1", "chatcmpl-2"]);
    assert!(ids(&other, &page).await.is_empty());
    let unknown = PageQuery { after: Some("chatcmpl-0".to_owned()), ..page.clone() };
    assert!(ids(&test.project, &unknown).await.is_empty());
    let stranger = [
        completions::get(db, &other, "chatcmpl-1").await.err(),
        completions::describe(db, &other, "chatcmpl-1", &none).await.err(),
        completions::delete(db, &other, "chatcmpl-1").await.err(),
    ];
    assert!(stranger.iter().all(|error| matches!(error, Some(Error::NotFound(_)))));

    test.sql(
        "update completions set created_at = now() - interval '2 days' where id = 'chatcmpl-1'",
    )
    .await
    .unwrap();
    assert_eq!(completions::expire(db, Duration::from_secs(86_400)).await.unwrap(), 1);
    assert_eq!(ids(&test.project, &page).await, ["chatcmpl-2"]);
}
