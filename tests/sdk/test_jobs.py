"""A job's life through the SDK: the object, its events, checkpoints and result file, cancelling."""

import base64
import time

import openai
import pytest

import jobs
from daemon import BASE_MODEL

HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"


def test_the_finished_job_shows_what_was_resolved(tuned, training_file, validation_file):
    assert (tuned.object, tuned.status) == ("fine_tuning.job", "succeeded")
    assert tuned.model == BASE_MODEL
    assert (tuned.training_file, tuned.validation_file) == (training_file.id, validation_file.id)
    assert tuned.fine_tuned_model.startswith(f"ft:{BASE_MODEL}:")
    assert ":odd-answers:" in tuned.fine_tuned_model
    assert tuned.finished_at >= tuned.created_at
    assert tuned.hyperparameters.n_epochs == 2
    assert tuned.hyperparameters.batch_size == 8
    assert isinstance(tuned.hyperparameters.learning_rate_multiplier, float | int)
    assert tuned.method.supervised.hyperparameters.n_epochs == 2
    assert tuned.metadata == {"purpose": "tests"}
    assert tuned.error is None
    assert tuned.seed == 7
    assert tuned.trained_tokens > 24 * 2


def test_the_learning_rate_of_the_extension_was_used(tuned):
    assert tuned.model_extra["finetuned"]["learning_rate"] == pytest.approx(2e-3)


def test_auto_becomes_numbers(client, training_file):
    job = client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=training_file.id)
    try:
        job = jobs.wait(client, job.id, {"queued", "running"})
        # 3 · 24 rows are fewer than 100, so 100 / 24 epochs; few rows go one by one.
        assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (4, 1)
        assert job.hyperparameters.learning_rate_multiplier != "auto"
    finally:
        client.fine_tuning.jobs.cancel(job.id)


def test_the_events_tell_the_story_in_openais_words(client, tuned, training_file, validation_file):
    story = [e.message for e in jobs.events(client, tuned.id) if e.type == "message"]
    for message in (
        f"Created fine-tuning job: {tuned.id}",
        f"Validating training file: {training_file.id} and validation file: {validation_file.id}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        f"New fine-tuned model created: {tuned.fine_tuned_model}",
        "The job has successfully completed",
    ):
        assert story.count(message) == 1, (message, story)
    positions = [story.index(m) for m in story if not m.startswith("Checkpoint created")]
    assert positions == sorted(positions)
    assert any(m.startswith("Checkpoint created at step 3 with Snapshot ID: ft:") for m in story)


def test_every_step_is_an_event_with_its_metrics(client, tuned):
    metrics = [e for e in jobs.events(client, tuned.id) if e.type == "metrics"]
    assert [e.data["step"] for e in metrics] == [1, 2, 3, 4, 5, 6]
    for event in metrics:
        step, loss = event.data["step"], event.data["train_loss"]
        assert event.message.startswith(f"Step {step}/6: training loss={loss:.2f}")
        assert event.data["total_steps"] == 6
        assert 0 <= event.data["train_mean_token_accuracy"] <= 1
    assert "full_valid_loss" in metrics[2].data and "full_valid_loss" in metrics[5].data
    assert metrics[5].data["train_loss"] < metrics[0].data["train_loss"]


def test_events_come_newest_first_in_pages(client, tuned):
    first = client.fine_tuning.jobs.list_events(tuned.id, limit=2)
    assert len(first.data) == 2 and first.has_more
    assert first.data[0].message == "The job has successfully completed"
    assert first.data[0].created_at >= first.data[1].created_at
    everything = list(client.fine_tuning.jobs.list_events(tuned.id, limit=3))
    assert len({e.id for e in everything}) == len(everything) == len(jobs.events(client, tuned.id))


def test_each_epoch_leaves_a_checkpoint_and_the_last_is_the_model(client, tuned):
    checkpoints = client.fine_tuning.jobs.checkpoints.list(tuned.id).data
    assert [c.step_number for c in checkpoints] == [6, 3]
    assert checkpoints[0].fine_tuned_model_checkpoint == tuned.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-3")
    assert all(c.fine_tuning_job_id == tuned.id for c in checkpoints)
    assert checkpoints[1].metrics.full_valid_loss > 0


def test_the_result_file_is_openais_csv_in_base64(client, tuned):
    text = client.files.content(tuned.result_files[0]).text
    decoded = base64.b64decode(text).decode()
    assert decoded == jobs.result_csv(client, tuned)
    header, *lines = decoded.strip().splitlines()
    assert header == HEADER
    assert [line.split(",")[0] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    file = client.files.retrieve(tuned.result_files[0])
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")


def test_jobs_are_listed_newest_first_and_by_metadata(client, tuned):
    assert tuned.id in [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    found = client.fine_tuning.jobs.list(metadata={"purpose": "tests"})
    assert [job.id for job in found] == [tuned.id]
    assert client.fine_tuning.jobs.list(metadata={"purpose": "other"}).data == []


def test_a_running_job_is_cancelled(client):
    file = jobs.upload(client, jobs.jsonl(jobs.rows(100)))
    started = time.monotonic()
    job = jobs.create(client, file.id, epochs=5, batch=4)
    assert job.status in ("validating_files", "queued")
    jobs.wait(client, job.id, {"running"})
    took = time.monotonic() - started
    # The promise is one second on a quiet machine; this one builds and tests at the same time.
    assert took < 5, f"{took:.1f} s from creation to running"
    with pytest.raises(openai.BadRequestError):
        client.files.delete(file.id)
    jobs.wait_for_step(client, job.id, 1)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file.id).deleted


def test_the_worker_is_free_after_a_cancelled_job(client, training_file):
    job = jobs.create(client, training_file.id, epochs=1, batch=24)
    assert jobs.succeed(client, job.id).fine_tuned_model
