"""OpenAI's error catalogue, row by row, through its own client: exception, status, type, code, param and words, and
whether the client tries again by itself. Why jobs fail is test_failures.py's."""

import json
import re
import time

import openai
import pytest

import daemon
import jobs
from daemon import BASE_MODEL

try:
    import httpx2 as httpx
except ImportError:
    import httpx

INVALID = "invalid_request_error"
MESSAGES = [{"role": "user", "content": "hi"}]
NO_KEY = {"Authorization": openai.Omit()}


class Counting(httpx.BaseTransport):
    """The network, and what the client's own tries were."""

    def __init__(self):
        self.inner = httpx.HTTPTransport()
        self.tries = []

    def handle_request(self, request):
        self.tries.append(int(request.headers["x-stainless-retry-count"]))
        return self.inner.handle_request(request)


def counted(server, **options):
    transport = Counting()
    return server.client(http_client=httpx.Client(transport=transport), **options), transport.tries


def create(**change):
    """The creation of a job that is good but for `change`."""

    def call(client, training_file):
        body = {"model": BASE_MODEL, "training_file": training_file, **change}
        body = {key: value for key, value in body.items() if value is not None}
        return client.post("/fine_tuning/jobs", body=body, cast_to=object)

    return call


def hyper(**values):
    return create(hyperparameters=values)


def of_method(kind, **values):
    return create(method={"type": kind, kind: {"hyperparameters": values}})


def chat(**change):
    return lambda client, _: client.chat.completions.create(**{"model": BASE_MODEL, "messages": MESSAGES, **change})


def upload(name, purpose):
    return lambda client, _: jobs.upload(client, b"{}\n", name, purpose)


