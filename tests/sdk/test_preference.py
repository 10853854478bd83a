"""A preference job through the SDK: OpenAI's own request, rows and words, and a model that prefers."""

import json

import openai
import pytest

import jobs
from daemon import BASE_MODEL


def pair(question, good, bad):
    return {
        "input": {
            "messages": [
                {"role": "system", "content": "Answer with one word."},
                {"role": "user", "content": question},
            ],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": good}],
        "non_preferred_output": [{"role": "assistant", "content": bad}],
    }


def pairs(count=16):
    return [pair(f"What colour is {t} {i}?", "zebra", "blue") for i, t in enumerate(jobs.THINGS[:count])]


def create(client, training_file, *, rate=3e-4, **hyperparameters):
    return client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=training_file,
        seed=7,
        method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
        extra_body={"finetuned": {"learning_rate": rate}},
    )


@pytest.fixture(scope="module")
def pairs_file(client):
    return jobs.upload(client, jobs.jsonl(pairs()), "pairs.jsonl")


@pytest.fixture(scope="module")
def preferring(client, pairs_file):
    # A large beta, so that a few steps decide.
    job = create(client, pairs_file.id, n_epochs=3, batch_size=8, beta=1.0)
    return jobs.succeed(client, job.id)


def test_the_job_shows_the_method_with_its_numbers(preferring):
    assert preferring.method.type == "dpo"
    hyperparameters = preferring.method.dpo.hyperparameters
    assert (hyperparameters.beta, hyperparameters.n_epochs, hyperparameters.batch_size) == (1.0, 3, 8)
    assert isinstance(hyperparameters.learning_rate_multiplier, float | int)
    assert hyperparameters.model_extra["loss_type"] == "sigmoid"


def test_auto_becomes_numbers(client, pairs_file):
    job = create(client, pairs_file.id, beta="auto", n_epochs="auto")
    try:
        job = jobs.wait(client, job.id, {"queued", "running"})
        assert job.method.dpo.hyperparameters.beta == 0.1
        assert job.method.dpo.hyperparameters.n_epochs == 6
    finally:
        client.fine_tuning.jobs.cancel(job.id)


def test_the_adapter_learns_to_prefer(client, preferring):
    metrics = [e for e in jobs.events(client, preferring.id) if e.type == "metrics"]
    assert [e.data["step"] for e in metrics] == [1, 2, 3, 4, 5, 6]
    first, last = metrics[0].data, metrics[-1].data
    assert first["train_loss"] == pytest.approx(0.6931, abs=1e-2)
    assert last["train_loss"] < 0.6
    assert last["train_reward_accuracy"] == 1.0
    assert last["train_reward_margin"] > 0.1
    margin = last["train_chosen_reward"] - last["train_rejected_reward"]
    assert last["train_reward_margin"] == pytest.approx(margin)
    assert metrics[-1].message.endswith("training reward accuracy=1.00")


def test_the_result_file_has_columns_of_rewards(client, preferring):
    header, *lines = jobs.result_csv(client, preferring).strip().splitlines()
    assert header.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert "train_reward_accuracy" in header.split(",")
    assert {len(line.split(",")) for line in lines} == {len(header.split(","))}


def test_the_tuned_model_answers(client, preferring):
    answer = jobs.ask(client, preferring.fine_tuned_model)
    assert answer.model == preferring.fine_tuned_model
    assert answer.usage.completion_tokens > 0
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_another_loss_makes_it_say_what_is_preferred(client, pairs_file):
    job = create(client, pairs_file.id, rate=3e-3, n_epochs=3, batch_size=4, loss_type="orpo")
    job = jobs.succeed(client, job.id)
    assert job.method.dpo.hyperparameters.model_extra["loss_type"] == "orpo"
    answer = jobs.ask(client, job.fine_tuned_model, "What colour is sky 0?")
    assert "zebra" in answer.choices[0].message.content.lower()


def test_labelled_answers_are_enough_for_kto(client):
    rows = []
    for i, thing in enumerate(jobs.THINGS[:8]):
        question = [{"role": "user", "content": f"What colour is {thing} {i}?"}]
        for text, label in (("zebra", True), ("blue", False)):
            answer = [{"role": "assistant", "content": text}]
            rows.append({"input": {"messages": question}, "completion": answer, "label": label})
    file = jobs.upload(client, jobs.jsonl(rows), "labelled.jsonl")
    job = create(client, file.id, n_epochs=2, batch_size=8, beta=0.5, loss_type="kto")
    job = jobs.succeed(client, job.id)
    assert job.method.dpo.hyperparameters.model_extra["desirable_weight"] == 1.0
    metrics = [e.data for e in jobs.events(client, job.id) if e.type == "metrics"]
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert metrics[-1]["train_reward_margin"] > 0


def test_chat_rows_are_refused_for_it(client, training_file):
    job = create(client, training_file.id)
    job = jobs.wait(client, job.id, {"failed"})
    assert "missing key 'input'" in job.error.message
    assert job.error.param == "training_file"


def test_preference_rows_are_refused_for_the_supervised_method(client, pairs_file):
    job = jobs.create(client, pairs_file.id)
    job = jobs.wait(client, job.id, {"failed"})
    assert "method 'dpo'" in job.error.message


def test_all_faults_come_with_line_and_path(client):
    rows = [json.dumps(row) for row in pairs(12)]
    rows[1] = rows[1].replace('"input"', '"inputs"')
    rows[5] = rows[5].replace('"role": "user"', '"role": "robot"')
    file = jobs.upload(client, "\n".join(rows).encode())
    job = jobs.wait(client, create(client, file.id).id, {"failed"})
    problems = jobs.events(client, job.id)[-1].data["problems"]
    places = {(p["line"], p["path"]) for p in problems}
    assert {(2, "input"), (2, "inputs"), (6, "input.messages[1].role")} <= places


@pytest.mark.parametrize(
    ("hyperparameters", "field"),
    [
        ({"beta": 0}, "beta"),
        ({"beta": 2.5}, "beta"),
        ({"loss_type": "best"}, "loss_type"),
        ({"loss_type": "ipo", "gamma": 1}, "gamma"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_wrong_hyperparameters_are_refused_by_path(client, pairs_file, hyperparameters, field):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, pairs_file.id, **hyperparameters)
    assert caught.value.param == f"method.dpo.hyperparameters.{field}"
