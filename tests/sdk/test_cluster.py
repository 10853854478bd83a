"""Server and worker as processes of their own, with keys made on the command line and storage on S3.

The database is a private Postgres; the S3 server is a real one from the package registry.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import urllib.request

import pytest

import daemon
import jobs

S3_PACKAGES = os.environ.get("FINETUNED_TEST_S3", ".deps/s3")
BUCKET = "finetuned-tests"


class Cluster(daemon.Server):
    """Postgres, S3, `finetuned serve` and `finetuned work`."""

    def __init__(self, folder, database_url, s3_url):
        self.folder = folder
        self.environment = {
            "FINETUNED_DATABASE__URL": database_url,
            "FINETUNED_STORAGE__URL": f"s3://{BUCKET}/prefix",
            "FINETUNED_STORAGE__ENDPOINT": s3_url,
            "FINETUNED_STORAGE__ALLOW_HTTP": "true",
            "FINETUNED_STORAGE__REGION": "us-east-1",
            "FINETUNED_STORAGE__ACCESS_KEY_ID": "tests",
            "FINETUNED_STORAGE__SECRET_ACCESS_KEY": "tests",
        }
        port = daemon.free_port()
        arguments = ["serve", "--listen", f"127.0.0.1:{port}"]
        process = daemon.Process(folder, "serve", arguments, self.environment)
        super().__init__("", process, port)
        self.worker = None

    def command(self, *arguments):
        """Runs one `finetuned …` to its end and returns what it printed."""
        done = subprocess.run(
            [daemon.BINARY, *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def prepare(self):
        self.command("migrate")
        self.command("models", "import", str(model_file()))
        self.key = secret(self.command("keys", "create", "--name", "tests"))
        token = secret(self.command("keys", "create", "--kind", "worker", "--name", "gpu 1"))
        # The worker knows servers and its token; neither the database nor the storage.
        environment = {
            "FINETUNED_WORKER__TOKEN": token,
            "FINETUNED_WORKER__WORK_DIR": str(self.folder / "work"),
        }
        arguments = ["work", "--server", self.root_url]
        self.worker = daemon.Process(self.folder, "work", arguments, environment)

    def start(self):
        super().start()
        self.worker.start()

    def processes(self):
        return [self.process, self.worker]


def secret(printed):
    """The key in what `keys create` printed: the last word of the line that holds it."""
    return next(word for word in printed.split()[::-1] if word.startswith("sk-"))


def model_file():
    [path] = pathlib.Path(daemon.MODELS).glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def cluster():
    folder = daemon.data_folder()
    with subprocess.Popen(
        [daemon.BINARY, "postgres", "--data-dir", folder / "database"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as postgres:
        database_url = postgres.stdout.readline().strip()
        s3, s3_url = start_s3(folder)
        cluster = Cluster(folder, database_url, s3_url)
        try:
            cluster.prepare()
            cluster.start()
            yield cluster
        finally:
            if cluster.worker:
                cluster.worker.terminate()
            cluster.process.terminate()
            s3.terminate()
            postgres.terminate()
    shutil.rmtree(folder, ignore_errors=True)


def start_s3(folder):
    port = daemon.free_port()
    with open(folder / "s3.log", "wb") as log:
        s3 = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, "PYTHONPATH": S3_PACKAGES},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"

    def make_bucket():
        try:
            request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
            return urllib.request.urlopen(request, timeout=5).status == 200
        except OSError:
            return False

    daemon.eventually(make_bucket, 60, "S3 server")
    return s3, url


@pytest.fixture(scope="module")
def client(cluster):
    return cluster.client(max_retries=8)


@pytest.fixture(scope="module")
def create(client):
    file = jobs.upload(client, jobs.jsonl(jobs.rows(18)))
    options = {"checkpoint_steps": 2, "learning_rate": 1e-3}
    return lambda: jobs.create(client, file.id, epochs=3, batch=6, options=options)


@pytest.fixture(scope="module")
def undisturbed(client, create):
    return jobs.result_csv(client, jobs.succeed(client, create().id))


def test_a_job_runs_from_and_to_s3(cluster, client, create, undisturbed):
    assert undisturbed.startswith("step,train_loss")
    model = next(m.id for m in client.models.list() if m.id.startswith("ft:"))
    assert jobs.ask(client, model).choices


def test_the_worker_is_killed(cluster, client, create, undisturbed):
    job = create()
    jobs.wait_for_step(client, job.id, 4)
    cluster.worker.kill()
    cluster.worker.start()
    job = jobs.succeed(client, job.id)
    assert jobs.result_csv(client, job) == undisturbed


def test_the_server_is_killed(cluster, client, create, undisturbed):
    job = create()
    jobs.wait_for_step(client, job.id, 4)
    cluster.process.kill()
    cluster.process.start()
    cluster.wait_until_ready()
    job = jobs.succeed(client, job.id)
    assert jobs.result_csv(client, job) == undisturbed


def test_a_worker_with_a_wrong_token_ends_with_a_reason(cluster):
    environment = {
        "FINETUNED_WORKER__TOKEN": "sk-wrong",
        "FINETUNED_WORKER__WORK_DIR": str(cluster.folder / "wrong"),
    }
    arguments = ["work", "--server", cluster.root_url]
    worker = daemon.Process(cluster.folder, "wrong", arguments, environment)
    worker.start()
    try:
        reason = "refuses this worker's token"
        daemon.eventually(lambda: reason in worker.tail(), 30, "the reason in the worker's log")
    finally:
        worker.kill()


def test_an_api_key_is_no_worker_token_and_the_reverse(cluster):
    api = urllib.request.Request(
        f"{cluster.root_url}/v1/models",
        headers={"Authorization": f"Bearer {cluster.worker.environment['FINETUNED_WORKER__TOKEN']}"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(api, timeout=10)
    assert caught.value.code in (401, 403)
