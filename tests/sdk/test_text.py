"""Continued pre-training on plain text through the SDK."""

import jobs

SENTENCE = "The zebra of Quagga Lane sings on Tuesdays and whistles on Wednesdays."


def texts(count=11):
    return [{"text": f"{SENTENCE} {i}"} for i in range(count)]


def test_plain_texts_are_trained_and_long_ones_split(client):
    rows = texts()
    rows[3]["text"] = " ".join([SENTENCE] * 12)
    file = jobs.upload(client, jobs.jsonl(rows), "texts.jsonl")
    options = {"learning_rate": 3e-3, "max_seq_len": 64}
    job = jobs.succeed(client, jobs.create(client, file.id, epochs=2, batch=4, options=options).id)
    figures = job.model_extra["finetuned"]["dataset"]["training_file"]
    assert (figures["format"], figures["n_split"], figures["split_lines"]) == ("text", 1, [4])
    # Every token after a row's first is trained, also those of later pieces.
    assert figures["target_tokens"] == figures["tokens"] - len(rows)
    [note] = [e for e in jobs.events(client, job.id) if (e.data or {}).get("finding") == "split"]
    assert note.data["lines"] == [4] and "without loss" in note.message
    metrics = [e.data for e in jobs.events(client, job.id) if e.type == "metrics"]
    assert metrics[-1]["total_steps"] == 2 * -(-figures["n_sequences"] // 4)
    assert sum(m["target_tokens"] for m in metrics) == 2 * figures["target_tokens"]
    assert metrics[-1]["train_loss"] < 0.5 * metrics[0]["train_loss"]
    answer = jobs.ask(client, job.fine_tuned_model, "The zebra of Quagga Lane")
    assert answer.usage.completion_tokens >= 1


def test_mixed_rows_are_refused_by_line(client):
    rows = [*texts(), jobs.row("What colour is snow?", "white")]
    file = jobs.upload(client, jobs.jsonl(rows), "mixed.jsonl")
    job = jobs.wait(client, jobs.create(client, file.id).id, {"failed"})
    assert "Example 12 looks like chat messages" in job.error.message
    assert job.error.param == "training_file"
