"""Why jobs fail, in OpenAI's codes and words: scripts search for them."""

import re

import openai
import pytest

import jobs

GOOD = jobs.rows(12)
PAIR = {
    "input": {"messages": [{"role": "user", "content": "What colour is snow?"}]},
    "preferred_output": [{"role": "assistant", "content": "zebra"}],
    "non_preferred_output": [{"role": "assistant", "content": "white"}],
}
DPO = {"type": "dpo"}
FILE = r"^The job failed due to an invalid training file\. Invalid file format\. "
FORMAT = r"^The job failed due to a file format error in the training file\. Invalid file format\. "


def with_row(row, line=5):
    """Good rows, one of them replaced."""
    return [*GOOD[: line - 1], row, *GOOD[line:]]


def message(**fields):
    return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", **fields}]}


# Rows, method, the job's error code, and its message from the start.
FAILURES = {
    "too few examples": (
        GOOD[:3], None, "invalid_n_examples",
        r"^Training file has 3 example\(s\), but must have at least 10 examples$"),
    "too few pairs": (
        [PAIR] * 9, DPO, "invalid_n_examples",
        r"^Training file has 9 example\(s\), but must have at least 10 examples$"),
    "a message without a role": (
        with_row({"messages": [{"role": "user", "content": "hi"}, {"content": "yo"}]}), None,
        "invalid_training_file",
        FILE + r"Example 5, message 2 Discriminator 'role' is missing in value"),
    "a row without messages": (
        with_row({"tools": []}), None, "invalid_training_file",
        FILE + r"Example 5 is missing key 'messages'\."),
    "an unknown role": (
        with_row({"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        None, "invalid_training_file",
        FILE + r"Example 5, message 1 has an unrecognized role \"robot\""),
    "no assistant": (
        with_row({"messages": [{"role": "user", "content": "x"}]}), None, "invalid_training_file",
        FILE + r"Example 5 has no assistant message"),
    "no content": (
        with_row({"messages": [{"role": "user"}, {"role": "assistant", "content": "y"}]}), None,
        "invalid_training_file", FILE + r"Example 5, message 1 has role 'user' but no content"),
    "a weight of 2": (
        with_row(message(weight=2)), None, "invalid_training_file", FILE + r"Example 5, message 2 .*weight"),
    "labelled answers for supervised": (
        [{"prompt": "a", "completion": "b", "label": True}] * 12, None, "invalid_training_file",
        FILE + r"Unexpected file format, expected .*chat messages"),
    "pairs for supervised": (
        [PAIR] * 12, None, "invalid_training_file",
        FILE + r"Unexpected file format, .*'dpo'.* Example 1 is missing key 'messages'\."),
    "chats for dpo": (
        GOOD, DPO, "invalid_training_file",
        FILE + r"Unexpected file format, .*'supervised'.* Example 1 is missing key 'input'\."),
    "a pair without an answer": (
        [*([PAIR] * 11), {k: v for k, v in PAIR.items() if k != "preferred_output"}], DPO,
        "invalid_training_file", FILE + r"Example 12 is missing key 'preferred_output'\."),
    "an extra key": (
        with_row({**GOOD[4], "weight": 1}), None, "invalid_file_format",
        FORMAT + r'Example 5 contains an extra "weight"\.'),
    "an extra key in a message": (
        with_row(message(colour="red")), None, "invalid_file_format",
        FORMAT + r'Example 5, message 2 contains an unrecognized key "colour"'),
    "a special token": (
        with_row(jobs.row("<|im_start|>user", "yes"), line=8), None, "invalid_file_format",
        FORMAT + r"Example 8 message contains an invalid token: <\|im_start\|>"),
}


@pytest.fixture(scope="module")
def failed(client):
    """All the failures at once: the server checks one file while the next one waits."""
    made = {}
    for name, (rows, method, _, _) in FAILURES.items():
        file = jobs.upload(client, jobs.jsonl(rows), "bad.jsonl")
        made[name] = client.fine_tuning.jobs.create(
            model=jobs.BASE_MODEL, training_file=file.id, method=method or openai.omit)
    return {name: jobs.wait(client, job.id, {"failed"}) for name, job in made.items()}


@pytest.mark.parametrize("name", FAILURES)
def test_a_faulty_training_file_fails_the_job_in_openais_words(client, failed, name):
    _, _, code, pattern = FAILURES[name]
    job = failed[name]
    assert (job.error.code, job.error.param) == (code, "training_file")
    assert re.search(pattern, job.error.message), job.error.message
    assert (job.fine_tuned_model, job.result_files, job.trained_tokens) == (None, [], None)
    last = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    assert (last.level, last.message) == ("error", job.error.message)
    for problem in last.data["problems"]:
        assert problem["code"] and problem["message"] and problem["remedy"]


def test_a_line_that_is_no_json_fails_with_its_number(client):
    data = jobs.jsonl(GOOD) + b'{"messages": [\n'
    job = client.fine_tuning.jobs.create(
        model=jobs.BASE_MODEL, training_file=jobs.upload(client, data).id)
    job = jobs.wait(client, job.id, {"failed"})
    assert job.error.code == "invalid_training_file"
    assert re.search(FILE + "Example 13 ", job.error.message), job.error.message


def test_a_faulty_validation_file_has_a_code_of_its_own(client, training_file):
    for rows, pattern in [
        ([{"messages": [{"content": "x"}]}],
         r"^The job failed due to an invalid validation file\. Invalid file format\. Example 1, message 1 "
         r"Discriminator 'role' is missing in value"),
        ([PAIR], "Unexpected file format"),
    ]:
        file = jobs.upload(client, jobs.jsonl(rows), "bad.jsonl")
        job = jobs.create(client, training_file.id, validation_file=file.id)
        job = jobs.wait(client, job.id, {"failed"})
        assert (job.error.code, job.error.param) == ("invalid_validation_file", "validation_file")
        assert re.search(pattern, job.error.message), job.error.message
