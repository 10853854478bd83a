"""Every operation of the description, called with what no honest client sends: never a 5xx, always the envelope."""

import json
import random

import pytest

import daemon

try:
    import httpx2 as httpx
except ImportError:
    import httpx

NUL = "a\u0000b"
IDS = [
    "x", "file-none", "ftjob-none", "ftevent-none", "upload_none", "eval_none", "evalrun_none", "ftckpt_none",
    "%00", "a%00b", "%ff", "%2e%2e", "a%2Fb", "%20", "%F0%9F%92%A9", "x" * 5000, "null", "-1",
    "'%3B%20drop%20table%20jobs%3B--", "%7B%7D", "ft:a:b::c",
]
QUERIES = [
    "", "limit=0", "limit=1&limit=2", "limit=101", "limit=-1", "limit=abc", "limit=99999999999999999999999", "limit=1.5",
    "after=file-none", "after=ftjob-none", "after=%00", "after=%ff", "order=sideways", "order=asc", "stream=maybe",
    "metadata%5Ba%5D=b", "metadata=null", "metadata%5B%5D=%00", "format=%00", "unknown=1", "%zz=%zz", "=", "&&&", "a" * 9000,
    "purpose=%00", "status=nothing", "order_by=nothing", "project_id=%00",
]
DEEP = "[" * 5000 + "]" * 5000
# Raw bodies of JSON calls.
BODIES = [
    b"", b" ", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}", b'{"a": NaN}', b'{"a": 1e999}',
    DEEP.encode(), b'{"model": ' + DEEP.encode() + b"}", b'{"' + b"k" * 70_000 + b'": 1}', b'{"a":1}{"b":2}',
    '{"\\u0000": 1}'.encode(), b'{"model": "\\ud800"}', b'{"model": "' + b"\xc3\x28" + b'"}', b"--x\r\n\r\n--x--",
]
# Values that a field may be given instead of its own.
VALUES = [
    None, True, 0, -1, 1.5, 2**31, 2**63, -(2**63) - 1, 10**40, 1e308, "", NUL, "x" * 20_000, "\u202e\U0001f4a9", [], {}, [None], [[]],
    [{}], {"a": {"b": {}}}, {NUL: NUL}, {"type": NUL}, {"type": "nothing"}, ["x"] * 3000, {f"k{i}": "v" for i in range(40)},
    {"k" * 65: "v" * 513},
]
ENVELOPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.root_url, timeout=30) as client:
        yield client


def judge(response, what):
    """Fails unless the answer is one that a client can read."""
    assert response.status_code < 500, f"{what}: {response.status_code} {response.text[:500]}"
    assert response.headers["x-request-id"].startswith("req_"), what
    if response.status_code < 400:
        return
    error = response.json()["error"]
    assert set(error) == ENVELOPE, f"{what}: {error}"
    assert isinstance(error["message"], str) and error["message"], what
    assert isinstance(error["type"], str) and error["type"], what
    for key in ("param", "code"):
        assert error[key] is None or isinstance(error[key], str), f"{what}: {error}"


class Operation:
    def __init__(self, spec, path, method, operation):
        self.path, self.method, self.name = path, method.upper(), f"{method.upper()} {path}"
        self.fields, self.is_form, self.reads_json = [], False, False
        content = operation.get("requestBody", {}).get("content", {})
        self.is_form = "multipart/form-data" in content
        if "application/json" in content:
            self.reads_json = True
            self.fields = list(resolved(spec, content["application/json"]["schema"]).get("properties", {}))

    def url(self, ids):
        parts = self.path.split("/")
        return "/".join(next(ids) if part.startswith("{") else part for part in parts)


def resolved(spec, schema):
    while "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


@pytest.fixture(scope="module")
def operations(http):
    spec = http.get("/openapi.json").json()
    found = [
        Operation(spec, path, method, operation)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/v1")
    ]
    assert len(found) > 40
    return found


@pytest.fixture(scope="module")
def key(server):
    return {"authorization": f"Bearer {server.key}"}


def test_no_key_or_an_odd_one_opens_nothing(http, operations):
    keys = [{}, {"authorization": "Bearer"}, {"authorization": "Basic eDp5"}, {"authorization": b"Bearer \xff\xfe"}, {"api-key": "odd"}]
    for operation in operations:
        for headers in keys:
            response = http.request(operation.method, operation.url(iter(lambda: "x", None)), headers=headers)
            judge(response, operation.name)
            # A form's or a JSON body is read after the key.
            assert response.status_code == 401, f"{operation.name} {headers}: {response.status_code}"


def test_odd_ids_name_nothing(http, operations, key):
    for operation in operations:
        if "{" not in operation.path:
            continue
        for odd in IDS:
            url = operation.url(iter(lambda: odd, None))
            body = {"content": b"{}"} if operation.reads_json else {}
            response = http.request(operation.method, url, headers=key, **body)
            judge(response, f"{operation.name} {odd[:40]}")
            assert response.status_code >= 400 or operation.method == "GET", f"{operation.name} {odd}: {response.text}"


def test_odd_queries_are_refused_or_ignored(http, operations, key):
    for operation in operations:
        if operation.method != "GET":
            continue
        for query in QUERIES:
            url = operation.url(iter(lambda: "x", None)) + "?" + query
            judge(http.request("GET", url, headers=key), f"{operation.name} ?{query[:60]}")