# Row: what is called, exception, status, type, code, param, and what the message matches from its start.
BAD, AUTH, DENIED, NONE = openai.BadRequestError, openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError
ROWS = {
    "no key": (
        lambda client, _: client.models.list(extra_headers=NO_KEY), AUTH, 401, INVALID, None, None,
        r"You did not provide an API key\. .*Authorization header with Bearer auth"),
    "wrong key": (
        lambda client, _: client.models.list(extra_headers={"Authorization": "Bearer sk-wrong-key-0123456789"}), AUTH, 401,
        INVALID, "invalid_api_key", None, r"Incorrect API key provided: sk-\*+6789\. "),
    "key lacks permission": (
        lambda client, _: client.models.list(extra_headers={"Authorization": "Bearer WORKER"}), DENIED, 403, INVALID, None, None,
        r"You have insufficient permissions for this operation: "),
    "unknown route": (
        lambda client, _: client.get("/nothing/here", cast_to=object), NONE, 404, INVALID, None, None,
        r"Invalid URL \(GET /v1/nothing/here\)$"),
    "another method": (
        lambda client, _: client.patch("/files", cast_to=object), openai.APIStatusError, 405, INVALID, "method_not_supported",
        None, r"Not allowed to PATCH on /v1/files"),
    "body is not JSON": (
        lambda client, _: client.post("/fine_tuning/jobs", content=b"{broken", cast_to=object), BAD, 400, INVALID, None, None,
        r"We could not parse the JSON body of your request"),
    "body is no object": (
        lambda client, _: client.post("/chat/completions", body=[1], cast_to=object), BAD, 400, INVALID, None, None,
        r"We could not parse the JSON body of your request: the body must be a JSON object"),
    "body is too large": (
        create(metadata={"a": "x" * (2 << 20)}), openai.APIStatusError, 413, INVALID, None, None,
        r"The request body is larger than the limit of 1048576 bytes\."),
    "missing model": (
        create(model=None), BAD, 400, INVALID, "missing_required_parameter", "model", r"Missing required parameter: 'model'\.$"),
    "missing file": (
        create(training_file=None), BAD, 400, INVALID, "missing_required_parameter", "training_file",
        r"Missing required parameter: 'training_file'\.$"),
    "missing grader": (
        create(method={"type": "reinforcement"}), BAD, 400, INVALID, "missing_required_parameter",
        "method.reinforcement.grader", None),
    "wrong type": (
        create(suffix=5), BAD, 400, INVALID, "invalid_type", "suffix",
        r"Invalid type for 'suffix': expected a string, but got an integer instead\.$"),
    "wrong type, deep": (
        of_method("supervised", n_epochs=[1]), BAD, 400, INVALID, "invalid_type", "method.supervised.hyperparameters.n_epochs",
        r"Invalid type for 'method\.supervised\.hyperparameters\.n_epochs': expected .*, but got an array instead\.$"),
    "wrong type in metadata": (create(metadata={"a": 1}), BAD, 400, INVALID, "invalid_type", "metadata.a", None),
    "bad word": (
        create(method={"type": "magic"}), BAD, 400, INVALID, "invalid_value", "method.type",
        r"Invalid value: 'magic'\. Supported values are: 'supervised', 'dpo', 'reinforcement'\.$"),
    "bad purpose": (
        upload("a.jsonl", "decoration"), BAD, 400, INVALID, "invalid_value", "purpose",
        r"Invalid value: 'decoration'\. Supported values are: 'assistants', "),
    "a NUL": (create(suffix="a\0b"), BAD, 400, INVALID, "invalid_value", "suffix", r"Invalid value for 'suffix': the character U\+0000"),
    "unknown field": (
        create(colour="red"), BAD, 400, INVALID, "unknown_parameter", "colour", r"Unknown parameter: 'colour'\.$"),
    "unknown field, deep": (
        create(finetuned={"lora": {"rnk": 8}}), BAD, 400, INVALID, "unknown_parameter", "finetuned.lora.rnk",
        r"Unknown parameter: 'finetuned\.lora\.rnk'\.$"),
    "string too long": (
        create(suffix="s" * 65), BAD, 400, INVALID, "string_above_max_length", "suffix",
        r"Invalid 'suffix': string too long\. Expected a string with maximum length 64, but got a string with length 65 instead\.$"),
    "metadata's key too long": (
        create(metadata={"k" * 65: "v"}), BAD, 400, INVALID, "string_above_max_length", "metadata", None),
    "metadata's value too long": (
        create(metadata={"k": "v" * 513}), BAD, 400, INVALID, "string_above_max_length", "metadata.k", None),
    "too much metadata": (
        create(metadata={f"k{i}": "v" for i in range(17)}), BAD, 400, INVALID, "object_above_max_properties", "metadata", None),
    "array too long": (
        create(integrations=[{"type": "wandb", "wandb": {"project": "p"}}] * 6), BAD, 400, INVALID, "array_above_max_length",
        "integrations", None),
    "integer too small": (
        hyper(n_epochs=0), BAD, 400, INVALID, "integer_below_min_value", "hyperparameters.n_epochs",
        r"Invalid 'hyperparameters\.n_epochs': integer below minimum value\. Expected a value >= 1, but got 0 instead\.$"),
    "integer too large": (
        hyper(batch_size=257), BAD, 400, INVALID, "integer_above_max_value", "hyperparameters.batch_size", None),
    "negative seed": (create(seed=-1), BAD, 400, INVALID, "integer_below_min_value", "seed", None),
    "decimal too small": (
        hyper(learning_rate_multiplier=0), BAD, 400, INVALID, "decimal_below_min_value",
        "hyperparameters.learning_rate_multiplier", None),
    "decimal too large": (
        of_method("dpo", beta=2.5), BAD, 400, INVALID, "decimal_above_max_value", "method.dpo.hyperparameters.beta", None),
    "limit is no number": (
        lambda client, _: client.fine_tuning.jobs.list(extra_query={"limit": "many"}), BAD, 400, INVALID, "invalid_type",
        "limit", None),
    "limit is negative": (
        lambda client, _: client.fine_tuning.jobs.list(limit=-1), BAD, 400, INVALID, "integer_below_min_value", "limit", None),
    "unknown file": (
        lambda client, _: client.files.retrieve("file-none"), NONE, 404, INVALID, None, "id", r"No such File object: file-none$"),
    "unknown file's content": (
        lambda client, _: client.files.content("file-none"), NONE, 404, INVALID, None, "id", r"No such File object: file-none$"),
    "unknown file, deleted": (
        lambda client, _: client.files.delete("file-none"), NONE, 404, INVALID, None, "id", r"No such File object: file-none$"),
    "unknown training file": (
        create(training_file="file-none"), NONE, 404, INVALID, None, "training_file", r"No such File object: file-none$"),
    "a job's id for a file": (
        create(training_file="ftjob-none"), NONE, 404, INVALID, None, "training_file", r"No such File object: ftjob-none$"),
    "wrong extension": (
        upload("rows.txt", "fine-tune"), BAD, 400, INVALID, None, None,
        r"Invalid file format for Fine-Tuning API\. Must be \.jsonl, \.json, \.csv, \.tsv$"),
    "wrong extension, batch": (
        upload("rows.csv", "batch"), BAD, 400, INVALID, None, None, r"Invalid file format for Batch API\. Must be \.jsonl$"),
    "empty file": (
        lambda client, _: jobs.upload(client, b""), BAD, 400, INVALID, None, "file", r"File is empty\."),
    "unknown job": (
        lambda client, _: client.fine_tuning.jobs.retrieve("ftjob-none"), NONE, 404, INVALID, "fine_tune_not_found",
        "fine_tune_id", r"Could not find fine tune: ftjob-none$"),
    "a file's id for a job": (
        lambda client, file: client.fine_tuning.jobs.retrieve(file), NONE, 404, INVALID, "fine_tune_not_found",
        "fine_tune_id", r"Could not find fine tune: file-"),
    **{
        f"unknown job, {name}": (
            call, NONE, 404, INVALID, "fine_tune_not_found", "fine_tune_id", r"Could not find fine tune: ftjob-none$")
        for name, call in {
            "cancel": lambda client, _: client.fine_tuning.jobs.cancel("ftjob-none"),
            "pause": lambda client, _: client.fine_tuning.jobs.pause("ftjob-none"),
            "resume": lambda client, _: client.fine_tuning.jobs.resume("ftjob-none"),
            "events": lambda client, _: client.fine_tuning.jobs.list_events("ftjob-none"),
            "checkpoints": lambda client, _: client.fine_tuning.jobs.checkpoints.list("ftjob-none"),
        }.items()
    },
    "unknown upload": (
        lambda client, _: client.uploads.cancel("upload_none"), NONE, 404, INVALID, None, "id", r"No such Upload object: upload_none$"),
    "unknown eval": (
        lambda client, _: client.evals.retrieve("eval_none"), NONE, 404, INVALID, None, "eval_id", r"Eval not found: eval_none$"),
    "model is not trainable": (
        create(model="gpt-none"), BAD, 400, INVALID, "model_not_available", None,
        r"Model gpt-none is not available for fine-tuning or does not exist\.$"),
    "unknown model": (
        lambda client, _: client.models.retrieve("none"), NONE, 404, INVALID, "model_not_found", "model",
        r"The model 'none' does not exist$"),
    "unknown model, deleted": (
        lambda client, _: client.models.delete("none"), NONE, 404, INVALID, "model_not_found", "model",
        r"The model 'none' does not exist$"),
    "unknown model, chat": (
        chat(model="none"), NONE, 404, INVALID, "model_not_found", None,
        r"The model `none` does not exist or you do not have access to it\.$"),
    "unknown model, text": (
        lambda client, _: client.completions.create(model="none", prompt="hi"), NONE, 404, INVALID, "model_not_found", None,
        r"The model `none` does not exist or you do not have access to it\.$"),
    "too many tokens": (
        chat(messages=[{"role": "user", "content": "zebra " * 9000}], max_tokens=1), BAD, 400, INVALID,
        "context_length_exceeded", "messages", r".*\d+ tokens"),
    "no messages": (chat(messages=[]), BAD, 400, INVALID, "empty_array", "messages", None),
    "temperature too large": (chat(temperature=3), BAD, 400, INVALID, "decimal_above_max_value", "temperature", None),
}


