"""Schemathesis makes requests from the description, good ones and bad ones: none may be answered with a fault of the
server, nor with a status, a media type or a body that is not described."""

import os
import re
import subprocess
import sys

import daemon

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# It made 13,886 when this was written: every keyword of every schema held and broken, and five more at random a call.
FEWEST_CASES = 10_000


def test_no_request_is_answered_with_a_surprise(tmp_path):
    folder = os.path.abspath(os.environ.get("FINETUNED_TEST_SCHEMATHESIS", ".deps/schemathesis"))
    assert os.path.isdir(folder), f"{folder} is missing: cargo xtask test fetches it"
    # A server of its own: it leaves much behind, and judges the answers itself.
    with daemon.Up("schemathesis key") as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.root_url}/openapi.json"]
        command += ["-H", f"Authorization: Bearer {server.key}", "--checks", CHECKS, "--phases", "coverage,fuzzing"]
        command += ["--mode", "all", "-n", "5", "--seed", "1", "--request-timeout", "30"]
        command += ["--suppress-health-check", "all", "--generation-database", "none", "--no-color"]
        environment = {**os.environ, "PYTHONPATH": folder}
        # It leaves a folder where it runs.
        run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", run.stdout)
    assert passed and passed[1] == passed[2] and int(passed[1]) > FEWEST_CASES, run.stdout[-2000:]
