"""Golden data of the preference losses: what trl computes with the tiny Llama of `families_fixture.py` and its
adapter on pairs of random tokens: loss, every adapter gradient, log-probabilities, and twenty optimizer steps.
All of it in fp64, because sums of log-probabilities leave fp32 too few digits to compare losses by.

Run in the reference environment with trl and datasets beside it; writes below crates/engine/tests/fixtures.
DPO's losses and KTO's come from trl's own trainers; the other losses from trl's own loss functions, on log-probabilities
that are computed here answer by answer. ORPO's likelihood term is over the answer alone, as in its paper (trl
counts the prompt too). Label smoothing is the conservative form, which trl has for SimPO and no longer for DPO.
"""

import importlib.metadata
import pathlib
import sys
import tempfile
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

VERSIONS = {"torch": "2.11.0", "transformers": "5.", "peft": "0.21.0", "trl": "1.16.0"}
ROOT = pathlib.Path(__file__).parents[2]
MODEL = ROOT / "crates/model/tests/fixtures/llama-tied"
OUT = ROOT / "crates/engine/tests/fixtures/preference"
# Tokens of the prompt, of the preferred answer, of the other one.
PAIRS = [(17, 9, 12), (1, 3, 2), (40, 1, 30), (8, 21, 5)]
# The losses and their numbers: beta, label smoothing, gamma.
LOSSES = {
    "sigmoid": ("sigmoid", 0.1, 0.0, 0.0),
    "smoothed": ("sigmoid", 0.3, 0.2, 0.0),
    "hinge": ("hinge", 0.2, 0.0, 0.0),
    "ipo": ("ipo", 0.4, 0.0, 0.0),
    "orpo": ("orpo", 0.5, 0.0, 0.0),
    "simpo": ("simpo", 2.0, 0.1, 0.5),
    "kto": ("kto", 0.3, 0.0, 0.0),
}
# KTO's weights of good and of bad answers.
WEIGHTS = (1.5, 0.75)
STEPS = 20
VOCABULARY = 101


def check_versions():
    for package, wanted in VERSIONS.items():
        found = importlib.metadata.version(package)
        if not found.startswith(wanted):
            sys.exit(f"{package} {found} is installed; these fixtures need {wanted}")


def load_model():
    base = LlamaForCausalLM.from_pretrained(MODEL / "model")
    return PeftModel.from_pretrained(base, MODEL / "adapter", is_trainable=True).double().eval()


def draw_pairs():
    generator = torch.Generator().manual_seed(23)
    draw = lambda count: torch.randint(0, VOCABULARY, (count,), generator=generator)
    return [tuple(draw(count) for count in lengths) for lengths in PAIRS]


def log_p(model, prompt, answer):
    """Sum over the answer, one sequence at a time: no padding."""
    ids = torch.cat([prompt, answer])
    logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, answer[:, None]).sum()


def all_logs(model, pairs):
    """[pairs, 2] sums and token counts."""
    sums = [torch.stack([log_p(model, p, w), log_p(model, p, l)]) for p, w, l in pairs]
    counts = torch.tensor([[len(w), len(l)] for _, w, l in pairs])
    return torch.stack(sums), counts


def padded(rows, prefix=""):
    """As trl's collators make it."""
    longest = max(len(p) + len(a) for p, a in rows)
    out = {key: torch.zeros(len(rows), longest, dtype=torch.long)
           for key in ("input_ids", "attention_mask", "completion_mask")}
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        out["input_ids"][row, :end] = torch.cat([prompt, answer])
        out["attention_mask"][row, :end] = 1
        out["completion_mask"][row, len(prompt) : end] = 1
    return {prefix + key: value for key, value in out.items()}


def paired(pairs):
    """Preferred answers first."""
    return padded([(p, w) for p, w, _ in pairs] + [(p, l) for p, _, l in pairs])


def labelled(pairs):
    """The same answers one by one, and each input with the answer of the row before."""
    rows = [row for p, w, l in pairs for row in (((p, w), True), ((p, l), False))]
    # An order in which the mean over other inputs' answers is above 0, where it counts.
    rows, label = zip(*[rows[i * 3 % len(rows)] for i in range(len(rows))])
    others = [(rows[i][0], rows[i - 1][1]) for i in range(len(rows))]
    label = torch.tensor(label)
    return {**padded(rows), **padded(others, "KL_"), "label": label}


def tokenizer():
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0")


def trl_trainer(model, loss_type, beta, folder):
    rows = Dataset.from_list([{"prompt": "w2 w3 ", "chosen": "w4", "rejected": "w5"}])
    config = DPOConfig(
        output_dir=folder, loss_type=loss_type, beta=beta, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_dropout=True,
    )
    return DPOTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer())


