"""A database and a server of their own, as separate processes, for measurements of the API."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

BINARY = os.environ["FINETUNED_BIN"]
FILL = pathlib.Path(BINARY).parent / "examples" / "fill"
KEY = "a-key-for-measurements"
START_SECONDS = 60


class Cluster:
    """`finetuned postgres` and `finetuned serve`; `with` ends both. `settings` are configuration keys."""

    def __init__(self, settings=None):
        self.settings = settings or {}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="finetuned-bench-"))
        # The database's unprivileged user must be able to pass through.
        self.folder.chmod(0o755)
        self.processes = []

    def __enter__(self):
        try:
            self.database_url = self._postgres()
            self._serve()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_):
        self._close()

    def _postgres(self):
        postgres = subprocess.Popen(
            [BINARY, "postgres", "--data-dir", self.folder / "postgres"], stdout=subprocess.PIPE,
            stderr=open(self.folder / "postgres.log", "wb"), text=True,
        )
        self.processes.append(postgres)
        return postgres.stdout.readline().strip()

    def _serve(self):
        self.port = free_port()
        environment = self.database_environment() | {
            "FINETUNED_DATABASE__URL": self.database_url, "FINETUNED_API_KEY": KEY,
            "FINETUNED_STORAGE__URL": f"file://{self.folder}/blobs", "RUST_LOG": "warn",
        }
        subprocess.run([BINARY, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
        self._start("serve", [], environment)

    def _start(self, command, arguments, environment):
        options = [f"--set={key}={value}" for key, value in self.settings.items()]
        log = self.folder / "server.log"
        self.server = subprocess.Popen(
            [BINARY, command, "--listen", f"127.0.0.1:{self.port}", *arguments, *options], env=environment,
            stdout=open(log, "wb"), stderr=subprocess.STDOUT,
        )
        self.processes.append(self.server)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), self.connection() as connection:
                if connection.status("/readyz") == 200:
                    return
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)

    def _close(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def database_environment(self):
        return os.environ | {"DATABASE_URL": self.database_url}

    def connection(self):
        return Connection(self.port)

    def resident_mib(self):
        """The server's physical memory now."""
        return self._memory_mib("VmRSS")

    def peak_mib(self):
        """The most that it has had since `reset_peak`."""
        return self._memory_mib("VmHWM")

    def reset_peak(self):
        pathlib.Path(f"/proc/{self.server.pid}/clear_refs").write_text("5")

    def _memory_mib(self, name):
        for line in pathlib.Path(f"/proc/{self.server.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"no {name} in /proc")


class Up(Cluster):
    """One `finetuned up` with all its parts, and without a model: the engine waits."""

    def __enter__(self):
        try:
            self.port = free_port()
            arguments = ["--data-dir", self.folder / "data", "--models-dir", self.folder / "no-models"]
            self._start("up", arguments, os.environ | {"FINETUNED_API_KEY": KEY, "RUST_LOG": "warn"})
        except BaseException:
            self._close()
            raise
        return self


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Connection:
    """One kept connection to the API."""

    def __init__(self, port):
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def get(self, path):
        self.http.request("GET", f"/v1{path}", headers={"Authorization": f"Bearer {KEY}"})
        answer = self.http.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"GET {path}: {answer.status} {body.decode()}")
        return json.loads(body)

    def status(self, path):
        self.http.request("GET", path)
        answer = self.http.getresponse()
        answer.read()
        return answer.status