def test_bodies_that_are_no_json_objects_are_refused(http, operations, key):
    for operation in operations:
        if operation.reads_json:
            for body in BODIES:
                url = operation.url(iter(lambda: "x", None))
                response = http.request(operation.method, url, content=body, headers=key)
                judge(response, f"{operation.name} {body[:40]}")


def test_fields_of_every_wrong_type_are_refused(http, operations, key):
    chance = random.Random(7)
    for operation in operations:
        for field in operation.fields:
            for value in VALUES:
                # One field of another kind, or a handful.
                body = {field: value}
                if chance.random() < 0.5:
                    body |= {other: chance.choice(VALUES) for other in operation.fields if chance.random() < 0.5}
                url = operation.url(iter(lambda: "x", None))
                what = f"{operation.name} {json.dumps(body)[:300]}"
                judge(http.request(operation.method, url, content=json.dumps(body), headers=key), what)


# A request that is good, and operations whose fields are then replaced one by one: nothing hides behind an earlier refusal.
def good_bodies(training_file):
    model, messages = daemon.BASE_MODEL, [{"role": "user", "content": "hi"}]
    # Checked as any other, and nothing is generated.
    nobody = "none"
    grader = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "reference": "x", "operation": "eq"}
    hyper = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0}
    job = {
        "model": model, "training_file": training_file, "suffix": "s", "seed": 1, "metadata": {"a": "b"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        "finetuned": {"lora": {"rank": 8}, "learning_rate": 1e-4},
    }
    return {
        "/v1/chat/completions": {
            "model": nobody, "messages": messages, "temperature": 0, "max_tokens": 1, "n": 1, "stop": ["x"], "logit_bias": {"1": 1},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "response_format": {"type": "text"}, "stream_options": {"include_usage": True}, "metadata": {"a": "b"},
        },
        "/v1/completions": {"model": nobody, "prompt": "hi", "max_tokens": 1, "n": 1, "logprobs": 1},
        "/v1/fine_tuning/jobs/validate": job,
        "/v1/fine_tuning/alpha/graders/validate": {"grader": grader},
        "/v1/fine_tuning/alpha/graders/run": {"grader": grader, "model_sample": "x", "item": {"a": 1}},
        "/v1/evals": {
            "name": "hostile", "testing_criteria": [grader], "metadata": {"a": "b"},
            "data_source_config": {"type": "custom", "item_schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
        },
        "/v1/uploads": {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 1, "mime_type": "text/jsonl"},
    }


def places(value, path=()):
    """Paths of all members of a body."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield (*path, name)
        yield from places(member, (*path, name))


def replaced(body, path, value):
    body = json.loads(json.dumps(body))
    at = body
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return body


# What a good request would begin to do is not the matter here.
BRIEF = [None, True, -1, 1.5, 10**40, 1e308, NUL, "x" * 20_000, [], {}, [[]], {NUL: NUL}, {"type": "nothing"}, {"k" * 65: "v" * 513}]


def test_good_requests_with_one_bad_member_are_refused_in_its_name(http, key, training_file):
    for path, body in good_bodies(training_file.id).items():
        for place in places(body):
            for value in BRIEF:
                content = json.dumps(replaced(body, place, value))
                judge(http.post(path, content=content, headers=key), f"{path} {place} = {str(value)[:60]}")


def form(*parts):
    lines = []
    for head, content in parts:
        lines.append(b"--b\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n")
    return b"".join(lines) + b"--b--\r\n"


FILE = (b'name="file"; filename="a.jsonl"', b"{}\n")
PURPOSE = (b'name="purpose"', b"fine-tune")
FORMS = [
    b"", b"--b--\r\n", b"--b\r\n", form(), form(FILE), form(PURPOSE), form(FILE, FILE, PURPOSE), form(PURPOSE, (b'name="colour"', b"red"), FILE),
    form((b'name="purpose"', b"\xff"), FILE), form((b'name="purpose"', b"fine\x00tune"), FILE), form((b'name="purpose"', b"x" * 9000), FILE),
    form((b'name="file"; filename="\x00.jsonl"', b"x"), PURPOSE), form((b'name="file"; filename=""', b""), PURPOSE), form((b"", b"x")),
    form(FILE, PURPOSE)[:-20], form((b'name="expires_after[seconds]"', b"soon"), FILE, PURPOSE), form(PURPOSE, PURPOSE, (b'name="file"', b"")),
    form((b'name="data"', b"x"), (b'name="data"', b"y")),
]


def test_odd_forms_are_refused(http, operations, key):
    forms = [operation for operation in operations if operation.is_form]
    assert len(forms) == 2
    for operation in forms:
        for kind in ("multipart/form-data; boundary=b", "multipart/form-data", "application/json", "text/plain"):
            for body in FORMS:
                headers = {**key, "content-type": kind}
                response = http.request(operation.method, operation.url(iter(lambda: "x", None)), content=body, headers=headers)
                judge(response, f"{operation.name} {kind} {body[:80]}")
                assert response.status_code >= 400, f"{operation.name} took {body}"
