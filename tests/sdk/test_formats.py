"""Files that are not written in OpenAI's rows: uploaded as they are, trained, and what they taught is answered."""

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
    found = [(p["line"], p["path"], p["code"]) for p in answer["problems"]]
    assert found == [(5, "output", "data_type"), (8, "outptu", "unrecognized_key")]
