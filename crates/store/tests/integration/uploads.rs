//! Uploads in parts: the life of one over both kinds of storage, and what the database itself refuses.

use std::time::Duration;

use bytes::Bytes;
use domain::{PartId, UploadId};
use futures::TryStreamExt;
use store::testing::TestStore;
use store::uploads::{
    self, Completion, NewUpload, PartLimits, PartRow, UploadRefusal, UploadRow, UploadStatus,
};
use store::{Conflict, Error, Store, files, garbage, queue};

use crate::blobs::{Place, files_below, places};
use crate::common::*;

const LIMITS: PartLimits = PartLimits { parts: 100, part_bytes: 64 << 20 };

fn new(bytes: usize) -> NewUpload {
    NewUpload {
        filename: "train.jsonl".to_owned(),
        purpose: "fine-tune".to_owned(),
        mime_type: "application/jsonl".to_owned(),
        bytes: bytes as u64,
        file_expires_after: None,
        lifetime: Duration::from_secs(3600),
    }
}

async fn begin(test: &TestStore, bytes: usize) -> UploadId {
    uploads::create(&test.store.db, &test.project, new(bytes), None).await.unwrap().id
}

async fn add(
    store: &Store,
    test: &TestStore,
    id: &UploadId,
    bytes: &[u8],
) -> Result<PartRow, Error> {
    let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(bytes))]);
    let part = uploads::store_part(store, &test.project, id, body, LIMITS.part_bytes).await?;
    part.commit(LIMITS).await
}

async fn complete(
    store: &Store,
    test: &TestStore,
    id: &UploadId,
    parts: &[PartId],
) -> Result<UploadRow, Error> {
    let completion = Completion { part_ids: parts.to_vec(), md5: None };
    uploads::complete(store, &test.project, id, completion).await
}

/// The files below a folder, without what the S3 server notes beside them.
fn contents(folder: &std::path::Path) -> Vec<String> {
    let mut files = files_below(folder);
    files.retain(|path| !path.contains("/.bucket-"));
    files
}

