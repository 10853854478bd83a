"""One server for all tests that do not hurt it, and one tuned model for all that only look at it."""

import pytest

import daemon
import jobs

# Spaces on purpose: everything after the first space of the header is the key.
KEY = "a key with spaces"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Shows a failure with the ends of the logs when it happens: a run that is ended has no summary."""
    report = (yield).get_result()
    if not report.failed:
        return
    terminal = item.config.get_terminal_writer()
    terminal.line(f"\n{report.nodeid} ({report.when}, {report.duration:.0f} s)\n{report.longreprtext}")
    for value in item.funcargs.values():
        if isinstance(value, daemon.Server):
            for process in value.processes():
                terminal.line(f"--- {process.log.name}\n{process.tail()}")
    terminal.flush()


@pytest.fixture(scope="session")
def server():
    up = daemon.Up(KEY)
    try:
        up.start()
        yield up
    finally:
        up.close()


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def training_file(client):
    return jobs.upload(client, jobs.jsonl(jobs.rows(24)), "training rows.jsonl")


@pytest.fixture(scope="session")
def validation_file(client):
    return jobs.upload(client, jobs.jsonl(jobs.rows(10)), "validation.jsonl")


@pytest.fixture(scope="session")
def tuned(client, training_file, validation_file):
    """A finished job of two epochs, three steps each."""
    job = jobs.create(
        client,
        training_file.id,
        epochs=2,
        validation_file=validation_file.id,
        suffix="odd-answers",
        metadata={"purpose": "tests"},
        options={"learning_rate": 2e-3},
    )
    return jobs.succeed(client, job.id)
