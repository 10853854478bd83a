"""The error catalogue as the SDK sees it: exception class, status, code, param, message."""

import openai
import pytest

import jobs
from daemon import BASE_MODEL

CREATE = "/fine_tuning/jobs"


def test_a_wrong_key_is_refused_without_showing_it(server):
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client(api_key="sk-wrong-key-0123456789abcdef").models.list()
    assert caught.value.code == "invalid_api_key"
    assert "Incorrect API key provided" in caught.value.message
    assert "0123456789" not in caught.value.message


def test_a_key_is_compared_whole(server):
    for near in ("a key with", server.key + " ", server.key.upper()):
        # Space at the end of a header's value is not part of it.
        if near.strip() == server.key:
            continue
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key=near).models.list()


def test_every_error_carries_a_request_id(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve("file-nothing")
    assert caught.value.request_id.startswith("req_")
    assert client.files.list()._request_id.startswith("req_")


def test_an_unknown_job_is_not_found(client):
    job = client.fine_tuning.jobs
    for call in (job.retrieve, job.cancel, job.list_events, job.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as caught:
            call("ftjob-nothing")
        assert (caught.value.code, caught.value.param) == ("fine_tune_not_found", "fine_tune_id")
        assert "ftjob-nothing" in caught.value.message


def test_an_unknown_route_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match=r"Invalid URL \(GET /v1/nothing/here\)"):
        client.get("/nothing/here", cast_to=object)


CREATION_FAULTS = {
    "no model": ({"training_file": "FILE"}, "missing_required_parameter", "model"),
    "no file": ({"model": BASE_MODEL}, "missing_required_parameter", "training_file"),
    "model is a number": ({"model": 5, "training_file": "FILE"}, "invalid_type", "model"),
    "unknown field": (
        {"model": BASE_MODEL, "training_file": "FILE", "colour": "red"},
        "unknown_parameter",
        "colour",
    ),
    "long suffix": (
        {"model": BASE_MODEL, "training_file": "FILE", "suffix": "s" * 65},
        "string_above_max_length",
        "suffix",
    ),
    "negative seed": (
        {"model": BASE_MODEL, "training_file": "FILE", "seed": -1},
        "integer_below_min_value",
        "seed",
    ),
    "no epochs": (
        {"model": BASE_MODEL, "training_file": "FILE", "hyperparameters": {"n_epochs": 0}},
        "integer_below_min_value",
        "n_epochs",
    ),
    "unknown model": (
        {"model": "gpt-nothing", "training_file": "FILE"},
        "model_not_available",
        None,
    ),
    "unknown option": (
        {"model": BASE_MODEL, "training_file": "FILE", "finetuned": {"lora": {"rnk": 8}}},
        "unknown_parameter",
        "rnk",
    ),
}


@pytest.mark.parametrize("fault", CREATION_FAULTS)
def test_a_faulty_job_is_refused_at_creation(client, training_file, fault):
    body, code, param = CREATION_FAULTS[fault]
    body = {k: training_file.id if v == "FILE" else v for k, v in body.items()}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(CREATE, body=body, cast_to=object)
    error = caught.value
    assert (error.status_code, error.type, error.code) == (400, "invalid_request_error", code)
    if param:
        # A field within others is named with its path, or by its last part.
        assert error.param and error.param.split(".")[-1] == param
    assert error.message


def test_an_unknown_training_file_is_refused(client):
    with pytest.raises(openai.APIStatusError) as caught:
        jobs.create(client, "file-nothing")
    assert caught.value.status_code in (400, 404)
    assert "file-nothing" in caught.value.message


def test_a_file_of_another_purpose_is_refused(client):
    file = jobs.upload(client, jobs.jsonl(jobs.rows(12)), purpose="user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.create(client, file.id)
    assert "fine-tune" in caught.value.message
    client.files.delete(file.id)


def test_what_the_server_cannot_do_is_said(client, training_file):
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(
            model=BASE_MODEL, training_file=training_file.id, method={"type": "reinforcement"})
    assert caught.value.message
