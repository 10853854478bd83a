"""The API as curl users write it: hand-made requests, empty bodies, odd headers."""

import json
import shutil
import subprocess

import pytest

import jobs
from daemon import BASE_MODEL

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


@pytest.fixture(scope="module")
def curl(server):
    def call(path, *arguments, authorized=True):
        """(status, headers, body) of one request."""
        command = ["curl", "-sS", "-i", "--max-time", "60", server.root_url + path, *arguments]
        if authorized:
            command += ["-H", f"Authorization: Bearer {server.key}"]
        text = subprocess.run(command, capture_output=True, check=True, timeout=90).stdout.decode()
        while True:
            head, body = text.split("\r\n\r\n", 1)
            if " 100 " not in head.splitlines()[0]:
                break
            text = body
        status, *headers = head.splitlines()
        headers = dict(h.lower().split(": ", 1) for h in headers if ": " in h)
        return int(status.split()[1]), headers, body

    return call


def error(body):
    error = json.loads(body)["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


def test_health_needs_no_key(curl):
    for path in ("/healthz", "/readyz"):
        assert curl(path, authorized=False)[0] == 200


def test_the_api_describes_itself(curl):
    status, _, body = curl("/openapi.json", authorized=False)
    paths = json.loads(body)["paths"]
    assert status == 200
    assert any("/fine_tuning/jobs" in path for path in paths)


def test_a_missing_key_is_said(curl):
    status, headers, body = curl("/v1/models", authorized=False)
    assert status == 401
    assert "API key" in error(body)["message"]
    assert headers["x-request-id"].startswith("req_")


def test_the_key_may_stand_in_the_other_header(curl, server):
    assert curl("/v1/models", "-H", f"api-key: {server.key}", authorized=False)[0] == 200


def test_a_body_that_is_not_json_is_refused(curl):
    json_type = ("-H", "Content-Type: application/json")
    status, _, body = curl("/v1/fine_tuning/jobs", *json_type, "-d", "{broken")
    assert (status, error(body)["type"]) == (400, "invalid_request_error")


def test_upload_create_cancel_with_an_empty_body(curl, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jobs.jsonl(jobs.rows(40)))
    # The file first: the order of the parts is the user's.
    status, _, body = curl("/v1/files", "-F", f"file=@{path}", "-F", "purpose=fine-tune")
    assert status == 200, body
    file_id = json.loads(body)["id"]
    request = json.dumps({"model": BASE_MODEL, "training_file": file_id, "hyperparameters": {"n_epochs": 9}})
    status, _, body = curl("/v1/fine_tuning/jobs", "-H", "Content-Type: application/json", "-d", request)
    assert status == 200, body
    job_id = json.loads(body)["id"]
    status, _, body = curl(f"/v1/fine_tuning/jobs/{job_id}/cancel", "-X", "POST")
    assert (status, json.loads(body)["status"]) == (200, "cancelled")
    status, _, body = curl(f"/v1/fine_tuning/jobs/{job_id}/cancel", "-X", "POST")
    assert status == 400 and error(body)["message"]
    status, _, body = curl(f"/v1/fine_tuning/jobs/{job_id}/events?limit=1")
    page = json.loads(body)
    assert (page["object"], len(page["data"]), page["has_more"]) == ("list", 1, True)


def test_an_upload_without_a_purpose_is_refused(curl, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jobs.jsonl(jobs.rows(12)))
    status, _, body = curl("/v1/files", "-F", f"file=@{path}")
    assert status == 400
    assert error(body)["param"] == "purpose"


def test_a_stream_is_server_sent_events(curl):
    request = {
        "model": BASE_MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "temperature": 0,
        "stream": True,
    }
    arguments = ("-N", "-H", "Content-Type: application/json", "-d", json.dumps(request))
    status, headers, body = curl("/v1/chat/completions", *arguments)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [e for e in body.split("\n\n") if e]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    first = json.loads(events[0].removeprefix("data: "))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert "usage" not in first


def test_a_request_id_of_the_client_comes_back(curl):
    headers = curl("/v1/models", "-H", "X-Request-Id: my-own-id-1")[1]
    assert headers["x-request-id"] == "my-own-id-1"
