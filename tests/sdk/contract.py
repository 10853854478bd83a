"""What the server answers, held against two descriptions: OpenAI's published one, and the server's own.

A `Recorder` stands before a server as a plain HTTP proxy and keeps every exchange. `Contract` checks them: the
status and the media type must be described, and a JSON body must fit the schema that stands there.
"""

import http.client
import http.server
import json
import pathlib
import re
import threading

try:
    import jsonschema
except ModuleNotFoundError:
    # A run by hand before the next set-up goes on without the check; test_contract.py fails in it.
    jsonschema = None

PUBLISHED = pathlib.Path(__file__).with_name("published") / "openai-openapi-subset.json"
HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}

# Where the published description and what OpenAI's own service answers, and its clients read, are known to differ:
# (call, place in the answer, why). Both are regular expressions; a list's numbers are `0` in a place.
FAULTS = [
    (r"", r"(.*\.)?(expires_at|status_details)", "optional there; the service and this server say null"),
    (r"POST /v1/completions", r"choices\.0\.logprobs\.(token_logprobs\.0|top_logprobs(\.0)?)",
     "null for a prompt's first token, and where no alternatives were asked for"),
    (r".*fine_tuning/jobs.*", r"(data\.0\.)?status", "it leaves out `paused`, which its example of the pause call shows"),
    (r".*(graders|fine_tuning/jobs).*", r"(.*\.)?(grader|method)(\..*)?",
     "the graders of `multi` are typed as one grader; the service takes and shows a map"),
    (r"POST /v1/fine_tuning/alpha/graders/run", r"metadata\.(token_usage|sampled_model_name)",
     "null where no model was asked"),
    (r"GET /v1/.*", r"(first|last)_id", "null in an empty list"),
    (r"GET /v1/chat/completions/.*/messages", r"data\.0\.role", "all messages are typed as the assistant's"),
    (r".*/evals.*", r"(data\.0\.)?data_source(\..*)?", "comes back as it was sent; the messages of a template may be shorter"),
    (r".*/evals.*", r"(.*\.)?testing_criteria\.0(\..*)?", "graders come back as they came, with an id"),
]


class Exchange:
    def __init__(self, method, path, status, kind, body):
        self.method, self.path, self.status, self.kind, self.body = method, path, status, kind, body


class Recorder:
    """A proxy before one server. It hands on what it gets, piece by piece, and keeps a copy."""

    LARGEST = 4 << 20

    def __init__(self, server):
        """From now on `server`, a `daemon.Server`, is reached through the recorder."""
        target_port = int(server.root_url.rsplit(":", 1)[1])
        self.exchanges = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def relay(self):
                recorder.relay(self, target_port)

            do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_HEAD = relay

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        server.root_url = f"http://127.0.0.1:{self.port}"
        server.base_url = f"{server.root_url}/v1"

    def relay(self, handler, port):
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        try:
            body = self.request_body(handler)
            headers = {k: v for k, v in handler.headers.items() if k.lower() not in HOP - {"host"}}
            upstream.request(handler.command, handler.path, body=body, headers=headers)
            answer = upstream.getresponse()
            handler.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP - {"content-length"}:
                    handler.send_header(name, value)
            handler.send_header("connection", "close")
            handler.end_headers()
            handler.close_connection = True
            kept = b""
            while chunk := answer.read1(65536):
                handler.wfile.write(chunk)
                handler.wfile.flush()
                if len(kept) < self.LARGEST:
                    kept += chunk
            kind = (answer.getheader("content-type") or "").split(";")[0]
            self.exchanges.append(Exchange(handler.command, handler.path, answer.status, kind, kept))
        except ConnectionError:
            handler.close_connection = True
        finally:
            upstream.close()

    @staticmethod
    def request_body(handler):
        if "chunked" in handler.headers.get("transfer-encoding", ""):
            pieces = []
            while size := int(handler.rfile.readline().split(b";")[0], 16):
                pieces.append(handler.rfile.read(size))
                handler.rfile.readline()
            handler.rfile.readline()
            return b"".join(pieces)
        length = int(handler.headers.get("content-length") or 0)
        return handler.rfile.read(length) if length else None

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def plain(schema):
    """OpenAPI 3.0's words, of which the published description has some, in those of JSON Schema."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: plain(value) for key, value in schema.items()}
    for bound in ("Minimum", "Maximum"):
        if isinstance(schema.get("exclusive" + bound), bool):
            exclusive = schema.pop("exclusive" + bound)
            if exclusive and bound.lower() in schema:
                schema["exclusive" + bound] = schema.pop(bound.lower())
    schema.pop("discriminator", None)
    schema.pop("example", None)
    if schema.pop("nullable", None) is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


class Description:
    """One OpenAPI description, asked by method and path."""

    def __init__(self, document, prefix):
        self.document = {"paths": document["paths"], "components": plain(document["components"])}
        self.prefix = prefix
        self.templates = []
        for template, item in document["paths"].items():
            pattern = re.compile("^" + re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template)) + "$")
            self.templates.append((template.count("{"), pattern, template, item))
        self.templates.sort(key=lambda one: one[0])
        self.validators = {}

    def operation(self, method, path):
        """(name, operation), or None where the description does not know the call."""
        path = path.split("?")[0]
        if self.prefix and path.startswith(self.prefix):
            path = path[len(self.prefix):]
        for _, pattern, template, item in self.templates:
            if pattern.match(path) and method.lower() in item:
                return f"{method} {template}", item[method.lower()]
        return None

    def names(self):
        return {f"{method.upper()} {template}" for _, _, template, item in self.templates for method in item}

    def response(self, operation, status):
        found = operation["responses"].get(str(status))
        if found and "$ref" in found:
            found = self.document["components"]["responses"][found["$ref"].split("/")[-1]]
        return found

    def errors(self, schema, value):
        """(place, message) of all that does not fit."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self.validators:
            whole = {**plain(schema), "components": self.document["components"]}
            self.validators[key] = jsonschema.Draft202012Validator(whole)
        for error in self.validators[key].iter_errors(value):
            # Of several forms, the fault of the one that fits best.
            best = jsonschema.exceptions.best_match([error]) or error
            place = ["0" if isinstance(part, int) else part for part in best.absolute_path]
            yield ".".join(place), best.message[:300]


