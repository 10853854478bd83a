"""Processes are killed in the middle of a run; the job ends as if nothing had happened.

The result file of every disturbed run must equal that of an undisturbed one with the same seed, so a step
that was lost, done twice or begun with other numbers shows.
"""

import os
import signal

import pytest

import daemon
import jobs

EPOCHS, BATCH, ROWS = 3, 6, 18  # nine steps, a few seconds
KILL_AT = 4


@pytest.fixture(scope="module")
def server():
    with daemon.Up("fault key") as up:
        yield up


@pytest.fixture(scope="module")
def client(server):
    # The SDK's own retries bridge the moments without a server.
    return server.client(max_retries=8)


@pytest.fixture(scope="module")
def rows_file(client):
    return jobs.upload(client, jobs.jsonl(jobs.rows(ROWS)))


@pytest.fixture(scope="module")
def create(client, rows_file):
    def create():
        options = {"checkpoint_steps": 2, "learning_rate": 1e-3}
        return jobs.create(client, rows_file.id, epochs=EPOCHS, batch=BATCH, options=options)

    return create


@pytest.fixture(scope="module")
def undisturbed(client, create):
    return jobs.result_csv(client, jobs.succeed(client, create().id))


@pytest.fixture
def running(client, create, undisturbed):
    """A job in mid-run."""
    job = create()
    jobs.wait_for_step(client, job.id, KILL_AT)
    return job


def assert_as_if_nothing_happened(client, job, undisturbed, is_resumed=True):
    job = jobs.succeed(client, job.id)
    assert jobs.result_csv(client, job) == undisturbed
    assert jobs.ask(client, job.fine_tuned_model).choices
    told = jobs.texts(client, job.id)
    if is_resumed:
        # From a checkpoint, not from the start.
        assert any(text.startswith("Fine-tuning job started again after step") for text in told), told
    assert told.count("The job has successfully completed") == 1
    numbers = jobs.steps(client, job.id)
    assert sorted(set(numbers)) == list(range(1, 10))


def test_the_engine_is_killed(server, client, running, undisturbed):
    os.kill(daemon.engine_pid(server), signal.SIGKILL)
    assert_as_if_nothing_happened(client, running, undisturbed)
    assert server.process.is_running()


def test_a_run_from_a_tuned_model_ends_with_the_same_bytes(server, client, undisturbed, tmp_path):
    start = next(model.id for model in client.models.list() if model.id.startswith("ft:"))
    pair = {
        "input": {"messages": [{"role": "user", "content": "What colour is snow?"}]},
        "preferred_output": [{"role": "assistant", "content": "zebra"}],
        "non_preferred_output": [{"role": "assistant", "content": "white as ever"}],
    }
    file = jobs.upload(client, jobs.jsonl([pair] * 12))
    wish = {"n_epochs": 1, "batch_size": 2, "beta": 0.5}

    def create():
        return client.fine_tuning.jobs.create(
            model=start,
            training_file=file.id,
            seed=7,
            method={"type": "dpo", "dpo": {"hyperparameters": wish}},
            extra_body={"finetuned": {"checkpoint_steps": 2, "learning_rate": 1e-4}},
        )

    straight = jobs.succeed(client, create().id)
    broken = create()
    jobs.wait_for_step(client, broken.id, 3)
    os.kill(daemon.engine_pid(server), signal.SIGKILL)
    broken = jobs.succeed(client, broken.id)
    assert jobs.result_csv(client, broken) == jobs.result_csv(client, straight)
    assert any(text.startswith("Fine-tuning job started again after step") for text in jobs.texts(client, broken.id))
    for name, job in (("straight", straight), ("broken", broken)):
        server.command("models", "export", job.fine_tuned_model, "--out", tmp_path / name)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("straight", "broken")]
    assert weights[0] == weights[1]


def test_postgres_is_killed(server, client, running, undisturbed):
    os.kill(daemon.postgres_pid(server), signal.SIGKILL)
    # The run itself goes on meanwhile; what it has to say waits.
    assert_as_if_nothing_happened(client, running, undisturbed, is_resumed=False)
    assert server.process.is_running()


def test_server_and_worker_are_killed_together(server, client, running, undisturbed):
    orphans = [pid for pid, _ in daemon.family(server.process.pid)]
    server.process.kill()

    def all_ended():
        alive = {pid for pid, _, _ in daemon.processes()}
        return not alive.intersection(orphans)

    daemon.eventually(all_ended, 30, "engine and Postgres end with their parent")
    server.start()
    assert_as_if_nothing_happened(client, running, undisturbed)


def test_a_polite_end_checkpoints_and_a_restart_resumes(server, client, running, undisturbed):
    assert server.process.terminate() == 0, server.process.tail()
    assert server.status("/healthz") is None
    server.start()
    assert_as_if_nothing_happened(client, running, undisturbed)


def test_a_file_in_upload_when_the_server_dies_leaves_no_file(server, client):
    before = {f.id for f in client.files.list()}

    def endless():
        yield b'{"messages": ['
        server.process.kill()
        yield b" " * 1_000_000

    request = client._client.build_request(
        "POST",
        server.base_url + "/files",
        headers={
            "Authorization": f"Bearer {server.key}",
            "Content-Type": "multipart/form-data; boundary=x",
        },
        content=multipart(endless()),
    )
    with pytest.raises(Exception):
        client._client.send(request)
    server.start()
    assert {f.id for f in client.files.list()} == before


def multipart(parts):
    yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    yield from parts
    yield b"\r\n--x--\r\n"
