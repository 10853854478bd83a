"""Starts, watches, kills and restarts real `finetuned` processes. No part of it is a stand-in."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import openai

START_SECONDS = 120
STOP_SECONDS = 60

# A killed worker is noticed within seconds.
SHORT_LEASES = {
    "FINETUNED_LEASE__TTL": "8s",
    "FINETUNED_LEASE__HEARTBEAT": "2s",
    "FINETUNED_LEASE__REAP_EVERY": "1s",
    "FINETUNED_LEASE__GRACE": "1s",
}
BINARY = os.environ.get("FINETUNED_BIN", "target/debug/finetuned")
MODELS = os.environ.get("FINETUNED_TEST_MODELS", ".deps/models")
NODE_CLIENT = pathlib.Path(os.environ.get("FINETUNED_TEST_NODE", ".deps/node")) / "openai/index.mjs"
BASE_MODEL = "smollm2-135m-instruct"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def data_folder():
    """A new folder that the database's unprivileged user may pass through."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="finetuned-sdk-"))
    folder.chmod(0o755)
    return folder


def eventually(probe, seconds, what):
    """Asks `probe` until it answers something true, and returns that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = probe()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


class Process:
    """One `finetuned COMMAND`, with its output in a file."""

    def __init__(self, folder, name, arguments, environment):
        self.log = folder / f"{name}.log"
        self.arguments = [BINARY, *map(str, arguments)]
        self.environment = {**os.environ, **SHORT_LEASES, **environment}
        self.popen = None

    def start(self):
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(
                self.arguments,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self):
        return self.popen.pid

    def is_running(self):
        return self.popen is not None and self.popen.poll() is None

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def terminate(self):
        """Asks it to end, and returns its exit code."""
        if not self.is_running():
            return self.popen.returncode if self.popen else 0
        self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {STOP_SECONDS} s:\n{self.tail()}")

    def tail(self, lines=40):
        text = self.log.read_text(errors="replace").splitlines()
        # A line per answered request would hide the rest.
        return "\n".join([line for line in text if '"answered"' not in line][-lines:])


class Server:
    """Something that serves the API on a port of its own."""

    def __init__(self, key, process, port):
        self.key = key
        self.process = process
        self.root_url = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.root_url}/v1"

    def start(self):
        self.process.start()
        self.wait_until_ready()

    def wait_until_ready(self):
        def probe():
            if not self.process.is_running():
                raise AssertionError(f"ended at start:\n{self.process.tail()}")
            return self.status("/readyz") == 200

        eventually(probe, START_SECONDS, "server ready")

    def processes(self):
        """Those whose logs explain a failure."""
        return [self.process]

    def status(self, path):
        try:
            with urllib.request.urlopen(self.root_url + path, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def client(self, **options):
        return openai.OpenAI(
            base_url=self.base_url, api_key=options.pop("api_key", self.key), timeout=120, **options
        )


class Up(Server):
    """`finetuned up` with a data folder of its own."""

    def __init__(self, key, environment=None):
        self.folder = data_folder()
        port = free_port()
        arguments = ["up", "--listen", f"127.0.0.1:{port}", "--data-dir", self.folder / "data"]
        arguments += ["--models-dir", MODELS]
        environment = {"FINETUNED_API_KEY": key, **(environment or {})}
        super().__init__(key, Process(self.folder, "up", arguments, environment), port)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def command(self, *arguments):
        """Runs one `finetuned …` beside the server to its end and returns what it printed."""
        done = subprocess.run(
            [BINARY, "--data-dir", self.folder / "data", *arguments],
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def close(self):
        try:
            code = self.process.terminate()
            assert code == 0, f"exit code {code}:\n{self.process.tail()}"
            left = [name for _, name in family(self.process.pid)]
            assert not left, f"left running: {left}"
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def processes():
    """(pid, parent, name) of every process, zombies left out."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            except (OSError, IndexError):
                continue
            state, parent = rest.split()[:2]
            if state != "Z":
                yield int(entry.name), int(parent), name


def family(pid):
    """(pid, name) of all processes below one."""
    everything = list(processes())
    found, above = [], [pid]
    while above:
        parent = above.pop()
        children = [(p, n) for p, up, n in everything if up == parent]
        found += children
        above += [p for p, _ in children]
    return found


def engine_pid(server):
    """The engine below a process. Linux cuts names at 15 characters."""
    return only(server, "finetuned-engin")


def postgres_pid(server):
    """The database's first process below a server, the parent of its others."""
    mine = {pid for pid, _ in family(server.process.pid)}
    postgres = {p: up for p, up, name in processes() if name == "postgres" and p in mine}
    [first] = [pid for pid, parent in postgres.items() if parent not in postgres]
    return first


def only(server, name):
    [pid] = [pid for pid, n in family(server.process.pid) if n == name]
    return pid


def peak_memory_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")
