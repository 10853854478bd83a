"""Golden data of the adapter methods: the tiny Llama of families_fixture.py under other adapters of peft.

Run in the reference environment (`cargo xtask parity` does); writes below crates/model/tests/fixtures.
"""

import torch

from families_fixture import CASES as LLAMA, check_reload, check_versions, make_case

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL = dict(LLAMA["llama-tied"]["config"], num_hidden_layers=2, vocab_size=61)
BIASED = dict(LLAMA["llama-wide"]["config"], vocab_size=59)

CASES = {
    # Scale alpha/sqrt(r); ranks and alphas of single modules, by name and by path.
    "rslora": dict(
        config=SMALL, targets=ALL, alpha=6,
        lora=dict(
            use_rslora=True,
            # No two keys fit one module: peft sorts them on saving, and then takes another one.
            rank_pattern={"layers.1.self_attn.k_proj": 2, "0.self_attn.k_proj": 7, "down_proj": 1},
            alpha_pattern={"model.layers.0.mlp.up_proj": 2, "o_proj": 1.5},
        ),
    ),
    # Weight decomposition, with biases, on some targets: q and v share a product with an unadapted k.
    "dora": dict(
        config=BIASED, targets=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], alpha=3,
        lora=dict(use_dora=True, rank_pattern={"v_proj": 3}),
    ),
}

if __name__ == "__main__":
    check_versions()
    torch.use_deterministic_algorithms(True)
    for name, case in CASES.items():
        make_case(name, case)
        check_reload(name)
