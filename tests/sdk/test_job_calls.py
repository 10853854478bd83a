"""Calls on jobs beyond their life: validation, streams of events, deletion, wrong states."""

import base64
import csv
import io
import json
import math

import openai
import pytest

import jobs
from daemon import BASE_MODEL, eventually

try:
    import httpx2 as httpx
except ImportError:
    import httpx

VALIDATE = "/fine_tuning/jobs/validate"


def validate(client, **body):
    return client.post(VALIDATE, body={"model": BASE_MODEL, **body}, cast_to=object)


def test_a_validation_announces_the_job_and_creates_none(client, training_file, tuned):
    before = client.fine_tuning.jobs.list(limit=1).data[0].id
    answer = validate(client, training_file=training_file.id, hyperparameters={"n_epochs": 2})
    assert answer["valid"] and [p["code"] for p in answer["problems"]] == ["few_examples"]
    assert answer["hyperparameters"]["n_epochs"] == 2
    assert answer["reasons"]["n_epochs"] == "the request says so"
    assert "24 examples" in answer["reasons"]["batch_size"]
    assert answer["steps"] == 48 and answer["trained_tokens"] > 0
    assert answer["memory"]["required_bytes"] > 100_000_000
    here = [price for price in answer["cost"]["hosted"] if price["provider"] == "OpenAI"]
    assert here[0]["amount"] == pytest.approx(answer["trained_tokens"] / 1e6 * here[0]["per_million_tokens"])
    # Nobody has told the server what an hour costs.
    assert answer["cost"]["here"] is None
    assert answer["advice"]["method"]["tuning"] == "lora" and answer["advice"]["method"]["is_chosen"]
    needs = {(way["tuning"], way["quantization"]): way["required_bytes"] for way in answer["advice"]["alternatives"]}
    assert needs["full", "none"] > needs["lora", "none"] > needs["lora", "nf4"]
    assert needs["lora", "none"] == answer["memory"]["required_bytes"]
    # A base model that has been trained here before has a measured speed.
    assert answer["estimated_seconds"] > 0
    assert client.fine_tuning.jobs.list(limit=1).data[0].id == before


def test_a_validation_names_every_fault_of_request_and_file(client):
    rows = [*jobs.rows(11), {**jobs.rows(1)[0], "weight": 1}]
    file = jobs.upload(client, jobs.jsonl(rows) + b"nonsense\n")
    answer = validate(client, training_file=file.id, suffix="s" * 65, seed=-1)
    assert not answer["valid"]
    found = {(p["code"], p["line"], p["path"]) for p in answer["problems"]}
    assert {
        ("string_above_max_length", None, "suffix"),
        ("integer_below_min_value", None, "seed"),
        ("unrecognized_key", 12, "weight"),
    } <= found
    assert ("invalid_json", 13) in {(code, line) for code, line, _ in found}
    assert all(p["remedy"] for p in answer["problems"])


def test_rows_that_something_is_said_about_are_downloaded(client):
    rows = jobs.rows(12)
    file = jobs.upload(client, jobs.jsonl(rows) + b"nonsense\n" + jobs.jsonl(rows[:1]))
    body = {"model": BASE_MODEL, "training_file": file.id}
    bad = client.post(f"{VALIDATE}/bad_lines", body=body, cast_to=str)
    assert [json.loads(line) for line in bad.splitlines()] == [
        {"line": 13, "problems": ["invalid_json"], "row": "nonsense"},
        {"line": 14, "problems": ["exact_duplicate"], "row": json.dumps(rows[0])},
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(f"{VALIDATE}/bad_lines?file=validation_file", body=body, cast_to=str)
    assert caught.value.param == "file"


def events_stream(client, job_id, **query):
    """The SDK's own stream type over the extension."""
    return client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=openai.types.fine_tuning.FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[openai.types.fine_tuning.FineTuningJobEvent],
        options={"params": {"stream": "true", **query}},
    )


def test_the_sdk_streams_the_events_of_a_job_that_has_ended(client, tuned):
    whole = [(event.id, event.message) for event in events_stream(client, tuned.id)]
    assert whole == [(event.id, event.message) for event in jobs.events(client, tuned.id)]
    rest = list(events_stream(client, tuned.id, after=whole[3][0]))
    assert [event.id for event in rest] == [id for id, _ in whole[4:]]


def test_the_sdk_follows_a_job_as_it_runs(client, training_file):
    job = jobs.create(client, training_file.id)
    steps, last = [], None
    for event in events_stream(client, job.id):
        last = event.message
        if event.type == "metrics":
            steps.append(event.data["step"])
    assert (steps, last) == ([1, 2, 3], "The job has successfully completed")
    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"


