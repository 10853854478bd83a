"""Answering speed: our engine against transformers' `generate`, one request at a time and eight at once.

The same model, prompts, threads and precision (fp32), greedy. Tokens per second count generated tokens, from the
sending of the requests to the last token, so the reading of the prompts is in it. Prints a table and, last, one
JSON line.

    cargo xtask bench decode [--tokens 64]
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import engine
import torch
import train
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    "Tell me a long story about a lighthouse.", "Explain how bread is baked, step by step.",
    "Write a letter to a friend about the sea.", "Describe a walk through an old town.",
    "How does a bicycle work? Be thorough.", "Tell me all that you know about the moon.",
    "Write a long poem about rain.", "Explain how to plant a garden, in detail.",
]


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64, help="to generate for each request")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=pathlib.Path, help="a model folder; default: set-up's model")
    return parser.parse_args()


def conversation(question):
    return [{"role": "user", "content": question}]


def ours(running, questions, tokens):
    """Seconds and generated tokens of these requests, all sent at once."""
    sampling = {
        "temperature": 0.0, "top_p": 1.0, "seed": None, "max_tokens": tokens, "stop": [],
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "n": 1,
    }
    began = time.monotonic()
    for question in questions:
        request = {
            "id": question, "adapter": None, "messages": conversation(question), "tools": [],
            "sampling": sampling,
        }
        running.send({"command": "generate", "request": request})
    generated, left = 0, len(questions)
    for reply in running.replies():
        event = reply.get("event") or {}
        if event.get("event") == "done":
            generated += event["completion_tokens"]
            left -= 1
            if left == 0:
                return time.monotonic() - began, generated


def theirs(model, tokenizer, questions, tokens):
    prompts = [
        tokenizer.apply_chat_template(conversation(q), add_generation_prompt=True, tokenize=False)
        for q in questions
    ]
    began = time.monotonic()
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        out = model.generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    seconds = time.monotonic() - began
    return seconds, len(questions) * (out.shape[1] - inputs["input_ids"].shape[1])


def main():
    options = arguments()
    figures = {"bench": "decode", "tokens": options.tokens, "threads": options.threads}
    with tempfile.TemporaryDirectory(prefix="finetuned-decode-") as name:
        folder = train.model_folder(options, pathlib.Path(name))
        with engine.Engine(folder, options.threads) as running:
            running.wait_until_ready()
            ours(running, QUESTIONS[:1], 4)
            mine = {n: ours(running, QUESTIONS[:n], options.tokens) for n in (1, 8)}
        torch.set_num_threads(options.threads)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        theirs(model, tokenizer, QUESTIONS[:1], 4)
        other = {n: theirs(model, tokenizer, QUESTIONS[:n], options.tokens) for n in (1, 8)}
    print(f"\n{'tokens per second':24}{'ours':>12}{'generate':>12}{'ratio':>9}")
    for n in (1, 8):
        a, b = (tokens / seconds for seconds, tokens in (mine[n], other[n]))
        print(f"{f'requests at once: {n}':24}{a:12.1f}{b:12.1f}{a / b:9.2f}")
        figures |= {
            f"ours_{n}_tokens_per_s": round(a, 2), f"transformers_{n}_tokens_per_s": round(b, 2),
            f"ratio_{n}": round(a / b, 3),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
