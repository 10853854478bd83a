//! What a run leaves: reports, checkpoints, the tuned model; and that repetition changes nothing.

use crate::common::*;
use domain::internal::{FinishRun, ManifestFile};
use domain::report::{CheckpointKind, Level, RunReport};
use domain::{JobId, ModelId};
use store::files::{self, Uploaded};
use store::models::{self, ModelKind};
use store::queue;
use store::testing::TestStore;
use store::{Conflict, Error, PageQuery, checkpoints, events, garbage};

async fn visible(test: &TestStore, job: &JobId) -> Vec<(u64, ModelId)> {
    let page = PageQuery::newest(10);
    let listed = checkpoints::list(&test.store.db, &test.project, job, &page).await.unwrap();
    listed.data.into_iter().map(|row| (row.step, row.model)).collect()
}

async fn result_file(test: &TestStore) -> Uploaded {
    let csv = bytes::Bytes::from_static(b"step,train_loss\n");
    files::upload_bytes(&test.store, &test.project, csv).await.unwrap()
}

#[tokio::test]
async fn a_batch_of_reports_sent_twice_is_recorded_once() {
    let (test, claimed) = running().await;
    let (db, lease) = (&test.store.db, &claimed.lease);
    let mut reports = vec![started()];
    reports.extend(steps(1..=4));
    queue::record_reports(db, lease, &batch(0, reports.clone())).await.unwrap();
    let before = job(&test, &claimed.job.id).await;
    queue::record_reports(db, lease, &batch(0, reports.clone())).await.unwrap();
    assert_eq!(job(&test, &claimed.job.id).await.version, before.version);
    // A batch that overlaps with what is known adds only what is new.
    reports.extend(steps(5..=6));
    queue::record_reports(db, lease, &batch(2, reports[2..].to_vec())).await.unwrap();
    assert_eq!(job(&test, &claimed.job.id).await.event_seq, before.event_seq + 2);
    let gap = queue::record_reports(db, lease, &batch(9, steps(9..=9))).await;
    let expected = Conflict::ReportGap { expected: 7, got: 9 };
    assert!(matches!(&gap, Err(Error::Conflict(conflict)) if *conflict == expected), "{gap:?}");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_step_that_runs_again_replaces_its_numbers() {
    let (test, claimed) = running().await;
    let (db, lease) = (&test.store.db, &claimed.lease);
    queue::record_reports(db, lease, &batch(0, steps(1..=3))).await.unwrap();
    queue::release(db, lease).await.unwrap();
    let again = claim(&test).await;
    assert!(job(&test, &claimed.job.id).await.progress.is_none(), "nothing reported yet");
    let mut second = metrics(2);
    second.train_loss = 0.125;
    let reports = vec![RunReport::Step(second.clone()), RunReport::Step(metrics(4))];
    queue::record_reports(db, &again.lease, &batch(0, reports)).await.unwrap();
    let kept = events::step_metrics(db, &claimed.job.id).await.unwrap();
    assert_eq!(kept, [metrics(1), second, metrics(3), metrics(4)]);
}

#[tokio::test]
async fn messages_of_a_run_become_events_even_with_odd_text() {
    let (test, claimed) = running().await;
    let message = "odd \0 text".to_owned();
    let reports = vec![RunReport::Message { level: Level::Warn, message }];
    queue::record_reports(&test.store.db, &claimed.lease, &batch(0, reports)).await.unwrap();
    let last = messages(&test, &claimed.job.id).await.pop();
    assert_eq!(last.as_deref(), Some("odd \u{fffd} text"));
}

#[tokio::test]
async fn events_are_paged_newest_first_and_followed_oldest_first() {
    let (test, claimed) = running().await;
    let (db, id) = (&test.store.db, &claimed.job.id);
    queue::record_reports(db, &claimed.lease, &batch(0, steps(1..=5))).await.unwrap();
    let first = events::list(db, &test.project, id, &PageQuery::newest(3)).await.unwrap();
    let seqs: Vec<_> = first.data.iter().map(|event| event.seq).collect();
    assert_eq!((seqs.as_slice(), first.has_more), ([8, 7, 6].as_slice(), true));
    let cursor = first.data[2].id.to_string();
    let after = PageQuery { after: Some(cursor), ..PageQuery::newest(10) };
    let rest = events::list(db, &test.project, id, &after).await.unwrap();
    let seqs: Vec<_> = rest.data.iter().map(|event| event.seq).collect();
    assert_eq!((seqs.as_slice(), rest.has_more), ([5, 4, 3, 2, 1].as_slice(), false));
    let unknown = PageQuery { after: Some("ftevent-none".to_owned()), ..PageQuery::newest(3) };
    let none = events::list(db, &test.project, id, &unknown).await.unwrap();
    assert!(none.data.is_empty() && !none.has_more);
    let followed = events::since(db, &test.project, id, 6, 10).await.unwrap();
    assert_eq!(followed.iter().map(|event| event.seq).collect::<Vec<_>>(), [7, 8]);
}

#[tokio::test]
async fn a_checkpoint_is_announced_once_and_committed_once() {
    let (test, claimed) = running().await;
    let (db, lease) = (&test.store.db, &claimed.lease);
    let begin = begin(10, CheckpointKind::Epoch);
    let id = queue::begin_checkpoint(db, lease, &begin).await.unwrap();
    assert_eq!(queue::begin_checkpoint(db, lease, &begin).await.unwrap(), id);
    put_files(&test, lease, &id, 10).await.unwrap();
    put_files(&test, lease, &id, 10).await.unwrap();
    queue::commit_checkpoint(&test.store, lease, &id).await.unwrap();
    let after = job(&test, &claimed.job.id).await;
    assert_eq!(after.committed_step, 10);
    queue::commit_checkpoint(&test.store, lease, &id).await.unwrap();
    assert_eq!(queue::begin_checkpoint(db, lease, &begin).await.unwrap(), id);
    assert_eq!(job(&test, &claimed.job.id).await.version, after.version);
    let [(step, model)] = visible(&test, &claimed.job.id).await.try_into().unwrap();
    assert!(model.as_str().ends_with(":ckpt-step-10"), "{model}");
    let last = messages(&test, &claimed.job.id).await.pop().unwrap();
    assert_eq!(last, format!("Checkpoint created at step {step} with Snapshot ID: {model}"));
    assert_eq!(test.value("select string_agg(tokens::text, ',') from usage").await, "1000");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_checkpoint_with_a_missing_file_does_not_count() {
    let (test, claimed) = running().await;
    let begin = begin(10, CheckpointKind::Epoch);
    let id = queue::begin_checkpoint(&test.store.db, &claimed.lease, &begin).await.unwrap();
    let refused = queue::commit_checkpoint(&test.store, &claimed.lease, &id).await;
    assert!(matches!(refused, Err(Error::Conflict(Conflict::Checkpoint(_)))), "{refused:?}");
    assert_eq!(job(&test, &claimed.job.id).await.committed_step, 0);
}

#[tokio::test]
async fn a_file_that_differs_from_its_announcement_is_not_kept() {
    let (test, claimed) = running().await;
    let (store, lease) = (&test.store, &claimed.lease);
    let begin = begin(10, CheckpointKind::Resume);
    let id = queue::begin_checkpoint(&store.db, lease, &begin).await.unwrap();
    let right = content("state.json", 10);
    let flipped: Vec<u8> = right.iter().map(|byte| byte ^ 1).collect();
    let longer = [right.as_slice(), b"!"].concat();
    for wrong in [&flipped, &longer, &right[1..].to_vec()] {
        let put = queue::put_checkpoint_file(store, lease, &id, "state.json", body(wrong)).await;
        assert!(matches!(put, Err(Error::HashMismatch { .. })), "{put:?}");
    }
    let unknown = queue::put_checkpoint_file(store, lease, &id, "other", body(&right)).await;
    assert!(matches!(unknown, Err(Error::NotFound(_))), "{unknown:?}");
    assert!(queue::commit_checkpoint(store, lease, &id).await.is_err());
    put_files(&test, lease, &id, 10).await.unwrap();
    queue::commit_checkpoint(store, lease, &id).await.unwrap();
    let (key, file) =
        queue::leased_checkpoint_file(&store.db, lease, &id, "state.json").await.unwrap();
    assert_eq!(store.blobs.get_bytes(&key, 1000).await.unwrap(), right);
    assert_eq!(file.bytes, right.len() as u64);
}

#[tokio::test]
async fn names_of_checkpoint_files_are_plain() {
    let (test, claimed) = running().await;
    for name in ["../state.json", "a/b", "", ".hidden", "a\0b"] {
        let mut begin = begin(1, CheckpointKind::Resume);
        begin.files[0] = ManifestFile { name: name.to_owned(), bytes: 1, sha256: hex(b"x") };
        let refused = queue::begin_checkpoint(&test.store.db, &claimed.lease, &begin).await;
        assert!(matches!(refused, Err(Error::Conflict(_))), "{name:?}: {refused:?}");
    }
}

#[tokio::test]
async fn the_last_three_epochs_and_the_newest_of_all_are_kept() {
    let (test, claimed) = running().await;
    let (lease, id) = (&claimed.lease, &claimed.job.id);
    for step in [5, 10, 15, 20, 25] {
        let kind = if step % 10 == 5 { CheckpointKind::Resume } else { CheckpointKind::Epoch };
        checkpoint(&test, lease, step, kind).await;
    }
    for step in [30, 40, 45] {
        let kind = if step == 45 { CheckpointKind::Resume } else { CheckpointKind::Epoch };
        checkpoint(&test, lease, step, kind).await;
    }
    let steps: Vec<_> = visible(&test, id).await.into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [40, 30, 20]);
    let kept = "select string_agg(kind || step, ',' order by step) from checkpoints
                where state = 'committed'";
    assert_eq!(test.value(kept).await, "epoch20,epoch30,epoch40,resume45");
    // The others' blobs go in time, and only theirs.
    test.sql("update garbage set delete_after = clock_timestamp()").await.unwrap();
    assert_eq!(garbage::collect(&test.store, 100).await.unwrap(), 4 * 4);
    queue::release(&test.store.db, lease).await.unwrap();
    let resume = claim(&test).await.resume_from.unwrap();
    assert_eq!(resume.step, 45);
    for name in CHECKPOINT_FILES {
        let lease = queue::leased_job(&test.store.db, lease).await;
        assert!(lease.is_err());
        let key = store::BlobKey::CheckpointFile {
            project: test.project.id.clone(),
            job: id.clone(),
            checkpoint: resume.checkpoint_id.clone(),
            name: name.to_owned(),
        };
        assert!(test.store.blobs.head(&key).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn success_shows_three_checkpoints_the_newest_being_the_model() {
    let (test, claimed) = running().await;
    let (lease, id) = (&claimed.lease, &claimed.job.id);
    for step in [10, 20, 30] {
        checkpoint(&test, lease, step, CheckpointKind::Epoch).await;
    }
    checkpoint(&test, lease, 25, CheckpointKind::Resume).await;
    let model = succeed(&test, lease, 30).await;
    let shown = visible(&test, id).await;
    assert_eq!(shown.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [30, 20, 10]);
    assert_eq!(shown[0].1, model);
    let rows = models::list(&test.store.db, &test.project).await.unwrap();
    let kinds: Vec<_> = rows.iter().map(|row| row.kind).collect();
    assert_eq!(
        kinds,
        [ModelKind::Tuned, ModelKind::Checkpoint, ModelKind::Checkpoint, ModelKind::Base]
    );
    let unneeded = "select count(*) from checkpoints where kind = 'resume' and state <> 'garbage'";
    assert_eq!(test.value(unneeded).await, "0");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn an_epoch_that_is_also_the_end_is_shown_once() {
    let (test, claimed) = running().await;
    let lease = &claimed.lease;
    for step in [10, 20, 30, 40] {
        checkpoint(&test, lease, step, CheckpointKind::Epoch).await;
    }
    let model = succeed(&test, lease, 40).await;
    let shown = visible(&test, &claimed.job.id).await;
    assert_eq!(shown.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [40, 30, 20]);
    assert_eq!(shown[0].1, model);
}

#[tokio::test]
async fn finish_called_twice_gives_the_first_result() {
    let (test, claimed) = running().await;
    let (db, lease) = (&test.store.db, &claimed.lease);
    let checkpoint_id = checkpoint(&test, lease, 30, CheckpointKind::Final).await;
    let finish = FinishRun { checkpoint_id, trained_tokens: 3000 };
    let results = vec![(result_file(&test).await, new_file())];
    let model = queue::finish(db, lease, &finish, results).await.unwrap();
    let first = job(&test, &claimed.job.id).await;
    let second = result_file(&test).await;
    let dropped = second.id().clone();
    let results = vec![(second, new_file())];
    assert_eq!(queue::finish(db, lease, &finish, results).await.unwrap(), model);
    let again = job(&test, &claimed.job.id).await;
    assert_eq!((again.version, again.result_files.len()), (first.version, 1));
    assert!(files::get(db, &test.project, &first.result_files[0]).await.is_ok());
    assert!(files::get(db, &test.project, &dropped).await.is_err());
    // Another checkpoint is another call.
    let other = FinishRun { checkpoint_id: "ftckpt_none".into(), trained_tokens: 3000 };
    let lost = queue::finish(db, lease, &other, Vec::new()).await;
    assert!(matches!(lost, Err(Error::LeaseLost)), "{lost:?}");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn only_a_committed_final_checkpoint_finishes_a_job() {
    let (test, claimed) = running().await;
    let (db, lease) = (&test.store.db, &claimed.lease);
    let epoch = checkpoint(&test, lease, 10, CheckpointKind::Epoch).await;
    let begin = begin(30, CheckpointKind::Final);
    let writing = queue::begin_checkpoint(db, lease, &begin).await.unwrap();
    for checkpoint_id in [epoch, writing] {
        let finish = FinishRun { checkpoint_id, trained_tokens: 1 };
        let refused = queue::finish(db, lease, &finish, Vec::new()).await;
        assert!(matches!(refused, Err(Error::Conflict(Conflict::Checkpoint(_)))), "{refused:?}");
    }
    let unknown = FinishRun { checkpoint_id: "ftckpt_none".into(), trained_tokens: 1 };
    let refused = queue::finish(db, lease, &unknown, Vec::new()).await;
    assert!(matches!(refused, Err(Error::NotFound("checkpoint"))), "{refused:?}");
}

#[tokio::test]
async fn a_job_that_goes_back_resumes_without_counting_twice() {
    let (test, claimed) = running().await;
    checkpoint(&test, &claimed.lease, 20, CheckpointKind::Resume).await;
    // The newest checkpoint turns out to be unusable; the run begins again and passes step 10.
    test.sql("update checkpoints set state = 'corrupt'").await.unwrap();
    queue::release(&test.store.db, &claimed.lease).await.unwrap();
    let again = claim(&test).await;
    assert!(again.resume_from.is_none());
    checkpoint(&test, &again.lease, 10, CheckpointKind::Resume).await;
    assert_eq!(job(&test, &again.job.id).await.committed_step, 20);
    checkpoint(&test, &again.lease, 30, CheckpointKind::Resume).await;
    let tiles = "select string_agg(from_step || '-' || to_step, ',' order by from_step) from usage";
    assert_eq!(test.value(tiles).await, "0-20,20-30");
    assert_invariants(&test).await;
}

#[tokio::test]
async fn a_tuned_model_resolves_to_its_base_and_its_adapter() {
    let (test, claimed) = running().await;
    let (db, project) = (&test.store.db, &test.project);
    let model = succeed(&test, &claimed.lease, 30).await;
    let resolved = models::resolve(db, project, &model).await.unwrap();
    let adapter = resolved.adapter.expect("a tuned model has an adapter");
    assert_eq!(resolved.base.id.as_str(), BASE);
    let names: Vec<_> = adapter.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    for name in names {
        let (key, file) = models::adapter_file_for_workers(db, &model, name).await.unwrap();
        let stored = test.store.blobs.get_bytes(&key, 1000).await.unwrap();
        assert_eq!((hex(&stored), stored), (file.sha256, content(name, 30).into()));
    }
    let hidden = models::adapter_file_for_workers(db, &model, "optimizer.safetensors").await;
    assert!(hidden.is_err());
    let base = models::resolve(db, project, &BASE.into()).await.unwrap();
    assert!(base.adapter.is_none());
    assert!(models::resolve(db, project, &"ft:none".into()).await.is_err());
}

#[tokio::test]
async fn a_deleted_model_is_gone_with_its_checkpoint() {
    let (test, claimed) = running().await;
    let (db, project) = (&test.store.db, &test.project);
    let model = succeed(&test, &claimed.lease, 30).await;
    models::delete(&test.store, project, &model).await.unwrap();
    assert!(matches!(models::get(db, project, &model).await, Err(Error::NotFound("model"))));
    assert!(models::delete(&test.store, project, &model).await.is_err());
    assert!(visible(&test, &claimed.job.id).await.is_empty());
    test.sql("update garbage set delete_after = clock_timestamp()").await.unwrap();
    assert_eq!(garbage::collect(&test.store, 100).await.unwrap(), 4);
    let refused = models::delete(&test.store, project, &BASE.into()).await;
    assert!(matches!(refused, Err(Error::Conflict(Conflict::BaseModel(_)))), "{refused:?}");
    assert_eq!(job(&test, &claimed.job.id).await.fine_tuned_model, Some(model));
}

#[tokio::test]
async fn a_whole_tuned_model_has_all_files_but_those_of_resuming_and_goes_like_an_adapter() {
    let (test, claimed) = running().await;
    let (store, db, lease) = (&test.store, &test.store.db, &claimed.lease);
    let names = ["config.json", "model.safetensors", "state.json", "tokenizer.json"];
    let files = names.map(|name| {
        let bytes = name.len() as u64;
        ManifestFile { name: name.to_owned(), bytes, sha256: hex(name.as_bytes()) }
    });
    let mut begun = begin(30, CheckpointKind::Final);
    begun.files = files.to_vec();
    let checkpoint_id = queue::begin_checkpoint(db, lease, &begun).await.unwrap();
    for name in names {
        let content = body(name.as_bytes());
        queue::put_checkpoint_file(store, lease, &checkpoint_id, name, content).await.unwrap();
    }
    queue::commit_checkpoint(store, lease, &checkpoint_id).await.unwrap();
    let parts = ["config.json", "model.safetensors", "tokenizer.json"];
    let verified = queue::leased_model_files(db, lease, &checkpoint_id).await.unwrap();
    assert!(verified.iter().map(|(_, file)| file.name.as_str()).eq(parts));
    let finish = FinishRun { checkpoint_id, trained_tokens: 3000 };
    let model = queue::finish(db, lease, &finish, Vec::new()).await.unwrap();
    let resolved = models::resolve(db, &test.project, &model).await.unwrap();
    let whole = resolved.adapter.expect("the tuned model's files");
    assert!(whole.files.iter().map(|file| file.name.as_str()).eq(parts));
    models::delete(store, &test.project, &model).await.unwrap();
    test.sql("update garbage set delete_after = clock_timestamp()").await.unwrap();
    assert_eq!(garbage::collect(store, 100).await.unwrap(), names.len());
}

#[tokio::test]
async fn deleting_the_model_of_a_running_jobs_checkpoint_leaves_what_resumes_it() {
    let (test, claimed) = running().await;
    checkpoint(&test, &claimed.lease, 10, CheckpointKind::Epoch).await;
    let [(_, model)] = visible(&test, &claimed.job.id).await.try_into().unwrap();
    models::delete(&test.store, &test.project, &model).await.unwrap();
    assert!(visible(&test, &claimed.job.id).await.is_empty());
    queue::release(&test.store.db, &claimed.lease).await.unwrap();
    assert_eq!(claim(&test).await.resume_from.unwrap().step, 10);
}

async fn damage(test: &TestStore, job: &JobId, step: u64, edit: fn(&std::path::Path)) {
    let id = test.value(&format!("select id from checkpoints where step = {step}")).await;
    let key = store::BlobKey::CheckpointFile {
        project: test.project.id.clone(),
        job: job.clone(),
        checkpoint: id.as_str().into(),
        name: "adapter_model.safetensors".to_owned(),
    };
    edit(&test.blobs.path().join(key.path()));
}

#[tokio::test]
async fn damaged_checkpoints_are_passed_over_down_to_none() {
    let (test, claimed) = running().await;
    let (db, id) = (&test.store.db, &claimed.job.id);
    for step in [10, 20, 30] {
        checkpoint(&test, &claimed.lease, step, CheckpointKind::Epoch).await;
    }
    damage(&test, id, 30, |path| std::fs::remove_file(path).unwrap()).await;
    damage(&test, id, 20, |path| {
        let mut content = std::fs::read(path).unwrap();
        content[3] ^= 1;
        std::fs::write(path, content).unwrap();
    })
    .await;
    queue::release(db, &claimed.lease).await.unwrap();
    // A missing file is always seen, a changed one once a crash has raised a doubt.
    let again = queue::verify_resume(&test.store, claim(&test).await).await.unwrap();
    assert_eq!(again.resume_from.unwrap().step, 20);
    queue::release(db, &again.lease).await.unwrap();
    test.sql("update jobs set crashes = 1").await.unwrap();
    let again = queue::verify_resume(&test.store, claim(&test).await).await.unwrap();
    assert_eq!(again.resume_from.unwrap().step, 10);
    let shown = visible(&test, id).await;
    assert_eq!(shown.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [10]);
    queue::release(db, &again.lease).await.unwrap();
    damage(&test, id, 10, |path| std::fs::write(path, b"").unwrap()).await;
    let again = queue::verify_resume(&test.store, claim(&test).await).await.unwrap();
    assert!(again.resume_from.is_none());
    let heard = messages(&test, id).await;
    assert_eq!(heard.iter().filter(|text| text.contains("is damaged")).count(), 3, "{heard:?}");
    assert_eq!(job(&test, id).await.committed_step, 30, "progress never goes back");
    assert_invariants(&test).await;
}
