"""Bad files: every fault with its line, in OpenAI's shape, in bounded memory, nothing left behind."""

import json

import openai
import pytest

import daemon
import jobs

GOOD = [json.dumps(r) for r in jobs.rows(12)]


def lines(**replaced):
    """Twelve good lines, some of them replaced: `lines(_3="…")`. Line numbers count from 1."""
    text = list(GOOD)
    for key, line in replaced.items():
        text[int(key[1:]) - 1] = line
    return "\n".join(text).encode() + b"\n"


def message(*roles):
    return json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]})


# The faulty file, the job's error code, and texts that its message or its events must hold.
FAULTS = {
    "malformed JSON": (lines(_3='{"messages": [', _7="nonsense"), None, ["3", "7"]),
    "wrong roles": (lines(_4=message("robot", "assistant")), None, ["4", "robot"]),
    "no assistant message": (lines(_5=message("user"), _6=message("system", "user")), None, ["5", "6"]),
    "extra key": (lines(_2=GOOD[1][:-1] + ', "weight": 3}'), None, ["2", "weight"]),
    "no messages": (lines(_9='{"prompt": "a"}'), None, ["9"]),
    "special token in content": (
        lines(_8=json.dumps(jobs.row("<|im_start|>user", "yes"))), None, ["8", "<|im_start|>"]),
    "invalid UTF-8": (lines(_10="{}").replace(b"{}", b'{"messages": "\xff\xfe"}'), None, ["10", "UTF-8"]),
    "too few examples": ("\n".join(GOOD[:3]).encode() + b"\n", "invalid_n_examples", ["3", "10"]),
    "empty file": (b"", None, ["empty"]),
}


def refusal(client, data):
    """(code, param, all texts) with which a file is refused: at once, or as a failed job."""
    file = None
    try:
        file = jobs.upload(client, data)
        job = jobs.create(client, file.id)
    except openai.BadRequestError as error:
        assert error.type == "invalid_request_error"
        return error.code, error.param, error.message
    finally:
        if file:
            file_id = file.id
    job = jobs.wait(client, job.id, {"failed"})
    texts = "\n".join([job.error.message, *jobs.texts(client, job.id)])
    assert job.fine_tuned_model is None
    assert any(e.level == "error" for e in jobs.events(client, job.id))
    client.files.delete(file_id)
    return job.error.code, job.error.param, texts


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_with_all_its_faults(client, fault):
    data, code, parts = FAULTS[fault]
    found_code, param, texts = refusal(client, data)
    assert code in (None, found_code), texts
    assert param in ("training_file", "file"), texts
    for part in parts:
        assert part in texts


def test_a_line_of_100_megabytes_is_refused_in_bounded_memory(server, client):
    before = daemon.peak_memory_mib(server.process.pid)
    huge = jobs.row("x" * 100_000_000, "yes")
    _, _, texts = refusal(client, lines(_6=json.dumps(huge)))
    assert "6" in texts
    grown = daemon.peak_memory_mib(server.process.pid) - before
    assert grown < 96, f"peak memory grew by {grown:.0f} MiB"


def test_a_faulty_validation_file_is_named_as_such(client, training_file):
    file = jobs.upload(client, lines(_3="nonsense"))
    job = jobs.create(client, training_file.id, validation_file=file.id)
    job = jobs.wait(client, job.id, {"failed"})
    assert job.error.param == "validation_file"
    client.files.delete(file.id)


def test_good_rows_are_taken_after_all_that(client, training_file):
    job = jobs.create(client, training_file.id, batch=24)
    assert jobs.succeed(client, job.id)


def test_refused_files_leave_nothing_behind(server, client):
    def stored():
        return sum(f.stat().st_size for f in (server.folder / "data/blobs").rglob("*") if f.is_file())

    before = stored()
    for _ in range(3):
        refusal(client, lines(_3="nonsense") + b" " * 1_000_000)
    daemon.eventually(lambda: stored() <= before, 30, "deleted files leave storage")
