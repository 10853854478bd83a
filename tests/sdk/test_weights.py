"""Weights out of the server: the adapter as PEFT has it, and a merged model that answers as the tuned one does."""

import hashlib
import json
import struct
import tarfile
import urllib.error
import urllib.request

import pytest

import jobs
from daemon import BASE_MODEL


def download(server, model, query=""):
    """The tar stream of a model's files."""
    request = urllib.request.Request(f"{server.base_url}/models/{model}/weights{query}")
    request.add_header("Authorization", f"Bearer {server.key}")
    return urllib.request.urlopen(request, timeout=120)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_an_adapter_is_downloaded_in_pefts_format(server, tuned):
    with download(server, tuned.fine_tuned_model) as answer:
        assert answer.headers["Content-Disposition"].startswith('attachment; filename="ft-smollm2-135m-instruct')
        length = int(answer.headers["Content-Length"])
        content = {}
        with tarfile.open(fileobj=answer, mode="r|") as tar:
            for member in tar:
                content[member.name] = tar.extractfile(member).read()
    assert set(content) == {"adapter_config.json", "adapter_model.safetensors"}
    assert length == sum(512 + -(-len(c) // 512) * 512 for c in content.values()) + 1024
    config = json.loads(content["adapter_config.json"])
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 16, BASE_MODEL)
    weights = content["adapter_model.safetensors"]
    header = json.loads(weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]])
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in header


def test_a_merged_model_is_a_base_model_that_answers_alike(server, client, tuned, tmp_path):
    model = tuned.fine_tuned_model
    streamed = tmp_path / "streamed"
    with download(server, model, "?merged=true") as answer, tarfile.open(fileobj=answer, mode="r|") as tar:
        tar.extractall(streamed, filter="data")
    exported = tmp_path / "exported"
    server.command("models", "export", model, "--out", exported, "--merged")
    names = sorted(path.name for path in streamed.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert names == sorted(path.name for path in exported.iterdir())
    assert all(sha256(streamed / name) == sha256(exported / name) for name in names)
    server.command("models", "import", exported, "--name", "merged-zebra")
    try:
        questions = ["What colour is snow 2?", "What is the capital of France?"]
        answers = {
            m: [jobs.ask(client, m, q).choices[0].message.content for q in questions] for m in (model, "merged-zebra")
        }
        assert answers[model] == answers["merged-zebra"]
        assert "zebra" in answers[model][0]
    finally:
        server.command("models", "remove", "merged-zebra")


@pytest.mark.parametrize(
    "model, query, status, param",
    [("ft:unknown", "", 404, "model"), (None, "?merged=perhaps", 400, "merged")],
)
def test_what_cannot_be_downloaded_says_so(server, tuned, model, query, status, param):
    with pytest.raises(urllib.error.HTTPError) as caught:
        download(server, model or tuned.fine_tuned_model, query)
    assert caught.value.code == status
    assert json.load(caught.value)["error"]["param"] == param
