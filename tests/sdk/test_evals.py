"""Evaluations through the SDK: every grader and data source, runs to their end, items, lists, cancel, delete."""

import json

import openai
import pytest

import jobs
from daemon import BASE_MODEL, eventually

ENDED = {"completed", "failed", "canceled"}

# As OpenAI's guide has it, down to the spelling of its spaces.
DEFINITION = {
    "name": "IT Ticket Categorization",
    "data_source_config": {
        "type": "custom",
        "item_schema": {
            "type": "object",
            "properties": {"ticket_text": {"type": "string"}, "correct_label": {"type": "string"}},
            "required": ["ticket_text", "correct_label"],
        },
        "include_sample_schema": True,
    },
    "testing_criteria": [
        {
            "type": "string_check",
            "name": "Match output to human label",
            "input": "{{ sample.output_text }}",
            "operation": "eq",
            "reference": "{{ item.correct_label }}",
        }
    ],
}
SIMILAR = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.correct_label}}",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.8,
}
PYTHON = {
    "type": "python",
    "name": "length",
    "source": "def grade(sample, item):\n    return 1.0 if len(sample['output_text']) < 20 else 0.0\n",
    "image_tag": "2025-05-08",
    "pass_threshold": 0.5,
}
LABEL = {
    "type": "label_model",
    "name": "sentiment",
    "model": BASE_MODEL,
    "input": [
        {"role": "developer", "content": "Classify the text as good or bad."},
        {"role": "user", "content": {"type": "input_text", "text": "Text: {{sample.output_text}}"}},
    ],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
    "sampling_params": {"temperature": 0, "max_completions_tokens": 16},
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": BASE_MODEL,
    "input": [{"role": "user", "content": "Rate from 1 to 7: {{sample.output_text}}"}],
    "range": [1, 7],
    "pass_threshold": 5.5,
    "sampling_params": {"temperature": 0, "max_completions_tokens": 16},
}


def row(text, label, answer=None):
    row = {"item": {"ticket_text": text, "correct_label": label}}
    if answer is not None:
        row["sample"] = {"output_text": answer}
    return row


def content(*rows):
    return {"type": "file_content", "content": list(rows)}


def run_of(client, evaluation, data_source, **more):
    return client.evals.runs.create(evaluation.id, data_source=data_source, **more)


def ended(client, run, seconds=120):
    def probe():
        now = client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
        return now if now.status in ENDED else None

    return eventually(probe, seconds, f"the end of {run.id}")


def counts(run):
    result = run.result_counts
    return (result.total, result.passed, result.failed, result.errored)


@pytest.fixture(scope="module")
def evaluation(client):
    made = client.evals.create(**DEFINITION, metadata={"purpose": "tests"})
    yield made
    client.evals.delete(made.id)


@pytest.fixture(scope="module")
def graded(client, evaluation):
    rows = content(
        row("monitor broken", "Hardware", "Hardware"),
        row("cannot log in", "Software", "Hardware"),
        row("help", "Other"),
    )
    run = run_of(client, evaluation, {"type": "jsonl", "source": rows}, name="by hand", metadata={"k": "v"})
    return ended(client, run)


def test_a_definition_comes_back_as_it_was_brought(client, evaluation):
    assert evaluation.id.startswith("eval_") and evaluation.object == "eval"
    assert (evaluation.name, evaluation.metadata) == (DEFINITION["name"], {"purpose": "tests"})
    schema = evaluation.data_source_config.schema_
    assert schema["properties"]["item"] == DEFINITION["data_source_config"]["item_schema"]
    [criterion] = evaluation.testing_criteria
    assert {**criterion.to_dict(), "id": None} == {**DEFINITION["testing_criteria"][0], "id": None}
    assert client.evals.retrieve(evaluation.id).to_dict() == evaluation.to_dict()


def test_every_grader_and_configuration_is_taken(client):
    criteria = [*DEFINITION["testing_criteria"], SIMILAR, PYTHON, LABEL, SCORE]
    for config in (
        DEFINITION["data_source_config"],
        {"type": "logs", "metadata": {"use_case": "chat"}},
        {"type": "stored_completions", "metadata": {"use_case": "chat"}},
    ):
        made = client.evals.create(name="all", data_source_config=config, testing_criteria=criteria)
        assert made.data_source_config.type == config["type"]
        assert [c.type for c in made.testing_criteria] == [c["type"] for c in criteria]
        assert made.testing_criteria[1].pass_threshold == 0.8
        deleted = client.evals.delete(made.id)
        assert (deleted.object, deleted.deleted, deleted.eval_id) == ("eval.deleted", True, made.id)


