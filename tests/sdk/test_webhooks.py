"""Webhooks through the SDK: endpoints by its own resource, and real deliveries that it verifies itself."""

import http.server
import json
import pathlib
import queue
import shutil
import ssl
import subprocess
import threading

import openai
import pytest

import daemon
import jobs

EVENTS = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
HAS_OPENSSL = shutil.which("openssl") is not None
UNWRAP = pathlib.Path(__file__).with_name("unwrap.mjs")
RUN_EVENTS = ["eval.run.succeeded", "eval.run.failed", "eval.run.canceled"]
SETTINGS = {
    # Also how long a killed server keeps others from its delivery, with ten seconds on top.
    "FINETUNED_WEBHOOKS__TIMEOUT": "3s",
    "FINETUNED_WEBHOOKS__ALLOW": '["127.0.0.1"]',
    "FINETUNED_WEBHOOKS__RETRIES": '["1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s"]',
}


class Receiver:
    """Keeps what arrives. It refuses, with 500, as long as it is told to. With a certificate it speaks https."""

    def __init__(self, certificate=None):
        arrived = self.arrived = queue.Queue()
        refuses = self.refuses = threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(500 if refuses.is_set() else 200)
                self.end_headers()
                arrived.put((body, dict(self.headers)))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next(self, seconds=60):
        return self.arrived.get(timeout=seconds)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Authority:
    """Signs certificates for 127.0.0.1; `root` is what whoever trusts it must know."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.root, self.leaf = folder, folder / "root.pem", folder / "leaf.pem"
        if not HAS_OPENSSL:
            return
        self.make("root", "-subj", f"/CN={folder.name}")
        self.make("leaf", "-subj", "/CN=receiver", "-CA", self.root, "-CAkey", folder / "root.key",
                  "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1")
        with self.leaf.open("a") as leaf:
            leaf.write((folder / "leaf.key").read_text())

    def make(self, name, *more):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc",
                   "-days", "2", "-out", self.folder / f"{name}.pem", "-keyout", self.folder / f"{name}.key", *more]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "trusted")


@pytest.fixture(scope="module")
def server(recorded, authority):
    # The usual variable for one's own authorities, where the system's store is not to be changed.
    trusting = {"SSL_CERT_FILE": str(authority.root)} if HAS_OPENSSL else {}
    with daemon.Up("webhook key", SETTINGS | trusting) as up, recorded(up):
        yield up


@pytest.fixture(scope="module")
def client(server):
    return server.client(max_retries=8)


@pytest.fixture(scope="module")
def rows_file(client):
    return jobs.upload(client, jobs.jsonl(jobs.rows(12)))


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def endpoint(client, receiver):
    made = client.webhooks.create(name="mine", url=receiver.url, event_types=EVENTS + RUN_EVENTS)
    yield made
    client.webhooks.delete(made.id)


def deliveries(client, endpoint):
    """Ours: the SDK has no call for the log."""
    return client.get(f"/webhook_endpoints/{endpoint.id}/deliveries", cast_to=object)["data"]


def test_a_succeeded_job_is_announced_and_the_sdk_verifies_it(client, rows_file, receiver, endpoint):
    job = jobs.succeed(client, jobs.create(client, rows_file.id).id)
    body, headers = receiver.next()
    event = client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", job.id)
    assert (event.object, event.id) == ("event", headers["webhook-id"])
    assert abs(event.created_at - job.finished_at) <= 1
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", headers, secret=endpoint.signing_secret)
    [delivery] = daemon.eventually(
        lambda: [d for d in deliveries(client, endpoint) if d["status"] == "delivered"],
        10,
        "the delivery is recorded",
    )
    assert (delivery["event_id"], delivery["data_id"]) == (event.id, job.id)
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [200]
    client.post(f"/webhook_endpoints/{endpoint.id}/deliveries/{delivery['id']}/redeliver", cast_to=object)
    again, its_headers = receiver.next()
    assert (again, its_headers["webhook-id"]) == (body, headers["webhook-id"])


@pytest.mark.skipif(shutil.which("node") is None, reason="this machine has no Node.js")
def test_the_node_client_verifies_too(client, receiver, endpoint):
    client.webhooks.test(endpoint.id, event_type="fine_tuning.job.succeeded")
    body, headers = receiver.next()
    delivery = json.dumps({"body": body.decode(), "headers": headers, "secret": endpoint.signing_secret})
    command = ["node", UNWRAP, daemon.NODE_CLIENT.absolute()]
    verified = subprocess.run(command, input=delivery, capture_output=True, text=True, timeout=60)
    assert verified.stdout == "fine_tuning.job.succeeded\n", verified.stderr


@pytest.mark.skipif(not HAS_OPENSSL, reason="this machine has no openssl")
def test_a_receiver_behind_tls_is_reached_if_its_certificate_is_trusted(client, authority, tmp_path):
    def endpoint_of(receiver):
        return client.webhooks.create(name="tls", url=receiver.url, event_types=EVENTS)

    trusted = Receiver(authority.leaf)
    made = endpoint_of(trusted)
    client.webhooks.test(made.id, event_type="fine_tuning.job.succeeded")
    body, headers = trusted.next()
    event = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert event.type == "fine_tuning.job.succeeded"
    stranger = Receiver(Authority(tmp_path / "stranger").leaf)
    unreached = endpoint_of(stranger)
    with pytest.raises(openai.BadRequestError, match="UnknownIssuer"):
        client.webhooks.test(unreached.id, event_type="fine_tuning.job.succeeded")
    assert stranger.arrived.empty()
    for endpoint, receiver in ((made, trusted), (unreached, stranger)):
        client.webhooks.delete(endpoint.id)
        receiver.close()


def test_ends_of_eval_runs_are_announced(client, receiver, endpoint):
    evaluation = client.evals.create(
        name="hooked",
        data_source_config={"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
        testing_criteria=[
            {
                "type": "string_check",
                "name": "same",
                "input": "{{sample.output_text}}",
                "reference": "a",
                "operation": "eq",
            }
        ],
    )
    rows = [{"item": {}, "sample": {"output_text": "a"}}]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    run = client.evals.runs.create(evaluation.id, data_source=source)
    body, headers = receiver.next()
    event = client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    assert (event.type, event.data.id) == ("eval.run.succeeded", run.id)
    client.evals.delete(evaluation.id)


def test_endpoints_are_managed_by_the_sdk_s_own_resource(server, client):
    strict = openai.OpenAI(
        base_url=server.base_url, api_key=server.key, _strict_response_validation=True
    )
    made = strict.webhooks.create(name="a", url="https://hooks.example.com/a", event_types=EVENTS)
    other = strict.webhooks.create(name="b", url="https://hooks.example.com/b", event_types=EVENTS)
    assert made.id.startswith("whe_") and made.object == "webhook_endpoint"
    assert made.signing_secret.startswith("whsec_") and made.updated_at == made.created_at
    shown = strict.webhooks.retrieve(made.id)
    assert "signing_secret" not in shown.to_dict()
    assert made.signing_secret.rstrip("=").endswith(shown.signing_secret_hint[-4:])
    assert [e.id for e in strict.webhooks.list(limit=1)][:2] == [other.id, made.id]
    changed = strict.webhooks.update(made.id, name="c", event_types=EVENTS[:1])
    assert (changed.name, changed.event_types, changed.url) == ("c", EVENTS[:1], made.url)
    rotated = strict.webhooks.rotate_secret(made.id)
    assert rotated.signing_secret != made.signing_secret
    assert strict.webhooks.event_types.list().data == EVENTS + RUN_EVENTS
    for each in (made, other):
        gone = strict.webhooks.delete(each.id)
        assert (gone.id, gone.deleted, gone.object) == (each.id, True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        strict.webhooks.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refusal:
        strict.webhooks.create(name="a", url="http://hooks.example.com/a", event_types=EVENTS)
    assert (refusal.value.param, refusal.value.code) == ("url", "invalid_value")


def test_a_test_event_is_verified_with_either_secret_after_a_rotation(client, receiver, endpoint):
    rotated = client.webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=True)
    result = client.webhooks.test(endpoint.id, event_type="fine_tuning.job.failed")
    assert (result.status_code, result.success, result.event_type) == (200, True, "fine_tuning.job.failed")
    body, headers = receiver.next()
    for secret in (endpoint.signing_secret, rotated.signing_secret):
        event = client.webhooks.unwrap(body, headers, secret=secret)
        assert event.type == "fine_tuning.job.failed"


def test_a_killed_server_delivers_after_its_restart_and_a_retry_is_the_same(
    server, client, rows_file, receiver, endpoint
):
    receiver.refuses.set()
    job = jobs.create(client, rows_file.id)
    client.fine_tuning.jobs.cancel(job.id)
    first, headers = receiver.next()
    server.process.kill()
    receiver.refuses.clear()
    while not receiver.arrived.empty():
        receiver.arrived.get()
    server.start()
    again, later = receiver.next()
    assert again == first
    assert later["webhook-id"] == headers["webhook-id"] == json.loads(first)["id"]
    event = client.webhooks.unwrap(again, later, secret=endpoint.signing_secret)
    assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job.id)
    daemon.eventually(
        lambda: [d for d in deliveries(client, endpoint) if d["status"] == "delivered"],
        30,
        "the delivery is recorded",
    )
