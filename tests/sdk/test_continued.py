"""Continued training: jobs that go on from a tuned model or a checkpoint, and models that know where they come from."""

import openai
import pytest

import jobs
from daemon import BASE_MODEL


@pytest.fixture(scope="module")
def otter_file(client):
    return jobs.upload(client, jobs.jsonl(jobs.rows(24, answer="otter")), "otters.jsonl")


def test_a_job_goes_on_from_a_tuned_model(client, tuned, otter_file):
    start = tuned.fine_tuned_model
    job = jobs.create(client, otter_file.id, model=start, epochs=2, options={"learning_rate": 2e-3})
    assert job.model == start
    job = jobs.succeed(client, job.id)
    model = client.models.retrieve(job.fine_tuned_model)
    assert (model.root, model.parent, model.owned_by) == (BASE_MODEL, start, "personal")
    assert model.fine_tuning_job_id == job.id and model.tuning == "lora"
    assert model.id.startswith(f"ft:{BASE_MODEL}:personal:") and model.id.count("ft:") == 1
    # It has learned the new answer; the start still gives its own.
    assert "otter" in jobs.ask(client, model.id).choices[0].message.content
    assert "zebra" in jobs.ask(client, start).choices[0].message.content


def test_a_job_goes_on_from_a_checkpoint_with_its_weights(client, tuned, training_file):
    checkpoints = client.fine_tuning.jobs.checkpoints.list(tuned.id).data
    start = checkpoints[-1].fine_tuned_model_checkpoint
    assert start.endswith(":ckpt-step-3")
    # A rate that moves nothing: what it knows, it knows from the checkpoint.
    job = jobs.create(client, training_file.id, model=start, batch=24, options={"learning_rate": 1e-12})
    job = jobs.succeed(client, job.id)
    first = jobs.events(client, tuned.id)
    fresh = next(e.data["train_loss"] for e in first if e.type == "metrics")
    [loss] = [e.data["train_loss"] for e in jobs.events(client, job.id) if e.type == "metrics"]
    assert loss < fresh / 2
    answers = [jobs.ask(client, m).choices[0].message.content for m in (start, job.fine_tuned_model)]
    assert answers[0] == answers[1]
    assert client.models.retrieve(start).step_number == 3


def test_preferences_go_on_from_a_supervised_model(client, tuned):
    pair = {
        "input": {"messages": [{"role": "user", "content": "What colour is snow?"}]},
        "preferred_output": [{"role": "assistant", "content": "zebra"}],
        "non_preferred_output": [{"role": "assistant", "content": "white"}],
    }
    file = jobs.upload(client, jobs.jsonl([pair] * 10), "pairs.jsonl")
    job = client.fine_tuning.jobs.create(
        model=tuned.fine_tuned_model,
        training_file=file.id,
        seed=7,
        method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 4, "beta": 1.0}}},
        extra_body={"finetuned": {"learning_rate": 3e-4}},
    )
    job = jobs.succeed(client, job.id)
    losses = [e.data["train_loss"] for e in jobs.events(client, job.id) if e.type == "metrics"]
    # The reference is the model at the start, so it starts as a coin.
    assert losses[:2] == pytest.approx([0.693147] * 2, abs=1e-4)
    # The first step only warms up.
    assert losses[2] < losses[1] - 1e-4
    assert client.models.retrieve(job.fine_tuned_model).parent == tuned.fine_tuned_model


@pytest.mark.parametrize("options, param", [({"lora": {"rank": 4}}, "lora.rank"), ({"tuning": "full"}, "tuning")])
def test_another_shape_is_refused_at_creation(client, tuned, training_file, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.create(client, training_file.id, model=tuned.fine_tuned_model, options=options)
    assert caught.value.param == f"finetuned.{param}"