def judge(error, kind, status, type, code, param, text):
    assert isinstance(error, kind)
    assert (error.status_code, error.type) == (status, type)
    assert (error.code, error.param) == (code, param), error.message
    assert error.request_id.startswith("req_")
    envelope = json.loads(error.response.text)
    assert envelope["error"].keys() == {"message", "type", "param", "code"}
    assert text is None or re.match(text, envelope["error"]["message"]), error.message


@pytest.fixture(scope="module")
def worker_key(server):
    return server.command("keys", "create", "--kind", "worker").splitlines()[-1].strip()


@pytest.mark.parametrize("row", ROWS)
def test_a_permanent_error_reads_as_openais_and_is_not_tried_again(server, training_file, worker_key, row):
    call, *expected = ROWS[row]
    client, tries = counted(server)
    if row == "key lacks permission":
        client = client.with_options(api_key=worker_key)
        call = lambda client, _: client.models.list()
    with pytest.raises(openai.APIStatusError) as caught:
        call(client, training_file.id)
    judge(caught.value, *expected)
    assert tries == [0]


def test_nothing_was_created_by_refused_requests(client, training_file):
    made = client.fine_tuning.jobs.list(extra_query={"metadata[k]": "v" * 513}).data
    assert made == []


def test_a_key_is_compared_whole(server):
    for near in ("a key with", server.key.upper()):
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key=near).models.list()


