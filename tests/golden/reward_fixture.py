"""Golden data of the reward model: what trl's RewardTrainer computes with the tiny Llama of `families_fixture.py`, as
transformers' model for sequence classification with peft's adapter and score head, on the pairs of random tokens of
`preference_fixture.py`: scores, loss, every gradient, and twenty optimizer steps; in fp64.

Run in the reference environment with trl and datasets beside it; writes below crates/engine/tests/fixtures/reward: the
adapter folder as peft saves it, and golden.safetensors.
"""

import shutil
from collections import defaultdict
from types import SimpleNamespace

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer

from preference_fixture import MODEL, ROOT, check_versions, draw_pairs, record_steps

OUT = ROOT / "crates/engine/tests/fixtures/reward"
PADDING = 0
# The cases: margin that the preferred answer must win by, weight of the pull towards 0.
CASES = {"plain": (None, None), "margin": (0.5, None), "centred": (None, 0.01)}


def load_base():
    model = AutoModelForSequenceClassification.from_pretrained(MODEL / "model", num_labels=1)
    model.config.pad_token_id = PADDING
    return model


def make_adapter():
    """The adapter's matrices are those of the language model's fixture, so that B is not zero."""
    torch.manual_seed(5)
    config = LoraConfig.from_pretrained(MODEL / "adapter")
    config.task_type = "SEQ_CLS"
    config.inference_mode = False
    model = get_peft_model(load_base(), config)
    matrices = load_file(MODEL / "adapter" / "adapter_model.safetensors")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in matrices.items():
            parameters[name.replace(".weight", ".default.weight")].copy_(value)
    shutil.rmtree(OUT / "adapter", ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(OUT / "adapter")
    (OUT / "adapter" / "README.md").unlink(missing_ok=True)


def load_model():
    model = PeftModel.from_pretrained(load_base(), OUT / "adapter", is_trainable=True)
    return model.double().eval()


def padded(pairs, margin):
    """As trl's collator makes it: the preferred answers, then the others."""
    rows = [torch.cat([p, w]) for p, w, _ in pairs] + [torch.cat([p, l]) for p, _, l in pairs]
    longest = max(len(row) for row in rows)
    out = {key: torch.zeros(len(rows), longest, dtype=torch.long) for key in ("input_ids", "attention_mask")}
    out["input_ids"].fill_(PADDING)
    for index, row in enumerate(rows):
        out["input_ids"][index, : len(row)] = row
        out["attention_mask"][index, : len(row)] = 1
    if margin is not None:
        out["margin"] = torch.full((len(pairs),), margin, dtype=torch.float64)
    return out


def trl_loss(model, inputs, centre):
    """The trainer's own function; what it needs of a trainer is so little that none is made."""
    same = lambda tensor: tensor
    here = SimpleNamespace(
        model=model, args=SimpleNamespace(center_rewards_coefficient=centre), _total_train_tokens=0, _tp_size=1,
        accelerator=SimpleNamespace(gather=same, gather_for_metrics=same),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    return RewardTrainer.compute_loss(here, model, inputs)


def trainable(model):
    """Named like the keys of peft's own file."""
    named = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name or "score.modules_to_save" in name:
            named[name.replace(".default", "").replace(".modules_to_save", "")] = parameter
    return named


def make(name, pairs, tensors):
    margin, centre = CASES[name]
    model = load_model()
    saved = load_file(OUT / "adapter" / "adapter_model.safetensors")
    parameters = trainable(model)
    assert parameters.keys() == saved.keys(), parameters.keys() ^ saved.keys()
    loss = lambda: trl_loss(model, padded(pairs, margin), centre)
    first = loss()
    first.backward()
    tensors[f"{name}.loss"] = first.detach().double()[None]
    for key, parameter in parameters.items():
        tensors[f"{name}.grad.{key}"] = parameter.grad.float().contiguous()
    with torch.no_grad():
        inputs = padded(pairs, None)
        tensors["scores"] = model(**inputs).logits.squeeze(-1).double()
        # The last token that is no padding may itself look like padding: one by one there is none.
        alone = [model(input_ids=row[mask.bool()][None], attention_mask=mask[mask.bool()][None]).logits.item()
                 for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
        assert torch.allclose(tensors["scores"], torch.tensor(alone).double(), atol=1e-9), alone
    model.zero_grad()
    record_steps(name, list(parameters.values()), loss, tensors)


def main():
    check_versions()
    torch.use_deterministic_algorithms(True)
    # Token 0 is padding here.
    pairs = [tuple(part.clamp_min(1) for part in pair) for pair in draw_pairs()]
    OUT.mkdir(parents=True, exist_ok=True)
    make_adapter()
    tensors = {
        "tokens": torch.cat([part for pair in pairs for part in pair]),
        "lengths": torch.tensor([[len(part) for part in pair] for pair in pairs]).flatten(),
    }
    for name in CASES:
        make(name, pairs, tensors)
    save_file(tensors, OUT / "golden.safetensors")


if __name__ == "__main__":
    main()
