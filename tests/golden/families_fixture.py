"""Golden data of the model families: tiny random models, an adapter made by peft, and what transformers and peft
compute with them: logits, loss, every adapter gradient, twenty optimizer steps, greedy tokens.

Run in the reference environment (`cargo xtask parity` does); writes below crates/model/tests/fixtures, all cases or
those whose names are given.
Versions are checked, because the numbers depend on them.
"""

import importlib.metadata
import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, get_linear_schedule_with_warmup

VERSIONS = {"torch": "2.11.0", "transformers": "5.", "peft": "0.21.0"}
STEPS = 20
OUT = pathlib.Path(__file__).parents[2] / "crates/model/tests/fixtures"

CASES = {
    # Tied head, grouped queries, default rotary frequencies.
    "llama-tied": dict(
        config=dict(
            vocab_size=101, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        alpha=8,
    ),
    # Untied head, biases, wide heads, Llama 3.1's frequencies, some targets only.
    "llama-wide": dict(
        config=dict(
            vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=3, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
            rms_norm_eps=1e-6, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        ),
        targets=["q_proj", "v_proj", "up_proj", "down_proj"],
        alpha=3,
    ),
}
# Lengths of the documents of a batch, and how many of the last tokens are targets.
DOCUMENTS = [(23, 9), (2, 1), (71, 30), (12, 0), (40, 39)]
RANK = 4

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def family(model_type, targets=ALL, **config):
    """A case of a few kilobytes; weights are stored as bfloat16."""
    sizes = dict(
        vocab_size=53, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    return dict(
        model_type=model_type, config=sizes | config, targets=targets, alpha=3, rank=2, half=True,
        documents=[(23, 9), (2, 1), (30, 14)],
    )


CASES |= {
    # Biases of q, k and v; a window in the upper layer; frequencies of yarn.
    "qwen2": family(
        "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1,
        tie_word_embeddings=True, max_position_embeddings=1024,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
    # Heads wider than their share of the hidden size, a window in every layer.
    "mistral": family("mistral", head_dim=12, sliding_window=7),
    # Norms of queries and keys, head by head.
    "qwen3": family("qwen3", head_dim=12, tie_word_embeddings=True),
    # A layer without rotation.
    "smollm3": family("smollm3", no_rope_layers=[1, 0]),
    # Four multipliers.
    "granite": family(
        "granite", embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2,
        logits_scaling=2.0, tie_word_embeddings=True,
    ),
    # Norms behind the branches only, and of all queries and all keys together.
    "olmo2": family("olmo2", num_key_value_heads=4),
    # Norms on both sides of each branch, scores and logits capped, a window in every other layer.
    "gemma2": family(
        "gemma2", head_dim=12, sliding_window=6, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0, query_pre_attn_scalar=10, num_hidden_layers=3,
    ),
    # One table of rotation for layers with a window, another for those without.
    "gemma3": family(
        "gemma3_text", head_dim=12, sliding_window=6, query_pre_attn_scalar=10,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        },
    ),
    # Fused layers; three quarters of each head rotated, with other frequencies in long texts.
    "phi3": family(
        "phi3", targets=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], sliding_window=20,
        tie_word_embeddings=True, original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 3.0, 6.0],
        },
    ),
}


def check_versions():
    for package, wanted in VERSIONS.items():
        found = importlib.metadata.version(package)
        if not found.startswith(wanted):
            sys.exit(f"{package} {found} is installed; these fixtures need {wanted}")


def draw_batch(lengths, vocab, generator):
    documents = []
    for length, targets in lengths:
        ids = torch.randint(0, vocab, (length,), generator=generator)
        labels = ids.clone()
        labels[: length - targets] = -100
        documents.append((ids, labels))
    return documents


def loss_sum(model, documents):
    """Sum of the loss over targets and their number, document by document: no padding, no mask."""
    total, count = 0.0, 0
    for ids, labels in documents:
        logits = model(input_ids=ids[None]).logits[0]
        shifted = labels[1:]
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1].float(), shifted, ignore_index=-100, reduction="sum"
        )
        count += int((shifted != -100).sum())
    return total, count