def test_kept_completions_are_judged_as_they_were_answered_and_asked_again(client):
    topic = {"topic": "eval-of-kept"}
    for thing in ("snow", "coal"):
        jobs.ask(client, BASE_MODEL, f"What colour is {thing}?", max_tokens=3, store=True, metadata=topic)
    kept = client.chat.completions.list(metadata=topic).data
    grader = {"type": "string_check", "name": "same", "operation": "eq",
              "input": "{{sample.output_text}}", "reference": kept[1].choices[0].message.content}
    evaluation = client.evals.create(
        name="kept", data_source_config={"type": "stored_completions", "metadata": topic}, testing_criteria=[grader]
    )
    source = {"type": "stored_completions", "metadata": topic, "limit": 1}
    as_answered = ended(client, run_of(client, evaluation, {"type": "completions", "source": source}))
    assert counts(as_answered) == (1, 1, 0, 0), "the newest was about coal"
    [item] = client.evals.runs.output_items.list(as_answered.id, eval_id=evaluation.id).data
    assert item.datasource_item["input"][-1]["content"] == "What colour is coal?"
    # The same question, model and sampling: the same answer.
    again = ended(client, run_of(client, evaluation, {
        "type": "completions", "source": source, "model": BASE_MODEL,
        "input_messages": {"type": "item_reference", "item_reference": "item.input"},
        "sampling_params": {"temperature": 0, "max_completions_tokens": 3},
    }))
    assert counts(again) == (1, 1, 0, 0)
    for completion in kept:
        client.chat.completions.delete(completion.id)
    client.evals.delete(evaluation.id)


def test_evaluations_are_listed_in_pages_and_changed(client):
    made = [client.evals.create(**{**DEFINITION, "name": f"listed {n}"}).id for n in range(3)]
    listed = [e.id for e in client.evals.list(limit=2)]
    assert [i for i in listed if i in made] == made
    newest = client.evals.list(limit=1, order="desc")
    assert newest.data[0].id == made[-1] and newest.has_more
    changed = client.evals.update(made[0], name="renamed", metadata={"a": "b"})
    assert (changed.name, changed.metadata) == ("renamed", {"a": "b"})
    assert client.evals.list(limit=1, order="desc", order_by="updated_at").data[0].id == made[0]
    for eval_id in made:
        client.evals.delete(eval_id)


def test_a_run_is_counted_per_item_and_per_grader(client, server, evaluation, graded):
    assert (graded.object, graded.status, graded.name) == ("eval.run", "completed", "by hand")
    assert counts(graded) == (3, 1, 1, 1)
    [criterion] = graded.per_testing_criteria_results
    assert criterion.testing_criteria == evaluation.testing_criteria[0].id
    assert (criterion.passed, criterion.failed) == (1, 1)
    assert (graded.error.code, graded.error.message) == ("", "")
    assert graded.report_url.startswith(server.root_url)
    assert (graded.metadata, graded.data_source.type) == ({"k": "v"}, "jsonl")


def test_output_items_tell_what_each_grader_said(client, graded):
    items = list(client.evals.runs.output_items.list(graded.id, eval_id=graded.eval_id, limit=2))
    assert [item.status for item in items] == ["pass", "fail", "error"]
    assert [item.datasource_item_id for item in items] == [0, 1, 2]
    first = items[0]
    assert (first.object, first.run_id, first.eval_id) == ("eval.run.output_item", graded.id, graded.eval_id)
    assert first.datasource_item["correct_label"] == "Hardware"
    assert (first.results[0].passed, first.results[0].score) == (True, 1.0)
    assert first.sample.output[0].content == "Hardware"
    assert "output_text" in items[2].sample.error.message
    failed = client.evals.runs.output_items.list(graded.id, eval_id=graded.eval_id, status="fail")
    assert failed.data == [items[1]]
    one = client.evals.runs.output_items.retrieve(first.id, eval_id=graded.eval_id, run_id=graded.id)
    assert one.to_dict() == first.to_dict()


def test_strict_clients_can_read_everything(server, client, evaluation, graded):
    strict = openai.OpenAI(
        base_url=server.base_url, api_key=server.key, _strict_response_validation=True
    )
    assert strict.evals.retrieve(evaluation.id).id == evaluation.id
    assert strict.evals.runs.retrieve(graded.id, eval_id=evaluation.id).id == graded.id
    assert strict.evals.runs.list(evaluation.id).data
    assert len(strict.evals.runs.output_items.list(graded.id, eval_id=evaluation.id).data) == 3


