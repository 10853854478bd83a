"""What the way from the engine to the client adds to each token of a streamed chat: `finetuned up` with an
engine that stamps its tokens, and clients that compare the stamps with the time at which they arrive."""

import http.client
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time

BINARY = os.environ["FINETUNED_BIN"]
MODELS = os.environ.get("FINETUNED_TEST_MODELS", ".deps/models")
MODEL = "smollm2-135m-instruct"
ENGINE = pathlib.Path(__file__).resolve().with_name("api_chat_engine.py")
KEY = "a-key-for-measurements"
TOKENS = 300
START_SECONDS = 120
PROMISE_MS = 2.0


def measure(_options=None):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="finetuned-bench-"))
    folder.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    up = subprocess.Popen(
        [BINARY, "up", "--listen", f"127.0.0.1:{port}", "--data-dir", folder / "data", "--models-dir", MODELS,
         f"--set=worker.engine={ENGINE}"],
        env=os.environ | {"FINETUNED_API_KEY": KEY, "RUST_LOG": "warn"},
        stdout=open(folder / "up.log", "wb"), stderr=subprocess.STDOUT,
    )
    try:
        stream(port, 1, START_SECONDS)
        return figures(port)
    except BaseException:
        print((folder / "up.log").read_text()[-4000:])
        raise
    finally:
        up.terminate()
        up.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def figures(port):
    result = {}
    print(f"{'streams':>7} {'median':>10} {'95 %':>10} {'slowest':>10}   added to a token")
    for streams in (1, 8):
        added = []
        clients = [threading.Thread(target=lambda: added.extend(stream(port, TOKENS))) for _ in range(streams)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert len(added) == streams * TOKENS, f"{len(added)} tokens arrived"
        added.sort()
        row = {"median_ms": statistics.median(added), "p95_ms": added[int(0.95 * len(added))], "max_ms": added[-1]}
        print(f"{streams:>7}" + "".join(f" {value:>7.3f} ms" for value in row.values()))
        result[f"{streams} at once"] = {name: round(value, 3) for name, value in row.items()}
    alone = result["1 at once"]["p95_ms"]
    print(f"promise: at most {PROMISE_MS} ms; {'kept' if alone <= PROMISE_MS else 'BROKEN'} ({alone} ms at 95 %)")
    return result


def stream(port, tokens, patience=0):
    """Milliseconds between the saying and the arrival of each token."""
    deadline = time.monotonic() + patience
    body = json.dumps({
        "model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": tokens})
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            if response.status == 200:
                break
            problem = response.read().decode()
        except OSError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise RuntimeError(problem)
        time.sleep(0.2)
    added = []
    while line := response.readline():
        now = time.monotonic_ns()
        if line.startswith(b"data: {"):
            text = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if text:
                added.append((now - int(text)) / 1e6)
    return added


if __name__ == "__main__":
    print(json.dumps({"name": "api_chat", "added_per_token": measure()}))