def test_a_stream_is_refused_as_a_list_is(client):
    with pytest.raises(openai.NotFoundError) as caught:
        events_stream(client, "ftjob-none")
    assert caught.value.code == "fine_tune_not_found"


def test_wrong_states_are_refused_once(server, training_file):
    """A client that retries would wait for half a second and more; a 400 is never retried."""
    class Counting(httpx.BaseTransport):
        calls = 0
        inner = httpx.HTTPTransport()

        def handle_request(self, request):
            type(self).calls += 1
            return self.inner.handle_request(request)

    with server.client(http_client=httpx.Client(transport=Counting()), max_retries=5) as client:
        job = jobs.create(client, training_file.id)
        call = client.fine_tuning.jobs
        cancelled = call.cancel(job.id)
        assert cancelled.status == "cancelled"
        for wrong in (call.cancel, call.pause, call.resume):
            before = Counting.calls
            with pytest.raises(openai.BadRequestError) as caught:
                wrong(job.id)
            assert Counting.calls == before + 1
            assert (caught.value.type, caught.value.code) == ("invalid_request_error", None)
            assert job.id in caught.value.message and "cancelled" in caught.value.message


def test_a_job_is_deleted_when_it_has_ended(client, training_file):
    job = jobs.create(client, training_file.id)
    path = f"/fine_tuning/jobs/{job.id}"
    with pytest.raises(openai.BadRequestError, match="Cancel it first"):
        client.delete(path, cast_to=object)
    changed = client.post(path, body={"metadata": {"kept": "no"}}, cast_to=object)
    assert changed["metadata"] == {"kept": "no"}
    client.fine_tuning.jobs.cancel(job.id)
    gone = client.delete(path, cast_to=object)
    assert gone == {"id": job.id, "object": "fine_tuning.job", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(job.id)


def test_a_waiting_job_says_for_what_and_until_when(client, training_file):
    """A paused job, and one behind others."""
    waiting = [jobs.create(client, training_file.id, epochs=9) for _ in range(3)]
    last = waiting[-1].id
    jobs.wait(client, last, {"queued"})

    def behind():
        job = client.fine_tuning.jobs.retrieve(last)
        ours = job.model_extra["finetuned"]
        return job if ours["queue_position"] == 1 else None

    # The first one is taken by the only worker, so one is left before the last.
    job = eventually(behind, 60, "one job before the last")
    assert job.model_extra["finetuned"]["wait_reason"]["code"] == "jobs_before_it"
    assert job.estimated_finish >= job.created_at
    listed = client.fine_tuning.jobs.list(limit=1).data[0]
    assert (listed.id, listed.model_extra["finetuned"]["queue_position"]) == (last, 1)
    paused = client.fine_tuning.jobs.pause(last)
    assert paused.status == "paused"
    paused = client.fine_tuning.jobs.retrieve(last)
    assert paused.model_extra["finetuned"]["wait_reason"]["code"] == "paused"
    assert paused.estimated_finish is None
    for job in waiting:
        client.fine_tuning.jobs.cancel(job.id)


def test_wandb_is_accepted_shown_and_can_be_synced(client, training_file):
    integration = {"type": "wandb", "wandb": {"project": "colours", "tags": ["odd"]}}
    job = jobs.create(client, training_file.id, integrations=[integration])
    assert job.integrations[0].wandb.project == "colours"
    job = jobs.succeed(client, job.id)
    assert job.integrations[0].wandb.tags == ["odd"]
    [told] = [e for e in jobs.events(client, job.id) if "openai wandb sync" in e.message]
    assert told.level == "warn"
    # What WandbLogger.sync does with the result file and the training file.
    text = base64.b64decode(client.files.content(job.result_files[0]).read()).decode()
    table = list(csv.DictReader(io.StringIO(text)))
    assert list(table[0])[:3] == ["step", "train_loss", "train_accuracy"]
    for row in table:
        for cell in row.values():
            assert cell == "" or not math.isnan(float(cell))
    assert client.files.content(job.training_file).read().count(b"\n") == 24
    assert client.files.retrieve(job.result_files[0]).filename == "step_metrics.csv"


def test_memory_is_estimated_before_there_is_a_job(client):
    plain, frugal = (
        client.post("/fine_tuning/estimate", body={"model": BASE_MODEL, "finetuned": options}, cast_to=object)
        for options in ({}, {"quantization": "nf4", "gradient_checkpointing": "full"})
    )
    assert plain["object"] == "fine_tuning.estimate"
    assert 0 < frugal["required_bytes"] < plain["required_bytes"]
