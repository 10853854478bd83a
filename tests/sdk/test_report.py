"""A job's report with a real model: the tuned one against what it was tuned from."""

import openai
import pytest

import jobs
from daemon import BASE_MODEL, eventually


def report_of(client, job):
    def probe():
        report = client.get(f"/fine_tuning/jobs/{job.id}/report", cast_to=object)
        assert report["status"] in ("pending", "in_progress", "completed"), report
        return report if report["status"] == "completed" else None

    return eventually(probe, 150, f"the report of {job.id}")


def test_a_tuned_model_beats_its_base_on_held_out_rows(client, tuned):
    report = report_of(client, tuned)
    of = {contender["name"]: contender for contender in report["contenders"]}
    assert set(of) == {"tuned", "base", "few_shot"}
    assert (of["tuned"]["model"], of["base"]["model"]) == (tuned.fine_tuned_model, BASE_MODEL)
    assert report["held_out"] == {
        "source": "validation_file", "file": tuned.validation_file, "rows": 10, "of": 10,
    }
    # The one label that there is: nobody says it who was not taught.
    assert (report["task"], report["primary_metric"]) == ("classification", "accuracy")
    assert of["base"]["metrics"]["accuracy"] == 0.0
    assert of["tuned"]["metrics"]["accuracy"] > 0.5
    for row in report["rows"]:
        assert row["expected"] == "zebra" and row["input"][-1]["role"] == "user"
        right = row["tuned"]["text"].strip() == "zebra"
        assert row["tuned"]["scores"]["accuracy"] == float(right)
    found = report["comparison"]["base"]
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["won"] + found["lost"] + found["tied"] == 10
    assert report["verdict"].startswith("On 10 held-out rows (accuracy): the tuned model ")
    assert report["loss"]["tuned"] > 0 and len(report["curves"]) == 6


def test_a_report_is_made_anew_as_asked(client, tuned):
    path = f"/fine_tuning/jobs/{tuned.id}/report"
    report_of(client, tuned)
    begun = client.post(path, body={"rows": 3, "few_shot": 0}, cast_to=object)
    assert begun["verdict"] is None and begun["progress"]["answers"] == 0
    report = report_of(client, tuned)
    assert len(report["rows"]) == 3 and report["comparison"]["few_shot"] is None
    with pytest.raises(openai.BadRequestError, match="rows"):
        client.post(path, body={"rows": 0}, cast_to=object)


def test_a_job_without_held_out_rows_says_why_there_is_no_report(client, training_file):
    job = jobs.create(client, training_file.id)
    path = f"/fine_tuning/jobs/{job.id}/report"
    report = client.get(path, cast_to=object)
    assert report["status"] == "not_available" and report["reason"]
    client.fine_tuning.jobs.cancel(job.id)
    assert "no model to compare" in client.get(path, cast_to=object)["reason"]
    with pytest.raises(openai.NotFoundError, match="fine tune"):
        client.get("/fine_tuning/jobs/ftjob-none/report", cast_to=object)
