"""Schemathesis makes requests from the description, good ones and bad ones: none may be answered with a fault of the
server, nor with a status, a media type or a body that is not described."""

import os
import subprocess
import sys

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# The generator takes minutes over the nested choices of graders; tests/sdk/test_graders.py has those calls.
LEFT_OUT = "/fine_tuning/alpha/graders/"


def test_no_request_is_answered_with_a_surprise(server, tmp_path):
    folder = os.path.abspath(os.environ.get("FINETUNED_TEST_SCHEMATHESIS", ".deps/schemathesis"))
    assert os.path.isdir(folder), f"{folder} is missing: cargo xtask test fetches it"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.root_url}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {server.key}", "--checks", CHECKS, "--phases", "fuzzing"]
    command += ["--mode", "all", "-n", "5", "--seed", "1", "--request-timeout", "30"]
    command += ["--suppress-health-check", "all", "--generation-database", "none", "--no-color"]
    command += ["--exclude-path-regex", LEFT_OUT]
    environment = {**os.environ, "PYTHONPATH": folder}
    # It leaves a folder where it runs.
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=220)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout, run.stdout[-2000:]
