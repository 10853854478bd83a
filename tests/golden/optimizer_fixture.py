"""Golden data of AdamW with moments in 8 bits: four steps of bitsandbytes' own optimizer on the CPU, over tensors
above and below the size from which it uses codes.

Run in the reference environment (`cargo xtask parity` does); writes below crates/engine/tests/fixtures.
"""

import importlib.metadata
import pathlib
import sys

import torch
from bitsandbytes.optim import AdamW8bit
from safetensors.torch import save_file

VERSION = "0.50.2"
OUT = pathlib.Path(__file__).parents[2] / "crates/engine/tests/fixtures/optimizer"
LENGTHS = [4500, 300, 4096]
STEPS = 4

if __name__ == "__main__":
    if importlib.metadata.version("bitsandbytes") != VERSION:
        sys.exit(f"these fixtures need bitsandbytes {VERSION}")
    generator = torch.Generator().manual_seed(3)

    def spread(length):
        """Over many decades, as gradients are; bf16, which the file then needs half the room for."""
        size = 10 ** (torch.rand(length, generator=generator) * 6 - 6)
        return (torch.randn(length, generator=generator) * size).bfloat16()

    start = [torch.randn(length, generator=generator).bfloat16() for length in LENGTHS]
    gradients = [[spread(length) for length in LENGTHS] for _ in range(STEPS)]
    # A block that has had no gradient yet.
    for step in gradients[:2]:
        step[0][512:768] = 0
    parameters = [torch.nn.Parameter(values.float()) for values in start]
    optimizer = AdamW8bit(parameters, lr=1e-2, weight_decay=0.1)
    for step in gradients:
        for parameter, gradient in zip(parameters, step):
            parameter.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    states = [optimizer.state[parameter] for parameter in parameters]
    coded = [state for state in states if "absmax1" in state]
    small = [state for state in states if "absmax1" not in state]
    assert len(small) == 1

    def joined(states, key):
        return torch.cat([state[key].flatten() for state in states])

    OUT.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "values": torch.cat(start),
            "gradients": torch.cat([gradient for step in gradients for gradient in step]),
            "final": torch.cat([parameter.detach() for parameter in parameters]),
            "m": joined(small, "state1"),
            "v": joined(small, "state2"),
            "m.codes": joined(coded, "state1"),
            "v.codes": joined(coded, "state2"),
            "m.absmax": joined(coded, "absmax1"),
            "v.absmax": joined(coded, "absmax2"),
            "levels.signed": coded[0]["qmap1"].clone(),
            "levels.unsigned": coded[0]["qmap2"].clone(),
        },
        OUT / "golden.safetensors",
    )
    print(f"{STEPS} steps over tensors of {LENGTHS}")
