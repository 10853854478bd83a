"""A row as the model sees it, asked for by plain HTTP."""

import json

import openai
import pytest

import jobs
from daemon import BASE_MODEL


def preview(client, **body):
    body.setdefault("model", BASE_MODEL)
    return client.post("/fine_tuning/preview", body=body, cast_to=object)


def trained(sequence):
    return "".join(token["text"] for token in sequence["tokens"] if token["trained"])


def test_a_row_is_shown_with_its_loss_mask(client, training_file):
    answer = preview(client, training_file=training_file.id, row=3)
    assert (answer["object"], answer["row"], answer["format"]) == ("fine_tuning.preview", 3, "chat")
    assert (answer["container"], answer["problems"], answer["total_sequences"]) == ("jsonl", [], 1)
    [sequence] = answer["sequences"]
    text = "".join(token["text"] for token in sequence["tokens"])
    assert text.startswith("<|im_start|>system\nAnswer with one word.<|im_end|>\n<|im_start|>user\n")
    assert f"What colour is {jobs.THINGS[2]} 2?" in text
    # What the answer is, and that it ends; not who gives it.
    assert trained(sequence) == "zebra<|im_end|>"
    assert sequence["n_tokens"] == len(sequence["tokens"]) == sequence["n_tokens_before_truncation"]
    assert sequence["n_trained"] == sum(token["trained"] for token in sequence["tokens"])
    assert not sequence["truncated"]


def test_the_counts_are_those_that_a_job_trains(client, training_file):
    answer = client.post(
        "/fine_tuning/jobs/validate",
        body={"model": BASE_MODEL, "training_file": training_file.id},
        cast_to=object,
    )
    figures = answer["dataset"]["training_file"]
    rows = [preview(client, training_file=training_file.id, row=row + 1)["sequences"][0] for row in range(24)]
    assert figures["target_tokens"] == sum(row["n_trained"] for row in rows)
    assert figures["tokens"] == sum(row["n_tokens"] for row in rows)


def test_what_is_cut_is_told(client, training_file):
    answer = preview(client, training_file=training_file.id, finetuned={"max_seq_len": 16})
    [sequence] = answer["sequences"]
    assert (answer["row"], answer["max_seq_len"], sequence["n_tokens"]) == (1, 16, 16)
    assert sequence["truncated"] and sequence["n_tokens_before_truncation"] > 16
    assert (sequence["n_trained"], trained(sequence)) == (0, "")


def test_both_answers_of_a_pair_are_shown(client):
    pairs = [{"prompt": f"Question {i}?", "chosen": "good", "rejected": "bad"} for i in range(10)]
    file = jobs.upload(client, jobs.jsonl(pairs))
    answer = preview(client, training_file=file.id, row=2, method={"type": "dpo"})
    assert (answer["method"], answer["format"]) == ("dpo", "chosen_rejected")
    shown = [(sequence["answer"], trained(sequence)) for sequence in answer["sequences"]]
    assert shown == [("preferred", "good<|im_end|>"), ("non_preferred", "bad<|im_end|>")]
    # The same row is none of a supervised job.
    [problem] = preview(client, training_file=file.id)["problems"]
    assert problem["code"] == "unexpected_format" and "dpo" in problem["message"]


def test_rows_with_faults_and_rows_that_are_not_there(client):
    rows = jobs.jsonl(jobs.rows(2)) + b'{"messages": []}\n\n' + jobs.jsonl(jobs.rows(1))
    file = jobs.upload(client, rows)
    answer = preview(client, training_file=file.id, row=3)
    assert answer["sequences"] == []
    assert [(p["line"], p["path"]) for p in answer["problems"]] == [(3, "messages")]
    for row, words in ((4, "the next one is 5"), (6, "ends before it")):
        with pytest.raises(openai.BadRequestError) as caught:
            preview(client, training_file=file.id, row=row)
        assert caught.value.param == "row" and words in caught.value.message


def test_the_command_line_shows_the_same_row(server, client, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n"What,\nwhere?",zebra 🦓\n')
    shown = server.command("data", "preview", path, "--model", BASE_MODEL, "--row", "2", "--json")
    [sequence] = json.loads(shown)["sequences"]
    file = jobs.upload(client, path.read_bytes(), "rows.csv")
    [same] = preview(client, training_file=file.id)["sequences"]
    assert sequence["tokens"] == same["tokens"]
    text = server.command("data", "preview", path, "--model", BASE_MODEL)
    assert "What,\nwhere?<|im_end|>" in text and "⟦zebra 🦓<|im_end|>⟧" in text


def test_converted_rows_are_the_same_to_the_model(server, client, tmp_path):
    path, converted = tmp_path / "rows.json", tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Question {i}?", "input": "x", "output": "zebra", "id": i} for i in range(3)]
    path.write_text(json.dumps(rows, indent=1))
    server.command("data", "convert", path, "-o", converted)
    before, after = (jobs.upload(client, p.read_bytes(), p.name) for p in (path, converted))
    for row in (1, 2, 3):
        shown = [preview(client, training_file=file.id, row=row) for file in (before, after)]
        assert shown[0]["sequences"] == shown[1]["sequences"]
    assert [answer["format"] for answer in shown] == ["alpaca", "chat"]
