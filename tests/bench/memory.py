"""Memory: what `finetuned estimate` says against what the engine takes, over a grid of shapes, settings and lengths.

Every cell is a run of a few steps in a process of its own on a random model of that shape. The peak is the
kernel's (VmHWM), counted from when the model is loaded. Passes if no cell is above the estimate with its margin
and none is further than 10 % from the estimate. Prints a table and, last, one JSON line.

    cargo xtask bench memory [--quick]
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import engine
import torch
import train
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

# Hidden size, intermediate size, layers, heads, key/value heads, tied.
SHAPES = {
    "deep": (320, 960, 24, 5, 5, True),
    "wide": (1024, 2816, 6, 16, 4, True),
    "untied": (512, 1536, 12, 8, 2, False),
    "long-mlp": (448, 3584, 10, 7, 7, True),
    "135m": (576, 1536, 30, 9, 3, True),
}
# Hyperparameters, and the words that say the same to `finetuned estimate`.
SETTINGS = {
    "lora r=16": ({}, []),
    "qlora r=16": ({"quantization": "nf4"}, ["--method", "qlora"]),
    "full": ({"tuning": "full"}, ["--method", "full"]),
    "prompt": ({"tuning": "prompt", "virtual_tokens": {"count": 20}}, ["--method", "prompt"]),
    "prefix": ({"tuning": "prefix", "virtual_tokens": {"count": 20}}, ["--method", "prefix"]),
    "lora r=64": ({"lora": engine.lora(64)}, ["--rank", "64"]),
    "8-bit": ({"lora": engine.lora(64), "optimizer": "adamw_8bit"}, ["--rank", "64", "--optimizer", "adamw_8bit"]),
    "full 8-bit": ({"tuning": "full", "optimizer": "adamw_8bit"}, ["--method", "full", "--optimizer", "adamw_8bit"]),
    "mlp again": ({"gradient_checkpointing": "mlp"}, ["--gradient-checkpointing", "mlp"]),
    "all again": ({"gradient_checkpointing": "full"}, ["--gradient-checkpointing", "full"]),
}
LENGTHS = (256, 1024, 2048)
STEPS = 3
LARGEST_ERROR = 0.10
MIB = 1 << 20


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="two shapes and two lengths")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def random_model(name, tokenizer_from, folder):
    """A model folder of this shape with random weights and the real tokenizer."""
    hidden, intermediate, layers, heads, kv_heads, tied = SHAPES[name]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=len(tokenizer),
        tie_word_embeddings=tied, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
    )
    torch.manual_seed(1)
    made = folder / name
    LlamaForCausalLM(config).save_pretrained(made)
    for file in pathlib.Path(tokenizer_from).iterdir():
        if not (made / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, made / file.name)
    return made


def rows_of(length, folder):
    """Rows that are longer than `length`, so that the cut makes each exactly that long."""
    text = " ".join(str(number % 10) for number in range(length))
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": text}]
    rows = folder / f"rows-{length}.jsonl"
    rows.write_text((json.dumps({"messages": messages}) + "\n") * STEPS, encoding="utf-8")
    return rows


def measure(model, rows, length, hyperparameters, folder, threads):
    output = pathlib.Path(tempfile.mkdtemp(dir=folder))
    plan = engine.plan(
        rows, output, batch_size=1, max_seq_len=length, micro_batch_tokens=length, **hyperparameters
    )
    with engine.Engine(model, threads, hyperparameters.get("quantization", "none")) as running:
        running.wait_until_ready()
        running.forget_peak()
        for _ in running.train(plan):
            pass
        peak = running.peak_mib()
    shutil.rmtree(output)
    return peak


def expected(model, length, words):
    command = [
        os.environ["FINETUNED_BIN"], "estimate", model, "--precision", "fp32", "--json",
        "--tokens", str(length), *words,
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found["peak_bytes"] / MIB, found["required_bytes"] / MIB


def main():
    options = arguments()
    few = 2 if options.quick else None
    cells, faults = [], []
    with tempfile.TemporaryDirectory(prefix="finetuned-memory-") as name:
        folder = pathlib.Path(name)
        _, real = train.prepare(train.arguments([]), folder)
        print(f"{'shape':10}{'setting':12}{'tokens':>8}{'measured':>10}{'expected':>10}{'error':>8}  MiB")
        for shape in list(SHAPES)[:few]:
            model = random_model(shape, real, folder)
            for setting in options.settings:
                hyperparameters, words = SETTINGS[setting]
                for length in LENGTHS[:few]:
                    rows = rows_of(length, folder)
                    peak = measure(model, rows, length, hyperparameters, folder, options.threads)
                    estimate, required = expected(model, length, words)
                    error = estimate / peak - 1
                    cell = f"{shape:10}{setting:12}{length:8}"
                    print(f"{cell}{peak:10.0f}{estimate:10.0f}{100 * error:+7.1f}%", flush=True)
                    cells.append({
                        "shape": shape, "setting": setting, "tokens": length,
                        "measured_mib": round(peak, 1), "estimated_mib": round(estimate, 1),
                        "required_mib": round(required, 1), "error": round(error, 4),
                    })
                    if abs(error) > LARGEST_ERROR or peak > required:
                        faults.append(cell)
            shutil.rmtree(model)
    largest = max(abs(cell["error"]) for cell in cells)
    print(f"\n{len(cells)} cells, largest error {100 * largest:.1f} %, outside the bounds: {len(faults)}")
    print(json.dumps({"bench": "memory", "largest_error": largest, "faults": faults, "cells": cells}))
    if faults:
        sys.exit("the estimate is not good enough")


if __name__ == "__main__":
    main()
