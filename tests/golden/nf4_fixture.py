"""Golden data of 4-bit weights: what bitsandbytes makes of small tensors on the CPU, and a tiny Llama whose linear
layers it has quantised, under an adapter of peft.

Run in the reference environment (`cargo xtask parity` does); writes below the fixtures of `weights` and `model`.
"""

import importlib.metadata
import pathlib
import sys

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

from adapters_fixture import ALL, BIASED
from families_fixture import check_reload, check_versions, make_case

VERSION = "0.50.2"
OUT = pathlib.Path(__file__).parents[2] / "crates/weights/tests/fixtures/nf4"


def quantise(weight):
    return bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")


def dequantised(weight):
    """By definition: bitsandbytes' own function is wrong on CPUs with AVX-512 where rows end inside a block."""
    codes, state = quantise(weight)
    codes = codes.reshape(-1)
    levels = state.code[torch.stack([codes >> 4, codes & 15], 1).reshape(-1)[: weight.numel()].long()]
    nested = state.state2.absmax.repeat_interleave(256)[: state.absmax.numel()]
    absmax = state.state2.code[state.absmax.reshape(-1).long()] * nested + state.offset
    return (levels * absmax.repeat_interleave(64)[: weight.numel()]).view(weight.shape).to(weight.dtype)


def tensors_of(name, weight):
    codes, state = quantise(weight)
    return {
        f"{name}.weight": weight,
        f"{name}.codes": codes.reshape(-1).contiguous(),
        f"{name}.absmax": state.absmax.reshape(-1).contiguous(),
        f"{name}.nested_absmax": state.state2.absmax.clone(),
        f"{name}.offset": state.offset.reshape(1).clone(),
        f"{name}.dequantised": dequantised(weight).float().contiguous(),
        "map": state.state2.code.clone(),
    }


def small_tensors(generator):
    def normal(*shape):
        return torch.randn(shape, generator=generator) * 0.05

    some = normal(20, 96)
    # A block of zeros, one value alone, ties between levels and huge and tiny blocks.
    some[2, :64] = 0
    some[4] = 0
    some[4, 3] = 1e-3
    some[6] *= 1e4
    some[8] *= 1e-6
    return {
        "single": some,
        # More than one block of absmax values, the last one short; bf16 as checkpoints are.
        "half": normal(200, 128).bfloat16(),
        # Weights that do not fill the last block.
        "short": normal(6, 50),
    }


def quantise_linears(model):
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.copy_(dequantised(module.weight))


if __name__ == "__main__":
    check_versions()
    found = importlib.metadata.version("bitsandbytes")
    if found != VERSION:
        sys.exit(f"bitsandbytes {found} is installed; these fixtures need {VERSION}")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    tensors = {}
    for name, weight in small_tensors(torch.Generator().manual_seed(3)).items():
        tensors.update(tensors_of(name, weight))
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUT / "nf4.safetensors")
    # The folder holds the weights from before quantisation; all numbers are from after it.
    make_case("qlora", dict(config=BIASED, targets=ALL, alpha=5, before_adapter=quantise_linears))
    check_reload("qlora")