fn refusal(outcome: Result<impl Sized, Error>) -> UploadRefusal {
    match outcome {
        Err(Error::Conflict(Conflict::Upload(refusal))) => refusal,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}

#[tokio::test]
async fn parts_become_one_content_in_a_folder_and_in_s3() {
    for Place { name, blobs, folder } in places().await {
        let test = TestStore::new().await;
        let store = Store { db: test.store.db.clone(), blobs };
        // The first part is larger than what goes in one request; one is empty, one is not used.
        let content: Vec<u8> = (0..9_500_000usize).map(|n| (n * 31 + n / 251) as u8).collect();
        let id = begin(&test, content.len()).await;
        let (head, tail) = content.split_at(9_000_000);
        let last = add(&store, &test, &id, tail).await.unwrap();
        let empty = add(&store, &test, &id, b"").await.unwrap();
        let unused = add(&store, &test, &id, b"sent twice").await.unwrap();
        let first = add(&store, &test, &id, head).await.unwrap();
        assert_eq!((first.bytes, &first.sha256), (9_000_000, &hex(head)), "{name}");
        let order = [first.id.clone(), empty.id.clone(), last.id.clone()];
        let upload = complete(&store, &test, &id, &order).await.unwrap();
        let file = upload.file.expect("a file");
        assert_eq!((file.bytes, &file.sha256), (9_500_000, &hex(&content)), "{name}");
        for range in [None, Some(0..10), Some(8_999_990..9_000_010), Some(9_499_999..9_500_000)] {
            let reader = files::read(&store, &file, range.clone()).await.unwrap();
            let range = range.unwrap_or(0..9_500_000);
            assert_eq!((reader.bytes, &reader.range), (9_500_000, &range), "{name}");
            let read = reader.stream.try_collect::<Vec<_>>().await.unwrap().concat();
            assert!(read == content[range.start as usize..range.end as usize], "{name} {range:?}");
        }
        let (shown, parts) = uploads::get(&store.db, &test.project, &id).await.unwrap();
        let parts: Vec<_> = parts.iter().map(|part| part.id.clone()).collect();
        assert_eq!((shown.status, parts), (UploadStatus::Completed, order.to_vec()), "{name}");
        assert_eq!(garbage::collect(&store, 10).await.unwrap(), 1, "{name}: {}", unused.id);
        files::delete(&store, &test.project, &file.id).await.unwrap();
        while garbage::collect(&store, 10).await.unwrap() > 0 {}
        assert_eq!(contents(folder.path()), [""; 0], "{name}");
        let (shown, parts) = uploads::get(&store.db, &test.project, &id).await.unwrap();
        assert_eq!((shown.file, parts.len()), (None, 0), "{name}");
        let late = refusal(complete(&store, &test, &id, &order).await);
        assert!(matches!(late, UploadRefusal::CompletedOtherwise { .. }), "{late:?}");
    }
}

#[tokio::test]
async fn an_upload_whose_time_is_over_ends_and_its_parts_go() {
    let test = TestStore::new().await;
    let store = &test.store;
    let (idle, busy) = (begin(&test, 4).await, begin(&test, 4).await);
    add(store, &test, &idle, b"idle").await.unwrap();
    let part = add(store, &test, &busy, b"busy").await.unwrap();
    test.sql("update uploads set expires_at = clock_timestamp()").await.unwrap();
    // Nothing begins any more, but what has begun in time may still end.
    let late = refusal(add(store, &test, &idle, b"late").await);
    assert!(matches!(late, UploadRefusal::Ended { status: "expired", .. }), "{late:?}");
    let late = refusal(complete(store, &test, &busy, &[part.id]).await);
    assert!(matches!(late, UploadRefusal::Ended { status: "expired", .. }), "{late:?}");
    let late = refusal(uploads::cancel(&store.db, &test.project, &busy).await);
    assert!(matches!(late, UploadRefusal::Ended { status: "expired", .. }), "{late:?}");
    garbage::collect(store, 10).await.unwrap();
    assert_eq!(test.value("select count(*) from upload_parts").await, "2");
    test.sql("update uploads set expires_at = clock_timestamp() - interval '1 hour'")
        .await
        .unwrap();
    garbage::collect(store, 10).await.unwrap();
    assert_eq!(test.value("select count(*) from upload_parts").await, "0");
    assert_eq!(files_below(test.blobs.path()).len(), 0);
    let (row, _) = uploads::get(&store.db, &test.project, &idle).await.unwrap();
    assert_eq!(row.status, UploadStatus::Expired);
    // The rows themselves go some weeks later.
    test.sql("update uploads set remove_after = clock_timestamp()").await.unwrap();
    garbage::collect(store, 10).await.unwrap();
    assert_eq!(test.value("select count(*) from uploads").await, "0");
}

#[tokio::test]
async fn the_end_of_an_upload_is_final_in_the_database_too() {
    let test = TestStore::new().await;
    let id = begin(&test, 0).await;
    for (broken, constraint) in [
        ("status = 'completed'", "uploads_ended_exactly_when_not_pending"),
        ("status = 'done', ended_at = now()", "uploads_status_check"),
        ("status = 'completed', ended_at = now()", "uploads_file_exactly_when_completed"),
        ("remove_after = now()", "uploads_pending_stays"),
        ("project_id = 'proj_other'", "never changes its project"),
        ("md5 = 'x'", "uploads_md5_check"),
    ] {
        let refusal = test.sql(&format!("update uploads set {broken}")).await.expect_err(broken);
        assert!(refusal.contains(constraint), "{broken}: {refusal}");
    }
    uploads::cancel(&test.store.db, &test.project, &id).await.unwrap();
    for broken in [
        "status = 'pending', ended_at = null, remove_after = null",
        "status = 'completed', file_id = 'f'",
        "status = 'expired'",
    ] {
        let refusal = test.sql(&format!("update uploads set {broken}")).await.expect_err(broken);
        assert!(refusal.contains("cannot go from cancelled"), "{broken}: {refusal}");
    }
}

#[tokio::test]
async fn a_file_in_parts_that_has_expired_stays_while_a_job_needs_it() {
    let (test, _) = prepared().await;
    let (store, project) = (&test.store, &test.project);
    let id = begin(&test, 3).await;
    let part = add(store, &test, &id, b"{}\n").await.unwrap();
    let upload = complete(store, &test, &id, &[part.id]).await.unwrap();
    let file = upload.file.expect("a file");
    let job = create(&test, new_job(file.id.clone())).await.id;
    test.sql("update files set expires_at = clock_timestamp() where upload_id is not null")
        .await
        .unwrap();
    // Gone for everybody, but its content stays for the job.
    assert!(matches!(files::get(&store.db, project, &file.id).await, Err(Error::NotFound(_))));
    assert!(matches!(files::delete(store, project, &file.id).await, Err(Error::NotFound(_))));
    let refused = store::jobs::create(&store.db, project, new_job(file.id.clone()), None).await;
    assert!(matches!(refused, Err(Error::NotFound("training file"))), "{refused:?}");
    assert_eq!(garbage::collect(store, 10).await.unwrap(), 0);
    queue::cancel(&store.db, project, &job).await.unwrap();
    assert_eq!(garbage::collect(store, 10).await.unwrap(), 1);
    assert_eq!(test.value("select count(*) from upload_parts").await, "0");
}
