"""One server for all tests that do not hurt it, and one tuned model for all that only look at it."""

import contextlib
import json
import urllib.request

import pytest

import contract
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


AGREEMENT = pytest.StashKey()


@pytest.fixture(scope="session")
def recorded(request):
    """`with recorded(up):` all that its clients are answered is held against the API's descriptions, at the end."""
    stash = request.config.stash

    @contextlib.contextmanager
    def record(up):
        if contract.jsonschema is None:
            print("answers are held against no description: cargo xtask setup")
            yield up
            return
        if AGREEMENT not in stash:
            with urllib.request.urlopen(f"{up.root_url}/openapi.json", timeout=60) as answer:
                stash[AGREEMENT] = contract.Contract(json.load(answer))
        recorder = contract.Recorder(up)
        yield up
        recorder.close()
        for exchange in recorder.exchanges:
            stash[AGREEMENT].check(exchange)

    return record


@pytest.fixture(scope="session")
def server(recorded):
    with daemon.Up(KEY) as up, recorded(up):
        yield up


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fails a run whose answers do not fit, and a whole run that has left out a call of the API."""
    agreement = session.config.stash.get(AGREEMENT, None)
    if agreement is None:
        return
    if agreement.faults:
        print(f"\n{agreement.report()}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    is_whole = [str(argument).rstrip("/").endswith("tests/sdk") for argument in session.config.args] == [True]
    if is_whole and not session.config.option.keyword and agreement.unseen():
        print(f"\ncalls that no test made with success: {', '.join(agreement.unseen())}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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
