"""Golden data of prompt and prefix tuning: peft's virtual tokens before the tiny models of families_fixture.py and
nf4_fixture.py, which must have been made before.

Run in the reference environment (`cargo xtask parity` does, scripts in the order of their names); writes below
crates/model/tests/fixtures/virtual.
"""

import shutil
import sys

import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from families_fixture import CASES, DOCUMENTS, OUT, STEPS, check_versions, draw_batch
from nf4_fixture import quantise

FAMILIES = [
    "llama-wide", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2", "gemma2", "gemma3", "phi3", "qlora",
]
COUNT = 5


def dequantised(weight):
    """By definition: bitsandbytes' own loop for float32 on the CPU gives other numbers on some processors."""
    codes, state = quantise(weight)
    size = weight.numel()
    nibbles = torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], 1).view(-1)[:size].long()
    nested = state.state2.absmax.repeat_interleave(256)[: state.absmax.numel()]
    absmax = state.state2.code[state.absmax.long()] * nested + state.offset
    return (state.code[nibbles] * absmax.repeat_interleave(64)[:size]).view(weight.shape)


def quantise_linears(model):
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.copy_(dequantised(module.weight))


def base_model(family):
    attention = "eager" if "model_type" in CASES.get(family, {}) else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        OUT / family / "model", dtype=torch.float32, attn_implementation=attention
    )
    if family == "qlora":
        quantise_linears(model)
    return model.eval()


def config_of(kind, model):
    settings = model.config
    if kind == "prompt":
        return PromptTuningConfig(num_virtual_tokens=COUNT, task_type="CAUSAL_LM")
    # Said, because peft derives the width of heads from the hidden size.
    width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    heads = settings.num_key_value_heads
    return PrefixTuningConfig(
        num_virtual_tokens=COUNT, task_type="CAUSAL_LM", token_dim=width * heads, num_attention_heads=heads,
        num_layers=settings.num_hidden_layers,
    )


def logits_of(model, ids):
    return model(input_ids=ids[None]).logits[0, -len(ids):].float()


def loss_sum(model, documents):
    total, count = 0.0, 0
    for ids, labels in documents:
        shifted = labels[1:]
        total = total + torch.nn.functional.cross_entropy(
            logits_of(model, ids)[:-1], shifted, ignore_index=-100, reduction="sum"
        )
        count += int((shifted != -100).sum())
    return total, count


def make_case(kind, family):
    name = f"{kind}-{family}"
    generator = torch.Generator().manual_seed(23)
    torch.manual_seed(5)
    folder = OUT / "virtual" / name
    shutil.rmtree(folder, ignore_errors=True)
    base = base_model(family)
    model = get_peft_model(base, config_of(kind, base)).eval()
    (trained,) = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        trained.copy_(torch.randn(trained.shape, generator=generator) * 0.7)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)

    lengths = CASES.get(family, {}).get("documents", DOCUMENTS)
    documents = draw_batch(lengths, base.config.vocab_size, generator)
    prompt = documents[0][0][None]
    with torch.no_grad():
        greedy = model.generate(
            input_ids=prompt, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0,
            attention_mask=torch.ones_like(prompt),
        )
        tensors = {
            "input_ids": torch.cat([ids for ids, _ in documents]),
            "labels": torch.cat([labels for _, labels in documents]),
            "lengths": torch.tensor([len(ids) for ids, _ in documents]),
            "logits": torch.cat([logits_of(model, ids) for ids, _ in documents]).contiguous(),
            "greedy": greedy[0, prompt.shape[1]:].clone(),
        }
    loss, count = loss_sum(model, documents)
    (loss / count).backward()
    tensors["loss_sum"] = loss.detach().double()[None]
    tensors["grad"] = trained.grad.clone()
    model.zero_grad()
    optimizer = torch.optim.AdamW([trained], lr=2e-2, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, STEPS)
    losses, rates, norms = [], [], []
    for _ in range(STEPS):
        loss, count = loss_sum(model, documents)
        (loss / count).backward()
        norms.append(torch.nn.utils.clip_grad_norm_([trained], 1.0).item())
        losses.append(loss.item() / count)
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for key, values in [("losses", losses), ("rates", rates), ("norms", norms)]:
        tensors[key] = torch.tensor(values, dtype=torch.float64)
    tensors["final"] = trained.detach().clone()
    save_file(tensors, folder / "golden.safetensors")
    check_reload(family, folder, tensors)
    print(f"{name}: loss {losses[0]:.6f} -> {losses[-1]:.6f} in {STEPS} steps, {count} targets")


def check_reload(family, folder, tensors):
    """The adapter file is readable by peft itself, and computes the same."""
    model = PeftModel.from_pretrained(base_model(family), folder).eval()
    first = tensors["input_ids"][: tensors["lengths"][0]]
    with torch.no_grad():
        again = logits_of(model, first)
    torch.testing.assert_close(again, tensors["logits"][: len(first)])
    assert list(load_file(folder / "adapter_model.safetensors")) == ["prompt_embeddings"]


if __name__ == "__main__":
    check_versions()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for kind in ["prompt", "prefix"]:
        for family in FAMILIES:
            if not sys.argv[1:] or f"{kind}-{family}" in sys.argv[1:]:
                make_case(kind, family)
