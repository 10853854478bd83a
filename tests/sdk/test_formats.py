"""Files that are not written in OpenAI's rows: uploaded as they are, trained, and what they taught is answered."""

import csv
import io
import json

import pytest

import jobs

SYSTEM = "Answer with one word."


def anthropic(question):
    return {
        "system": SYSTEM,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": "zebra"}]},
        ],
    }


def alpaca(question):
    return {"system": SYSTEM, "instruction": question, "input": "", "output": "zebra"}


ROWS = {"anthropic": anthropic, "alpaca": alpaca}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_other_formats_are_trained_as_they_are(client, name):
    questions = [f"What colour is {jobs.THINGS[i]} {i}?" for i in range(24)]
    file = jobs.upload(client, jobs.jsonl(ROWS[name](question) for question in questions))
    job = jobs.create(client, file.id, epochs=2, options={"learning_rate": 2e-3})
    job = jobs.succeed(client, job.id)
    assert job.model_extra["finetuned"]["dataset"]["training_file"]["format"] == name
    [note] = [e for e in jobs.events(client, job.id) if (e.data or {}).get("finding") == "format"]
    assert note.data["format"] == name and "read as conversations" in note.message
    assert "zebra" in jobs.ask(client, job.fine_tuned_model).choices[0].message.content


def test_faults_are_named_in_the_rows_own_fields(client):
    rows = [alpaca(f"Question {i}?") for i in range(12)]
    rows[4]["output"] = ["zebra"]
    rows[7]["outptu"] = "zebra"
    file = jobs.upload(client, jobs.jsonl(rows))
    answer = client.post(
        "/fine_tuning/jobs/validate", body={"model": jobs.BASE_MODEL, "training_file": file.id}, cast_to=object
    )
    found = [(p["line"], p["path"], p["code"]) for p in answer["problems"] if p["severity"] == "error"]
    assert found == [(5, "output", "data_type"), (8, "outptu", "unrecognized_key")]


def table(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


CONTAINERS = {
    "json": lambda rows: json.dumps(rows, indent=2).encode(),
    "csv": table,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_other_containers_are_trained_as_they_are(client, name):
    rows = [alpaca(f"What colour,\n is {jobs.THINGS[i]} {i}?") for i in range(24)]
    file = jobs.upload(client, CONTAINERS[name](rows), f"rows.{name}")
    job = jobs.succeed(client, jobs.create(client, file.id).id)
    figures = job.model_extra["finetuned"]["dataset"]["training_file"]
    assert (figures["container"], figures["format"], figures["n_examples"]) == (name, "alpaca", 24)
    same = jobs.upload(client, jobs.jsonl(rows))
    answer = client.post(
        "/fine_tuning/jobs/validate", body={"model": jobs.BASE_MODEL, "training_file": same.id}, cast_to=object
    )
    lines = answer["dataset"]["training_file"]
    assert {**lines, "container": name} == figures


def test_faults_in_a_csv_are_named_by_line_and_column(client):
    rows = [{"messages": json.dumps(jobs.row(f"Is it\n{i}?", "yes")["messages"])} for i in range(12)]
    rows[3]["messages"] = "[{'role': 'user'}]"
    rows[5]["messages"] = json.dumps([{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}])
    file = jobs.upload(client, table(rows), "rows.csv")
    answer = client.post(
        "/fine_tuning/jobs/validate", body={"model": jobs.BASE_MODEL, "training_file": file.id}, cast_to=object
    )
    found = [(p["line"], p["path"], p["code"]) for p in answer["problems"] if p["severity"] == "error"]
    # The line breaks stand inside of JSON, escaped.
    assert found == [(5, "messages", "invalid_json"), (7, "messages[0].role", "unrecognized_role")]