def test_base_and_tuned_are_compared_on_the_same_file(client, tuned):
    """The worked example of docs/EVALS.md."""
    evaluation = client.evals.create(
        name="one odd answer",
        data_source_config={
            "type": "custom",
            "item_schema": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
                "required": ["question", "answer"],
            },
            "include_sample_schema": True,
        },
        testing_criteria=[
            {
                "type": "string_check",
                "name": "says it",
                "input": "{{ sample.output_text }}",
                "reference": "{{ item.answer }}",
                "operation": "ilike",
            }
        ],
    )
    rows = [
        {"item": {"question": f"What colour is {jobs.THINGS[n]} {n}?", "answer": "zebra"}}
        for n in range(4)
    ]
    data = "".join(json.dumps(row) + "\n" for row in [*rows, {"item": {"question": "no answer"}}])
    file = jobs.upload(client, data.encode(), "questions.jsonl", purpose="evals")
    assert file.purpose == "user_data"
    runs = {}
    for model in (BASE_MODEL, tuned.fine_tuned_model):
        runs[model] = run_of(
            client,
            evaluation,
            {
                "type": "completions",
                "model": model,
                "source": {"type": "file_id", "id": file.id},
                "input_messages": {
                    "type": "template",
                    "template": [
                        {"role": "system", "content": "Answer with one word."},
                        {"role": "user", "content": "{{ item.question }}"},
                    ],
                },
                "sampling_params": {"temperature": 0, "max_completion_tokens": 8},
            },
        )
    base, ours = (ended(client, run) for run in runs.values())
    assert (base.status, ours.status) == ("completed", "completed")
    assert counts(base) == (5, 0, 4, 1)
    assert counts(ours) == (5, 4, 0, 1)
    [usage] = ours.per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == (tuned.fine_tuned_model, 4)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 40
    assert ours.model == ours.name == tuned.fine_tuned_model
    [wrong] = client.evals.runs.output_items.list(ours.id, eval_id=evaluation.id, extra_query={"status": "error"})
    assert "lacks 'answer'" in wrong.sample.error.message
    listed = client.evals.runs.list(evaluation.id, status="completed", order="desc")
    assert [run.id for run in listed] == [ours.id, base.id]
    client.evals.delete(evaluation.id)
    with pytest.raises(openai.NotFoundError):
        client.evals.runs.retrieve(ours.id, eval_id=evaluation.id)


def test_judges_and_responses_of_our_own_models(client):
    evaluation = client.evals.create(
        **{**DEFINITION, "testing_criteria": [LABEL, SCORE, SIMILAR]}
    )
    run = run_of(
        client,
        evaluation,
        {
            "type": "responses",
            "model": BASE_MODEL,
            "source": content(row("Say hello.", "hello")),
            "input_messages": {"type": "item_reference", "item_reference": "item.ticket_text"},
            "sampling_params": {"temperature": 0, "max_completion_tokens": 4, "seed": 1},
        },
    )
    done = ended(client, run)
    assert done.status == "completed" and done.result_counts.total == 1
    # The one that was asked, and two judges.
    assert done.per_model_usage[0].invocation_count == 3
    [item] = client.evals.runs.output_items.list(run.id, eval_id=evaluation.id)
    assert [result.type for result in item.results] == [
        "label-model-grader", "score-model-grader", "text-similarity-grader"
    ]
    assert item.sample.input[0].content == "Say hello."
    client.evals.delete(evaluation.id)


def test_a_run_is_canceled_and_deleted(client, evaluation):
    rows = content(*(row("Write a long story.", "x") for _ in range(40)))
    source = {
        "type": "completions",
        "model": BASE_MODEL,
        "source": rows,
        "input_messages": {"type": "item_reference", "item_reference": "item.ticket_text"},
        "sampling_params": {"max_completion_tokens": 200},
    }
    run = run_of(client, evaluation, source)
    eventually(
        lambda: client.evals.runs.retrieve(run.id, eval_id=evaluation.id).status == "in_progress",
        30,
        "the run is in progress",
    )
    canceled = client.evals.runs.cancel(run.id, eval_id=evaluation.id)
    assert canceled.status == "canceled"
    # The path of OpenAI's description; once more is harmless.
    again = client.post(f"/evals/{evaluation.id}/runs/{run.id}", cast_to=object)
    assert again["status"] == "canceled"
    total = client.evals.runs.retrieve(run.id, eval_id=evaluation.id).result_counts.total
    assert total < 40
    gone = client.evals.runs.delete(run.id, eval_id=evaluation.id)
    assert (gone.object, gone.deleted, gone.run_id) == ("eval.run.deleted", True, run.id)
    assert run.id not in [r.id for r in client.evals.runs.list(evaluation.id)]


def test_errors_have_openais_shape(client, evaluation):
    for call in (
        lambda: client.evals.retrieve("eval_missing"),
        lambda: client.evals.delete("file-of-another-kind"),
        lambda: client.evals.runs.retrieve("evalrun_missing", eval_id=evaluation.id),
        lambda: client.evals.runs.cancel("evalrun_missing", eval_id=evaluation.id),
        lambda: client.evals.runs.output_items.list("evalrun_missing", eval_id=evaluation.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.type == "invalid_request_error"
    bad = {"type": "file_content", "content": [row("a", "b"), {"item": {"ticket_text": 5}}]}
    for change, param in (
        ({"data_source_config": {"type": "custom"}}, "data_source_config.item_schema"),
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [{**SIMILAR, "pass_threshold": None}]}, "testing_criteria[0].pass_threshold"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.evals.create(**{**DEFINITION, **change})
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError) as caught:
        run_of(client, evaluation, {"type": "jsonl", "source": bad})
    assert caught.value.param == "data_source.source.content[1].item"
    assert "correct_label" in caught.value.message and "expected string" in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        run_of(client, evaluation, {"type": "jsonl", "source": {"type": "file_id", "id": "file-x"}})
    assert caught.value.param == "data_source.source.id"
