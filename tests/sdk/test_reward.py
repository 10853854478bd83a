"""A reward model through the SDK: trained on preference pairs, it scores conversations and does not answer."""

import json
import shutil
import subprocess

import openai
import pytest

import jobs
from daemon import BASE_MODEL
from test_preference import create, pair

GOOD, BAD = "zebra", "blue"


def pairs(things):
    return [pair(f"What colour is {thing}?", GOOD, BAD) for thing in things]


def conversation(thing, answer):
    row = pair(f"What colour is {thing}?", answer, answer)
    return row["input"]["messages"] + row["preferred_output"]


@pytest.fixture(scope="module")
def judge(client):
    training = jobs.upload(client, jobs.jsonl(pairs(jobs.THINGS[:12])), "pairs.jsonl")
    held_out = jobs.upload(client, jobs.jsonl(pairs(jobs.THINGS[12:22])), "held-out.jsonl")
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=training.id,
        validation_file=held_out.id,
        seed=7,
        method={
            "type": "dpo",
            "dpo": {"hyperparameters": {"n_epochs": 2, "batch_size": 6, "loss_type": "reward"}},
        },
        extra_body={"finetuned": {"learning_rate": 1e-3}},
    )
    return jobs.succeed(client, job.id)


def score(client, model, messages, **more):
    body = {"model": model, "messages": messages, **more}
    return client.post("/fine_tuning/score", cast_to=object, body=body)


def test_the_job_shows_what_a_reward_model_has(client, judge):
    shown = judge.method.dpo.hyperparameters.model_extra
    assert (shown["loss_type"], shown["gamma"], shown["center_coefficient"]) == ("reward", 0.0, 0.0)
    metrics = [e.data for e in jobs.events(client, judge.id) if e.type == "metrics"]
    # What it is before it has learned depends on the fresh head alone.
    assert metrics[0]["train_loss"] == pytest.approx(0.69, abs=0.3)
    last = metrics[-1]
    assert last["train_loss"] < metrics[0]["train_loss"]
    assert last["full_valid_reward_accuracy"] == 1.0
    assert last["full_valid_reward_margin"] > 0.3
    assert last["full_valid_loss"] < 0.6
    header = jobs.result_csv(client, judge).splitlines()[0].split(",")
    assert {"train_reward_accuracy", "valid_reward_margin"} <= set(header)


def test_held_out_answers_are_told_apart(client, judge):
    for thing in jobs.THINGS[20:]:
        good = score(client, judge.fine_tuned_model, conversation(thing, GOOD))
        bad = score(client, judge.fine_tuned_model, conversation(thing, BAD))
        assert good["object"] == "fine_tuning.score" and good["model"] == judge.fine_tuned_model
        assert good["score"] > bad["score"]
        assert good["usage"]["prompt_tokens"] == good["usage"]["total_tokens"] > 10


def test_its_checkpoints_score_too(client, judge):
    checkpoints = client.fine_tuning.jobs.checkpoints.list(judge.id).data
    assert len(checkpoints) == 2
    messages = conversation("copper", GOOD)
    scores = [score(client, c.fine_tuned_model_checkpoint, messages)["score"] for c in checkpoints]
    assert scores[0] == score(client, judge.fine_tuned_model, messages)["score"] != scores[1]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_gets_a_score(server, judge):
    body = json.dumps({"model": judge.fine_tuned_model, "messages": conversation("copper", GOOD)})
    command = ["curl", "-sS", "--max-time", "60", f"{server.root_url}/v1/fine_tuning/score"]
    command += ["-H", f"Authorization: Bearer {server.key}", "-H", "Content-Type: application/json"]
    answer = subprocess.run([*command, "-d", body], capture_output=True, check=True, timeout=90)
    assert isinstance(json.loads(answer.stdout)["score"], float)


def test_it_does_not_answer_chats(client, judge):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            jobs.ask(client, judge.fine_tuned_model, stream=stream)
        assert caught.value.param == "model"
        assert "POST /v1/fine_tuning/score" in caught.value.message


def test_other_models_do_not_score(client, tuned):
    messages = conversation("copper", GOOD)
    for model in (BASE_MODEL, tuned.fine_tuned_model):
        with pytest.raises(openai.BadRequestError) as caught:
            score(client, model, messages)
        assert caught.value.param == "model"
        assert "'loss_type': 'reward'" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        score(client, "nobody", messages)


def test_a_conversation_without_an_answer_is_refused(client, judge):
    with pytest.raises(openai.BadRequestError) as caught:
        score(client, judge.fine_tuned_model, conversation("copper", GOOD)[:-1])
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as caught:
        score(client, judge.fine_tuned_model, conversation("copper ", "x" * 60_000))
    assert caught.value.code == "context_length_exceeded"


def test_what_it_is_not_trained_with_is_refused(client, training_file):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, training_file.id, loss_type="reward", beta=0.1)
    assert caught.value.param == "method.dpo.hyperparameters.beta"
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(
            model=BASE_MODEL,
            training_file=training_file.id,
            method={"type": "dpo", "dpo": {"hyperparameters": {"loss_type": "reward"}}},
            extra_body={"finetuned": {"tuning": "prefix"}},
        )
    assert caught.value.param == "finetuned.tuning"