def test_every_purpose_may_be_read_back(client):
    # OpenAI's service refuses two of them.
    for purpose in ("assistants", "user_data"):
        file = jobs.upload(client, b"text", "a.txt", purpose)
        assert client.files.content(file.id).read() == b"text"
        client.files.delete(file.id)


def test_a_file_of_another_purpose_is_refused(client):
    file = jobs.upload(client, jobs.jsonl(jobs.rows(12)), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="fine-tune") as caught:
        jobs.create(client, file.id)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "training_file")
    client.files.delete(file.id)


def test_a_wrong_state_is_a_400_that_is_not_tried_again(server, tuned):
    client, tries = counted(server)
    for call in (client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError, match="succeeded"):
            call(tuned.id)
    assert tries == [0, 0, 0]


@pytest.fixture(scope="module")
def narrow(recorded):
    """A server whose limits are soon reached, and that takes no question for a model."""
    settings = {
        # One request in two seconds.
        "FINETUNED_LIMITS__REQUESTS_PER_MINUTE": "30",
        "FINETUNED_LIMITS__TOKENS_PER_MINUTE": "6000",
        "FINETUNED_SERVER__MAX_INFERENCE_REQUESTS": "0",
    }
    with daemon.Up("narrow key", settings) as up, recorded(up):
        yield up


def test_an_overloaded_server_is_asked_again_after_the_time_it_names(narrow):
    client, tries = counted(narrow, max_retries=1)
    begun = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        chat(max_tokens=1)(client, None)
    judge(caught.value, openai.InternalServerError, 503, "server_error", None, None, "Too many requests are waiting")
    assert (tries, time.monotonic() - begun >= 1) == ([0, 1], True)
    assert caught.value.response.headers["x-should-retry"] == "true"


def test_a_prompt_above_the_limit_of_tokens_is_not_tried_again(narrow):
    client, tries = counted(narrow)
    with pytest.raises(openai.RateLimitError) as caught:
        chat(messages=[{"role": "user", "content": "word " * 8000}])(client, None)
    judge(caught.value, openai.RateLimitError, 429, "tokens", "rate_limit_exceeded", None,
          r"Request too large for proj_default on tokens per min \(TPM\): Limit 6000, Requested 10\d\d\d\. ")
    assert tries == [0]


def test_a_rate_limit_is_waited_for(narrow):
    client, tries = counted(narrow)

    def until_refused(client):
        """Faulty requests count too. More of them than the limit, however slow the machine is."""
        for _ in range(300):
            with pytest.raises(openai.BadRequestError) as caught:
                client.post("/chat/completions", body={"model": "m", "messages": []}, cast_to=object)
            assert caught.value.response.headers["x-ratelimit-limit-requests"] == "30"
            if tries[-1] == 1:
                return
        raise AssertionError("the limit was never reached")

    with pytest.raises(openai.RateLimitError) as caught:
        until_refused(client.with_options(max_retries=0))
    judge(caught.value, openai.RateLimitError, 429, "requests", "rate_limit_exceeded", None,
          r"Rate limit reached for proj_default on requests per min \(RPM\): Limit 30, Used 30, Requested 1\. "
          r"Please try again in [\d.]+m?s\. ")
    headers = caught.value.response.headers
    assert headers["retry-after"] in ("1", "2") and 0 < int(headers["retry-after-ms"]) <= 2000
    until_refused(client)
    assert tries[-2:] == [0, 1], "the client waited and was let in"
