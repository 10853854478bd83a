"""Creations whose answer is lost: the client asks again by itself, and there is one object all the same."""

import openai
import pytest

import jobs

try:
    import httpx2 as httpx
except ImportError:
    import httpx

KEY = "Idempotency-Key"
DEFINITION = {
    "name": "repeated",
    "data_source_config": {"type": "custom", "item_schema": {
        "type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}},
    "testing_criteria": [{"type": "string_check", "name": "same", "operation": "eq",
                          "input": "{{ item.label }}", "reference": "a"}],
}
ROWS = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"label": "a"}}]}}


class LosingAnswers(httpx.BaseTransport):
    """Hands every request on, and loses the first answer."""

    def __init__(self):
        self.inner = httpx.HTTPTransport()
        self.tries = []

    def handle_request(self, request):
        response = self.inner.handle_request(request)
        self.tries.append(request.headers["x-stainless-retry-count"])
        if len(self.tries) == 1:
            response.read()
            raise httpx.ReadError("the answer is lost")
        return response


@pytest.fixture
def unlucky(server):
    """A client whose first answer is lost, and its transport."""
    transport = LosingAnswers()
    with server.client(http_client=httpx.Client(transport=transport), max_retries=2) as client:
        yield client, transport


def ids(page):
    return [one.id for one in page.data]


def test_a_lost_answer_does_not_make_two_jobs(unlucky, client, training_file):
    lonely, transport = unlucky
    job = jobs.create(lonely, training_file.id, metadata={"lost": "answer"})
    assert transport.tries == ["0", "1"]
    assert ids(client.fine_tuning.jobs.list(extra_query={"metadata[lost]": "answer"})) == [job.id]
    client.fine_tuning.jobs.cancel(job.id)
    client.delete(f"/fine_tuning/jobs/{job.id}", cast_to=object)


def test_a_lost_answer_does_not_make_two_files(unlucky, client):
    lonely, transport = unlucky
    before = ids(client.files.list(purpose="user_data"))
    file = lonely.files.create(file=("once.txt", b"only once"), purpose="user_data")
    assert transport.tries == ["0", "1"]
    assert sorted(ids(client.files.list(purpose="user_data"))) == sorted([*before, file.id])
    assert client.files.content(file.id).read() == b"only once"
    client.files.delete(file.id)


def test_a_lost_answer_does_not_begin_two_uploads(unlucky, client):
    lonely, transport = unlucky
    wanted = {"filename": "once.jsonl", "purpose": "evals", "bytes": 4, "mime_type": "text/jsonl"}
    upload = lonely.uploads.create(**wanted, extra_headers={KEY: "upload once"})
    assert transport.tries == ["0", "1"]
    # There is no list of uploads, so the key tells which one was made first.
    assert client.uploads.create(**wanted, extra_headers={KEY: "upload once"}).id == upload.id
    client.uploads.cancel(upload.id)


def test_a_lost_answer_makes_neither_two_evaluations_nor_two_runs(server, client):
    def lonely():
        return server.client(http_client=httpx.Client(transport=LosingAnswers()), max_retries=2)

    with lonely() as first:
        evaluation = first.evals.create(**DEFINITION)
    with lonely() as first:
        run = first.evals.runs.create(evaluation.id, name="once", data_source=ROWS)
    named = [one.id for one in client.evals.list(limit=100) if one.name == "repeated"]
    assert named == [evaluation.id]
    assert ids(client.evals.runs.list(evaluation.id)) == [run.id]
    client.evals.delete(evaluation.id)


def test_the_same_key_means_the_same_job(client, training_file):
    def create(key, epochs=1):
        return jobs.create(client, training_file.id, epochs=epochs, extra_headers={KEY: key})

    first = create("key one")
    assert create("key one").id == first.id
    with pytest.raises(openai.BadRequestError, match=KEY):
        create("key one", epochs=2)
    second = create("key two")
    assert second.id != first.id
    for job in (first, second):
        client.fine_tuning.jobs.cancel(job.id)