class Contract:
    def __init__(self, own):
        self.own = Description(own, "")
        self.published = Description(json.loads(PUBLISHED.read_text()), "/v1")
        self.seen = set()
        self.faults = []

    def check(self, exchange):
        found = self.own.operation(exchange.method, exchange.path)
        if found is None:
            return
        name, operation = found
        response = self.own.response(operation, exchange.status)
        if response is None:
            self.fault(name, exchange, "own", "the status is not described")
            return
        content = response.get("content") or {}
        kinds = {kind.split(";")[0]: one for kind, one in content.items()}
        if 200 <= exchange.status < 300:
            self.seen.add(name)
        if exchange.kind not in kinds and not (exchange.kind == "text/csv" and kinds):
            self.fault(name, exchange, "own", f"the media type {exchange.kind!r} is not described")
            return
        for value in self.values(exchange):
            schema = kinds[exchange.kind].get("schema", {})
            for path, message in self.own.errors(schema, value):
                self.fault(name, exchange, "own", f"{path}: {message}")
        self.check_published(name, exchange)

    def check_published(self, name, exchange):
        found = self.published.operation(exchange.method, exchange.path)
        if found is None or exchange.kind not in ("application/json", "text/event-stream"):
            return
        response = self.published.response(found[1], exchange.status)
        if response is None:
            if exchange.status < 400:
                self.fault(name, exchange, "published", "the status is not described")
            return
        content = (response.get("content") or {}).get(exchange.kind)
        if content is None:
            return
        for value in self.values(exchange):
            if content["schema"].get("$ref", "").endswith("/Error"):
                # The published schema is that of the envelope's inside.
                value = value["error"]
            for path, message in self.published.errors(content["schema"], value):
                if not self.is_known(name, path):
                    self.fault(name, exchange, "published", f"{path}: {message}")

    @staticmethod
    def is_known(name, path):
        return any(re.match(call, name) and re.fullmatch(place, path) for call, place, _ in FAULTS)

    @staticmethod
    def values(exchange):
        """The JSON of an answer: one value, or one for each event of a stream."""
        if exchange.kind == "application/json":
            yield json.loads(exchange.body)
        elif exchange.kind == "text/event-stream":
            for line in exchange.body.decode(errors="replace").splitlines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    value = json.loads(line[6:])
                    if "error" not in value:
                        yield value

    def unseen(self):
        """Calls that were never answered with success."""
        return sorted(self.own.names() - self.seen)

    def report(self):
        once = list(dict.fromkeys(self.faults))
        return f"{len(once)} answers do not fit their description:\n" + "\n".join(once[:60])

    def fault(self, name, exchange, whose, text):
        self.faults.append(f"{name} → {exchange.status}, {whose}: {text}")
