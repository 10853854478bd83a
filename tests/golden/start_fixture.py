"""Golden data of continued training: what peft, transformers and trl compute when a job goes on from a tuned model.

* `first`, `second`: six steps from an adapter with rank-stabilised scale and ranks per module; the result saved, loaded
  again, and six more steps with a fresh optimizer and another learning rate. Losses, and the adapters at both ends.
* `sigmoid`, `hinge`, `ipo`, `kto`: twenty steps from the adapter of `families_fixture.py`. The reference is the model
  that they start from: trl makes it as a frozen adapter beside the trained one.

Run in the reference environment with trl and datasets beside it; writes below crates/engine/tests/fixtures.
"""

import tempfile

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, get_linear_schedule_with_warmup

from preference_fixture import (
    LOSSES, ROOT, adapter_tensors, check_versions, draw_pairs, kto_trainer, labelled, load_model, paired,
    record_steps, trl_trainer,
)

SUPERVISED = ROOT / "crates/model/tests/fixtures/rslora"
OUT = ROOT / "crates/engine/tests/fixtures/start"
# Tokens of the rows, before the one that ends each.
ROWS = [9, 1, 30, 17]
END = 1
STEPS, WARM_UP = 6, 1
# The learning rates of the two jobs.
RATES = {"first": 5e-3, "second": 2e-3}
VOCABULARY = 61


def draw_rows():
    generator = torch.Generator().manual_seed(41)
    # Two tokens are words that mean something to the test's tokenizer.
    return [torch.randint(2, VOCABULARY, (count,), generator=generator) for count in ROWS]


def supervised(name, model, rows, tensors):
    trainable = [p for n, p in model.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(trainable, lr=RATES[name], weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, WARM_UP, STEPS)
    losses = []
    for _ in range(STEPS):
        total, count = 0.0, 0
        for row in rows:
            ids = torch.cat([row, torch.tensor([END])])
            logs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            total = total - logs.gather(1, ids[1:, None]).sum()
            count += len(row)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        losses.append(total.item() / count)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    tensors[f"{name}.losses"] = torch.tensor(losses, dtype=torch.float64)
    for key, value in adapter_tensors(model, "value").items():
        tensors[f"{name}.{key}"] = value.clone()
    print(f"{name}: {losses[0]:.6f} -> {losses[-1]:.6f}")


def load(adapter):
    base = LlamaForCausalLM.from_pretrained(SUPERVISED / "model", dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()


def two_jobs(tensors):
    rows = draw_rows()
    tensors["tokens"], tensors["lengths"] = torch.cat(rows), torch.tensor(ROWS)
    model = load(SUPERVISED / "adapter")
    supervised("first", model, rows, tensors)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        supervised("second", load(folder), rows, tensors)


def preferences(tensors):
    pairs = draw_pairs()
    for name in ("sigmoid", "hinge", "ipo", "kto"):
        kind, beta, _, _ = LOSSES[name]
        with tempfile.TemporaryDirectory() as folder:
            model = load_model()
            if kind == "kto":
                trainer, inputs = kto_trainer(model, beta, folder), labelled(pairs)
            else:
                trainer, inputs = trl_trainer(model, kind, beta, folder), paired(pairs)
            # The frozen copy that trl has made must be the start, in the numbers of the rest.
            assert "ref" in trainer.model.peft_config
            trainer.model.double().eval()
            trainable = [p for n, p in trainer.model.named_parameters() if "lora_" in n and ".default" in n]
            loss = lambda: trainer._compute_loss(trainer.model, dict(inputs), False)
            record_steps(name, trainable, loss, tensors)


def main():
    check_versions()
    torch.use_deterministic_algorithms(True)
    tensors = {}
    two_jobs(tensors)
    preferences(tensors)
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUT / "golden.safetensors")


if __name__ == "__main__":
    main()