def adapter_tensors(model, what):
    """Named like the keys of peft's own file."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            tensor = parameter.grad if what == "grad" else parameter.detach()
            name = name.replace("_vector.default.weight", "_vector").replace(".default", "")
            tensors[name] = tensor.clone().contiguous()
    return tensors


def make_case(name, case):
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(11)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    settings = AutoConfig.for_model(case.get("model_type", "llama"), **case["config"])
    # The small cases take the attention that all families have, with caps and windows.
    attention = "eager" if "model_type" in case else "sdpa"
    base = AutoModelForCausalLM.from_config(settings, attn_implementation=attention).float().eval()
    with torch.no_grad():
        for parameter in base.parameters():
            # Wider than the usual start, so that every part of the network matters.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if case.get("half"):
                parameter.copy_(parameter.bfloat16())
    # Not `base.bfloat16()`: that would round the rotary frequencies too.
    kind = torch.bfloat16 if case.get("half") else torch.float32
    stored = {name: tensor.to(kind) for name, tensor in base.state_dict().items()}
    if settings.tie_word_embeddings:
        del stored["lm_head.weight"]
    base.save_pretrained(folder / "model", state_dict=stored)
    case.get("before_adapter", lambda model: None)(base)
    config = LoraConfig(
        r=case.get("rank", RANK), lora_alpha=case["alpha"], lora_dropout=0.0, target_modules=case["targets"],
        task_type="CAUSAL_LM", **case.get("lora", {}),
    )
    model = get_peft_model(base, config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)

    documents = draw_batch(case.get("documents", DOCUMENTS), case["config"]["vocab_size"], generator)
    tensors = {
        "input_ids": torch.cat([ids for ids, _ in documents]),
        "labels": torch.cat([labels for _, labels in documents]),
        "lengths": torch.tensor([len(ids) for ids, _ in documents]),
    }
    with torch.no_grad():
        outputs = [model(input_ids=ids[None]).logits[0].float() for ids, _ in documents]
        tensors["logits"] = torch.cat(outputs).contiguous()
        with model.disable_adapter():
            outputs = [model(input_ids=ids[None]).logits[0].float() for ids, _ in documents]
            tensors["base_logits"] = torch.cat(outputs).contiguous()
        prompt = documents[0][0][None]
        greedy = model.generate(
            prompt, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0,
            # Without it, tokens of the prompt that are the padding's are not seen.
            attention_mask=torch.ones_like(prompt),
        )
        tensors["greedy"] = greedy[0, prompt.shape[1]:].clone()

    loss, count = loss_sum(model, documents)
    (loss / count).backward()
    tensors["loss_sum"] = loss.detach().double()[None]
    for key, gradient in adapter_tensors(model, "grad").items():
        tensors[f"grad.{key}"] = gradient
    model.zero_grad()

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-2, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, STEPS)
    losses, rates, norms = [], [], []
    for _ in range(STEPS):
        loss, count = loss_sum(model, documents)
        (loss / count).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trainable, 1.0).item())
        losses.append(loss.item() / count)
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for key, values in [("losses", losses), ("rates", rates), ("norms", norms)]:
        tensors[key] = torch.tensor(values, dtype=torch.float64)
    for key, value in adapter_tensors(model, "value").items():
        tensors[f"final.{key}"] = value
    save_file(tensors, folder / "golden.safetensors")
    print(f"{name}: loss {losses[0]:.6f} -> {losses[-1]:.6f} in {STEPS} steps, {count} targets")


def check_reload(name):
    """The adapter file is readable by peft itself: the fixture is what users have."""
    base = AutoModelForCausalLM.from_pretrained(OUT / name / "model")
    PeftModel.from_pretrained(base, OUT / name / "adapter")
    json.loads((OUT / name / "adapter" / "adapter_config.json").read_text())


if __name__ == "__main__":
    check_versions()
    torch.use_deterministic_algorithms(True)
    for name in sys.argv[1:] or CASES:
        make_case(name, CASES[name])
        check_reload(name)
