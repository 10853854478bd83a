"""The cases of the demo at small size: real rows in each format, through upload, check, job, report and chat."""

import pytest

import jobs
from cases import CASES
from daemon import BASE_MODEL, eventually

TRAINING_ROWS, HELD_OUT_ROWS = 48, 6
# What the models score on so few rows after so few steps; at full size the demo shows the rest.
EPOCHS = {"sentiment": 1, "reviews": 1, "address": 2, "companies": 2, "opinions": 1}


def report_of(client, job):
    path = f"/fine_tuning/jobs/{job.id}/report"
    client.post(path, body={"rows": HELD_OUT_ROWS, "few_shot": 2}, cast_to=object)

    def probe():
        report = client.get(path, cast_to=object)
        assert report["status"] in ("pending", "in_progress", "completed"), report
        return report if report["status"] == "completed" else None

    return eventually(probe, 240, f"the report of {job.id}")


@pytest.fixture(scope="module", params=CASES)
def went(request, client):
    """A case, its check, its job and its report."""
    case = CASES[request.param]
    training = jobs.upload(client, jobs.jsonl(case.training()[:TRAINING_ROWS]), f"{case.name}.jsonl")
    held_out = jobs.upload(client, jobs.jsonl(case.test()[:HELD_OUT_ROWS]), f"{case.name}_test.jsonl")
    body = case.request(BASE_MODEL, training.id, held_out.id, n_epochs=EPOCHS[case.name])
    checked = client.post("/fine_tuning/jobs/validate", body=body, cast_to=object)
    ours = {"finetuned": body.pop("finetuned")}
    job = client.fine_tuning.jobs.create(**body, extra_body=ours)
    job = jobs.succeed(client, job.id, seconds=240)
    return case, checked, job, report_of(client, job)


def test_a_case_goes_from_its_rows_to_an_answer(client, went):
    case, checked, job, report = went
    assert checked["valid"], checked["problems"]
    assert checked["dataset"]["training_file"]["format"] == case.format
    losses = [e.data["train_loss"] for e in jobs.events(client, job.id) if e.type == "metrics"]
    assert len(losses) == checked["steps"]
    assert report["task"] == case.task
    assert len(report["rows"]) == HELD_OUT_ROWS
    question = [{key: message[key] for key in ("role", "content")} for message in report["rows"][0]["input"]]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=question, temperature=0, max_tokens=report["max_completion_tokens"]
    )
    assert answer.choices[0].message.content == report["rows"][0]["tuned"]["text"]


def test_a_case_teaches_its_task(went):
    case, _, _, report = went
    if case.method == "dpo":
        last = report["curves"][-1]
        assert last["full_valid_loss"] < 0.6931, "pairs that it has not seen are told apart better than at the start"
        return
    scores = {one["name"]: one["metrics"][report["primary_metric"]] for one in report["contenders"]}
    assert scores["tuned"] > scores["base"], report["verdict"]
