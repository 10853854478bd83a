"""The other side of `dpo.py`: trl's DPOTrainer with peft, on rows that are tokens already. One JSON argument."""

import json
import sys
import time

import pyarrow
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from train_peft import Clock, numbers, order, peak_mib
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class InOrder(DPOTrainer):
    """Takes the rows as they are, one after the other, and times the reference that is computed beforehand."""

    beforehand = 0.0
    cpu_beforehand = 0.0

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)

    def _precompute_ref_logps(self, *arguments):
        began, cpu = time.time(), time.process_time()
        rows = super()._precompute_ref_logps(*arguments)
        InOrder.beforehand += time.time() - began
        InOrder.cpu_beforehand += time.process_time() - cpu
        return rows


class PairClock(Clock):
    def __init__(self, warm_up):
        super().__init__(warm_up)
        self.margins = []

    def on_log(self, arguments, state, control, logs=None, **more):
        super().on_log(arguments, state, control, logs=logs, **more)
        if logs and "rewards/margins" in logs:
            self.margins.append(logs["rewards/margins"])


def main():
    o = json.loads(sys.argv[1])
    torch.set_num_threads(o["threads"])
    torch.manual_seed(o["seed"])
    tokenizer = AutoTokenizer.from_pretrained(o["model"])
    where, dtype = numbers(o)
    model = AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype)
    lora = LoraConfig(
        r=o["rank"], lora_alpha=2 * o["rank"], lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    pairs = json.load(open(o["pairs"]))
    # The engine shuffles anew in each epoch; only the first one's order is followed.
    pairs = [pairs[row] for row in order(len(pairs), o["seed"])][: o["rows"]]
    # With a name given, the table is not pickled to make one, which not every pyarrow can.
    rows = Dataset(InMemoryTable(pyarrow.Table.from_pylist(pairs)), fingerprint="pairs")
    clock = PairClock(o["warm_up"])
    settings = DPOConfig(
        output_dir=o["result"] + ".out", loss_type="sigmoid", beta=o["beta"], max_length=None,
        per_device_train_batch_size=o["pairs_at_once"],
        gradient_accumulation_steps=o["batch_size"] // o["pairs_at_once"],
        num_train_epochs=o["epochs"], learning_rate=o["learning_rate"], lr_scheduler_type="linear",
        warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, seed=o["seed"], **where,
        gradient_checkpointing=False, disable_dropout=True, precompute_ref_log_probs=o["epochs"] > 1,
    )
    InOrder(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer,
        peft_config=lora, callbacks=[clock],
    ).train()
    timed = pairs * o["epochs"]
    timed = timed[o["warm_up"] * o["batch_size"]:]
    tokens = sum(2 * len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in timed)
    json.dump({
        "seconds": clock.ended_at - clock.started_at + InOrder.beforehand, "started_at": clock.first_at,
        "cpu_seconds": clock.cpu_ended - clock.cpu_started + InOrder.cpu_beforehand,
        "tokens": tokens, "pairs_at_once": o["pairs_at_once"],
        "losses": clock.losses, "margins": clock.margins,
        "peak_mib": peak_mib(o),
    }, open(o["result"], "w"))


if __name__ == "__main__":
    main()
