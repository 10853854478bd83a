"""Makes the adapter folder of the PEFT tests (crates/weights/tests/fixtures/peft).

    python tests/golden/peft_fixture.py

Needs: torch, transformers 5, peft 0.21. Matrix values are 0, 1/8, 2/8, … in row-major order.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parents[2] / "crates/weights/tests/fixtures/peft"

if __name__ == "__main__":
    config = LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=16,
    )
    lora = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
    )
    base = LlamaForCausalLM(config)
    base.name_or_path = "tiny"
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            count = parameter.numel()
            parameter.data = (torch.arange(count) / 8).reshape(parameter.shape)
    model.save_pretrained(OUT)
    (OUT / "README.md").unlink(missing_ok=True)
