"""Golden data of full fine-tuning: for each family, the gradient of every weight and twenty optimizer steps of the
whole model, over the weights and the batch that `families_fixture.py` has made.

Run in the reference environment (`cargo xtask parity` does, after that script); writes `full.safetensors` beside its
golden data. Weight decay is for matrices only.
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from families_fixture import CASES, OUT, STEPS, check_versions, loss_sum

# Final weights are kept of these; of the others, whose steps differ in nothing but the gradient, the losses.
WITH_WEIGHTS = {"llama-tied", "llama-wide", "gemma2"}


def make_case(name):
    folder = OUT / name
    # The small cases take the attention that all families have, as in the other fixture.
    attention = "eager" if "model_type" in CASES[name] else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation=attention
    ).eval()
    # Otherwise torch leaves out what comes to this token's row from below. Our batches have no padding, and in
    # many models the token is one that is also learned.
    model.get_input_embeddings().padding_idx = None
    golden = load_file(folder / "golden.safetensors")
    ids, labels = golden["input_ids"], golden["labels"]
    documents, start = [], 0
    for length in golden["lengths"].tolist():
        documents.append((ids[start : start + length], labels[start : start + length]))
        start += length

    tensors = {}
    loss, count = loss_sum(model, documents)
    (loss / count).backward()
    tensors["loss_sum"] = loss.detach().double()[None]
    # A tied head is the embedding's parameter, and named once.
    for key, parameter in model.named_parameters():
        tensors[f"grad.{key}"] = parameter.grad.clone()
    model.zero_grad()

    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, STEPS)
    losses, rates, norms = [], [], []
    for _ in range(STEPS):
        loss, count = loss_sum(model, documents)
        (loss / count).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        losses.append(loss.item() / count)
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for key, values in [("losses", losses), ("rates", rates), ("norms", norms)]:
        tensors[key] = torch.tensor(values, dtype=torch.float64)
    if name in WITH_WEIGHTS:
        for key, parameter in model.named_parameters():
            tensors[f"final.{key}"] = parameter.detach().clone()
    save_file(tensors, folder / "full.safetensors")
    print(f"{name}: loss {losses[0]:.6f} -> {losses[-1]:.6f} in {STEPS} steps")


if __name__ == "__main__":
    check_versions()
    torch.use_deterministic_algorithms(True)
    for name in sys.argv[1:] or CASES:
        make_case(name)
