"""The other side of `train.py`: transformers' Trainer with peft, padding collator; fp32, or bf16 by autocast. One
JSON argument."""

import json
import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForSeq2Seq, Trainer, TrainerCallback,
    TrainingArguments,
)

MASK = (1 << 64) - 1


def split_mix(state):
    """One output of SplitMix64 and the next state."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31), state


def order(length, seed):
    """The engine's order of the first epoch, so that both sides see the same batches."""
    for word in (2, 0, 0):  # the seed of the data order, derived from the plan's
        seed = split_mix(seed)[0] ^ word
    state, _ = split_mix(split_mix(seed)[0])
    rows = list(range(length))
    for last in range(length - 1, 0, -1):
        bound = last + 1
        while True:
            number, state = split_mix(state)
            product = number * bound
            if product & MASK >= bound or product & MASK >= (1 << 64) % bound:
                break
        other = product >> 64
        rows[last], rows[other] = rows[other], rows[last]
    return rows


def encode(tokenizer, messages, limit):
    """Ids of the chat template; labels on assistant text and its end-of-turn token."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids, labels = [], []
    for index, message in enumerate(messages):
        upto = tokenizer.apply_chat_template(messages[: index + 1], tokenize=True, return_dict=False)
        if message["role"] == "assistant":
            head = tokenizer.apply_chat_template(
                messages[:index], tokenize=True, add_generation_prompt=True, return_dict=False
            )
            tail = upto[len(head):]
            stop = len(tail) - 1 - tail[::-1].index(end) + 1
            ids, labels = list(upto), labels + [-100] * (len(head) - len(labels))
            labels += tail[:stop] + [-100] * (len(tail) - stop)
    return {"input_ids": ids[:limit], "labels": labels[:limit], "attention_mask": [1] * min(len(ids), limit)}


def now():
    """The time, once a GPU has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def numbers(o):
    """Arguments of the Trainer, and the weights' type, for where and in what it computes."""
    on_gpu = o["device"] != "cpu"
    bf16 = o["precision"] == "bf16"
    settings = {"use_cpu": not on_gpu, "bf16": bf16, "dataloader_pin_memory": on_gpu}
    if o["liger"]:
        settings["use_liger_kernel"] = True
    return settings, torch.bfloat16 if bf16 else torch.float32


def peak_mib(o):
    if o["device"] != "cpu":
        return torch.cuda.max_memory_reserved() / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """Times of steps after the first `warm_up`; `first_at` is when the very first began."""

    def __init__(self, warm_up=0):
        self.losses, self.first_at, self.started_at, self.ended_at = [], None, None, None
        self.cpu_started, self.cpu_ended, self.warm_up = None, None, warm_up

    def on_step_begin(self, _, state, *__, **___):
        if state.global_step <= self.warm_up:
            self.started_at, self.cpu_started = now(), time.process_time()
        self.first_at = self.first_at or self.started_at

    def on_step_end(self, *_, **__):
        self.ended_at, self.cpu_ended = now(), time.process_time()

    def on_log(self, _, __, ___, logs=None, **____):
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def main():
    o = json.loads(sys.argv[1])
    torch.set_num_threads(o["threads"])
    torch.manual_seed(o["seed"])
    tokenizer = AutoTokenizer.from_pretrained(o["model"])
    where, dtype = numbers(o)
    quantized = {}
    if o["quantization"] == "nf4":
        quantized["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype, **quantized)
    model = get_peft_model(model, LoraConfig(
        r=o["rank"], lora_alpha=2 * o["rank"], lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ))
    rows = [json.loads(line)["messages"] for line in open(o["rows"], encoding="utf-8")]
    examples = [encode(tokenizer, rows[i], o["max_seq_len"]) for i in order(len(rows), o["seed"])]
    clock = Clock(o["warm_up"])
    settings = TrainingArguments(
        output_dir=o["result"] + ".out", per_device_train_batch_size=o["batch_size"],
        num_train_epochs=1, learning_rate=o["learning_rate"], lr_scheduler_type="linear",
        warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, seed=o["seed"], **where,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    InOrder(
        model=model, args=settings, train_dataset=examples, data_collator=collator, callbacks=[clock]
    ).train()
    examples = examples[o["warm_up"] * o["batch_size"]:]
    json.dump({
        "seconds": clock.ended_at - clock.started_at, "started_at": clock.first_at,
        "cpu_seconds": clock.cpu_ended - clock.cpu_started,
        "tokens": sum(len(e["input_ids"]) for e in examples),
        # The first token of a row predicts nothing.
        "targets": sum(sum(label >= 0 for label in e["labels"][1:]) for e in examples),
        "losses": clock.losses, "peak_mib": peak_mib(o),
    }, open(o["result"], "w"))


if __name__ == "__main__":
    main()
