"""OpenAI's Node client walks the whole API, like a user of that language would."""

import pathlib
import shutil
import subprocess

import pytest

from daemon import BASE_MODEL, NODE_CLIENT

WALK = pathlib.Path(__file__).with_name("walk.mjs")


@pytest.mark.skipif(shutil.which("node") is None, reason="this machine has no Node.js")
def test_the_node_client_walks_every_call(server):
    assert NODE_CLIENT.is_file(), f"{NODE_CLIENT} is missing: `cargo xtask test` fetches it with npm"
    command = ["node", WALK, server.base_url, server.key, BASE_MODEL, NODE_CLIENT.absolute()]
    walked = subprocess.run(command, capture_output=True, text=True, timeout=220)
    assert walked.returncode == 0, walked.stdout + walked.stderr
    assert walked.stdout.endswith("walked: models\n")
