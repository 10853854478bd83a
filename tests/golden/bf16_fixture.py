"""Golden data of bf16: the cases of `families_fixture.py` and `nf4_fixture.py` computed by transformers with weights in
bf16 and peft's f32 adapter under autocast, to know how far that is from f32.

Run in the reference environment (`cargo xtask parity` does); adds `bf16.safetensors` to fixtures of `model`.
"""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from families_fixture import CASES, OUT, adapter_tensors, check_versions, loss_sum
from nf4_fixture import quantise_linears

NAMES = ["llama-tied", "qwen3", "gemma2", "phi3", "qlora"]


def load(name):
    folder = OUT / name / "model"
    attention = "eager" if "model_type" in CASES.get(name, {}) else "sdpa"
    if name != "qlora":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=attention)
    # The codes are those of the stored weights; what they stand for is rounded to bf16, as bitsandbytes does it
    # for this type of computation.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    quantise_linears(model)
    frequencies = model.model.rotary_emb.inv_freq.clone()
    model = model.bfloat16()
    model.model.rotary_emb.inv_freq = frequencies
    return model


def make(name):
    golden = load_file(OUT / name / "golden.safetensors")
    ids, labels = (golden[key].split(golden["lengths"].tolist()) for key in ("input_ids", "labels"))
    documents = list(zip(ids, labels))
    model = PeftModel.from_pretrained(load(name).eval(), OUT / name / "adapter", is_trainable=True)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert model.get_base_model().model.rotary_emb.inv_freq.dtype == torch.float32
    tensors = {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            logits = torch.cat([model(input_ids=ids[None]).logits[0] for ids, _ in documents])
            assert logits.dtype == torch.bfloat16
            tensors["logits"] = logits.contiguous()
            with model.disable_adapter():
                logits = [model(input_ids=ids[None]).logits[0] for ids, _ in documents]
            tensors["base_logits"] = torch.cat(logits).contiguous()
        loss, count = loss_sum(model, documents)
        (loss / count).backward()
    tensors["loss_sum"] = loss.detach().double()[None]
    tensors |= {f"grad.{key}": gradient for key, gradient in adapter_tensors(model, "grad").items()}
    save_file(tensors, OUT / name / "bf16.safetensors")

    def distance(key):
        return ((tensors[key].double() - golden[key].double()).norm() / golden[key].double().norm()).item()

    ours = torch.cat([tensors[k].flatten() for k in tensors if k.startswith("grad.")])
    theirs = torch.cat([golden[k].flatten() for k in tensors if k.startswith("grad.")])
    gradient = ((ours - theirs).norm() / theirs.norm()).item()
    relative = (tensors["loss_sum"] / golden["loss_sum"] - 1).abs().item()
    print(f"{name}: logits {distance('logits'):.2e}, base {distance('base_logits'):.2e}, "
          f"loss {relative:.2e}, gradient {gradient:.2e} from f32")


if __name__ == "__main__":
    check_versions()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name in sys.argv[1:] or NAMES:
        make(name)