def kto_trainer(model, beta, folder):
    row = {"prompt": "w2 w3 ", "completion": "w4", "label": True}
    config = KTOConfig(
        output_dir=folder, loss_type="kto", beta=beta, desirable_weight=WEIGHTS[0],
        undesirable_weight=WEIGHTS[1], report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_dropout=True, per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
    )
    rows = Dataset.from_list([row, {**row, "label": False}])
    return KTOTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer())


def loss_function(name, model, pairs, folder):
    """A function without arguments that computes the mean loss over the pairs, with its graph."""
    kind, beta, smoothing, gamma = LOSSES[name]
    here = SimpleNamespace(device="cpu")
    if kind in ("sigmoid", "hinge", "ipo", "kto") and smoothing == 0:
        if kind == "kto":
            trainer, inputs = kto_trainer(model, beta, folder), labelled(pairs)
        else:
            trainer, inputs = trl_trainer(model, kind, beta, folder), paired(pairs)
        trainer.model.eval()
        # Made because the adapter has values already; ours is compared with the model without any.
        trainer.model.delete_adapter("ref")
        return lambda: trainer._compute_loss(trainer.model, dict(inputs), False)
    if kind == "simpo":
        trl = SimpleNamespace(
            beta=beta, label_smoothing=smoothing, simpo_gamma=gamma, alpha=0.0, loss_type="simpo",
            accelerator=here,
        )

        def simpo():
            sums, counts = all_logs(model, pairs)
            means = sums / counts
            return CPOTrainer.cpo_loss(trl, means[:, 0], means[:, 1])[0].mean()

        return simpo
    if kind == "orpo":
        trl = SimpleNamespace(beta=beta, accelerator=here)

        def orpo():
            sums, counts = all_logs(model, pairs)
            means = sums / counts
            odds = ORPOTrainer.odds_ratio_loss(trl, means[:, 0], means[:, 1])[0]
            return (-means[:, 0] - odds).mean()

        return orpo

    def smoothed():
        sums, _ = all_logs(model, pairs)
        with torch.no_grad(), model.disable_adapter():
            reference, _ = all_logs(model, pairs)
        z = beta * ((sums - reference) @ torch.tensor([1.0, -1.0]).double())
        return (-(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)).mean()

    return smoothed


def adapter_tensors(model, what):
    """Named like the keys of peft's own file."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            tensor = parameter.grad if what == "grad" else parameter.detach()
            tensors[name.replace(".default", "")] = tensor.float().contiguous()
    return tensors


def make(name, pairs, tensors):
    # As in the file of the adapter, so that a difference in what was loaded would show.
    saved = load_file(MODEL / "adapter" / "adapter_model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        model = load_model()
        for key, value in adapter_tensors(model, "value").items():
            assert torch.equal(saved[key], value), key
        # trl trains what is trainable; a parameter that it froze would have no gradient.
        loss = loss_function(name, model, pairs, folder)
        first = loss()
        first.backward()
        tensors[f"{name}.loss"] = first.detach().double()[None]
        for key, gradient in adapter_tensors(model, "grad").items():
            tensors[f"{name}.grad.{key}"] = gradient
        model.zero_grad()
        trainable = [p for n, p in model.named_parameters() if "lora_" in n]
        record_steps(name, trainable, loss, tensors)


def record_steps(name, trainable, loss, tensors):
    """The losses and learning rates of `STEPS` AdamW steps with warm-up, decay and clipping."""
    optimizer = torch.optim.AdamW(trainable, lr=5e-3, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, STEPS)
    losses, rates = [], []
    for _ in range(STEPS):
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        losses.append(value.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    tensors[f"{name}.losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}.rates"] = torch.tensor(rates, dtype=torch.float64)
    print(f"{name}: {losses[0]:.6f} -> {losses[-1]:.6f}")


def main():
    check_versions()
    torch.use_deterministic_algorithms(True)
    pairs = draw_pairs()
    tensors = {
        "tokens": torch.cat([part for pair in pairs for part in pair]),
        "lengths": torch.tensor(PAIRS).flatten(),
    }
    model = load_model()
    with torch.no_grad():
        tensors["log_p"] = all_logs(model, pairs)[0].double()
        with model.disable_adapter():
            tensors["reference"] = all_logs(model, pairs)[0].double()
    for name in LOSSES:
        make(name, pairs, tensors)
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUT / "golden.safetensors")


if __name__ == "__main__":
    main()
