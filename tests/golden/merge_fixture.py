"""Golden data of merging: the adapted matrices of the tiny models of `families_fixture.py` and `adapters_fixture.py` as
peft's `merge_and_unload` leaves them, in fp32 whatever the base is stored in.

Run in the reference environment; writes below crates/weights/tests/fixtures/merge.
"""

import pathlib

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from families_fixture import OUT as MODELS, check_versions

OUT = pathlib.Path(__file__).parents[2] / "crates/weights/tests/fixtures/merge"
# Plain on fp32; ranks and alphas per module; weight decomposition with biases; fused layers, and biases, in bf16.
CASES = ["llama-tied", "rslora", "dora", "phi3", "qwen2"]


def main():
    check_versions()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        folder = MODELS / name
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
        keys = load_file(folder / "adapter" / "adapter_model.safetensors")
        prefix, suffix = "base_model.model.", ".lora_A.weight"
        names = [key.removeprefix(prefix).removesuffix(suffix) + ".weight" for key in keys if key.endswith(suffix)]
        save_file({n: merged[n].contiguous() for n in names}, OUT / f"{name}.safetensors")
        print(f"{name}: {len(names)} matrices")


if __name__ == "__main__":
    main()
