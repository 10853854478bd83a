"""OpenAI's Node client walks the whole API, like a user of that language would."""

import os
import pathlib
import shutil
import subprocess

import pytest

from daemon import BASE_MODEL

CLIENT = pathlib.Path(os.environ.get("FINETUNED_TEST_NODE", ".deps/node")) / "openai/index.mjs"
WALK = pathlib.Path(__file__).with_name("walk.mjs")


@pytest.mark.skipif(shutil.which("node") is None, reason="this machine has no Node.js")
def test_the_node_client_walks_every_call(server):
    assert CLIENT.is_file(), f"{CLIENT} is missing: cargo xtask setup"
    command = ["node", WALK, server.base_url, server.key, BASE_MODEL, CLIENT.absolute()]
    walked = subprocess.run(command, capture_output=True, text=True, timeout=220)
    assert walked.returncode == 0, walked.stdout + walked.stderr
    assert walked.stdout.endswith("walked: models\n")
