"""Training on preference pairs: our engine against trl's DPOTrainer with peft, in one run on this machine.

Same pairs in the same order, same model, rank, learning rate, batch size, number of threads, precision (fp32, or what
`--device` and `--precision` say). Each
pair has exactly `--prompt` tokens before the answers and `--answer` tokens in each, so trl's collator has nothing to
pad. trl runs without gradient checkpointing, with the adapter disabled as reference, and in the faster of two ways
that are tried on the first step's rows: a whole step at once, or pair by pair. With more than one epoch it computes
the reference beforehand, as ours does. Prints a table and, last, one JSON line.

    cargo xtask bench dpo [--rows 16] [--prompt 300] [--answer 200] [--epochs 1]
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import engine
import train
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
# Words that are one token each behind a space, checked below.
WORDS = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information""".split()


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, help="a model folder; default: set-up's model")
    parser.add_argument("--rows", type=int, default=16, help="pairs")
    parser.add_argument("--prompt", type=int, default=300, help="tokens before the answers, the template's included")
    parser.add_argument("--answer", type=int, default=200, help="tokens of each answer, its end of turn included")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4, help="pairs of a step")
    parser.add_argument("--pairs-at-once", type=int, help="trl's, instead of trying which is faster")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=engine.cores())
    parser.add_argument("--rounds", type=int, default=1, help="each round runs ours, then theirs")
    parser.add_argument("--seed", type=int, default=42)
    train.on_device(parser)
    return parser.parse_args()


def text(tokenizer, random_words, tokens):
    """A text of so many tokens."""
    words = [random_words.choice(WORDS) for _ in range(tokens)]
    words[0] = words[0].capitalize()
    out = " ".join(words)
    while (extra := len(tokenizer(out, add_special_tokens=False)["input_ids"]) - tokens) > 0:
        out = out.rsplit(" ", extra)[0]
    if extra:
        sys.exit(f"this tokenizer makes {tokens + extra} tokens of {tokens} words; other words are needed")
    return out


def make_pairs(options, tokenizer):
    """Messages for us, token ids for trl: the prompt, and two answers up to their end-of-turn token."""
    ids = lambda messages, **more: tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **more)
    words = random.Random(options.seed)
    user = lambda content: [{"role": "user", "content": content}]
    assistant = lambda content: [{"role": "assistant", "content": content}]
    frame = len(ids(user("Time"), add_generation_prompt=True)) - 1
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows, pairs = [], []
    for _ in range(options.rows):
        question = user(text(tokenizer, words, options.prompt - frame))
        prompt = ids(question, add_generation_prompt=True)
        answers, tails = [], []
        for _ in range(2):
            answer = assistant(text(tokenizer, words, options.answer - 1))
            whole = ids(question + answer)
            assert whole[: len(prompt)] == prompt
            tail = whole[len(prompt):]
            tails.append(tail[: len(tail) - tail[::-1].index(end)])
            answers.append(answer)
        assert [len(prompt), *map(len, tails)] == [options.prompt, options.answer, options.answer]
        rows.append({"input": {"messages": question}, "preferred_output": answers[0], "non_preferred_output": answers[1]})
        pairs.append({"prompt_ids": prompt, "chosen_ids": tails[0], "rejected_ids": tails[1]})
    return rows, pairs


def run_ours(options, rows, model, folder):
    output = folder / f"ours-{time.monotonic_ns()}"
    output.mkdir()
    plan = engine.plan(
        rows, output, batch_size=options.batch_size, learning_rate=options.learning_rate, n_epochs=options.epochs,
        max_seq_len=options.prompt + options.answer, seed=options.seed, lora=engine.lora(options.rank),
        micro_batch_tokens=options.micro_batch_tokens,
        preference={"loss_type": "sigmoid", "beta": options.beta, "label_smoothing": 0.0, "gamma": 0.0,
                    "desirable_weight": 1.0, "undesirable_weight": 1.0},
    )
    plan["method"] = "dpo"
    figures = engine.measure(model, options.threads, plan, options.warm_up, options.device, options.precision)
    figures["margins"] = [report["train_reward_margin"] for report in figures.pop("steps")]
    return figures


def run_theirs(options, pairs, model, folder, **changes):
    return engine.run_beside(HERE / "dpo_trl.py", options, folder, model=model, pairs=pairs, **changes)


def report(options, ours, theirs):
    if ours["tokens"] != theirs["tokens"]:
        sys.exit(f"trl saw {theirs['tokens']} tokens, ours {ours['tokens']}")
    losses = list(zip(ours["losses"], theirs["losses"]))[:5]
    difference = max(abs(a / b - 1) for a, b in losses)
    margins = list(zip(ours["margins"], theirs["margins"]))[:5]
    pairs = options.rows * options.epochs - options.warm_up * options.batch_size
    speed = {n: pairs / s["seconds"] for n, s in [("ours", ours), ("theirs", theirs)]}
    print(f"\n{options.rows} pairs of {options.prompt} + 2 x {options.answer} tokens, {options.epochs} epochs,")
    print(f"batch {options.batch_size}, rank {options.rank}, {options.threads} threads, {options.precision} on {options.device};")
    print(f"trl: {theirs['pairs_at_once']} pairs at once\n")
    print(f"{'':22}{'ours':>12}{'trl':>12}{'ratio':>9}")
    for name, a, b in [
        ("pairs per minute", 60 * speed["ours"], 60 * speed["theirs"]),
        ("tokens per second", ours["tokens"] / ours["seconds"], theirs["tokens"] / theirs["seconds"]),
        ("CPU seconds per pair", *(s["cpu_seconds"] / pairs for s in (ours, theirs))),
        ("peak memory, MiB", ours["peak_mib"], theirs["peak_mib"]),
        ("start to 1st step, s", ours["start_seconds"], theirs["start_seconds"]),
    ]:
        print(f"{name:22}{a:12.2f}{b:12.2f}{a / b:9.2f}")
    print(f"loss of the first {len(losses)} steps: at most {100 * difference:.3f} % apart")
    print("rewards' margins: " + ", ".join(f"{a:.4f} / {b:.4f}" for a, b in margins))
    print(json.dumps({
        "bench": "dpo", "rows": options.rows, "prompt": options.prompt, "answer": options.answer,
        "epochs": options.epochs, "threads": options.threads, "tokens": ours["tokens"],
        "device": options.device, "precision": options.precision,
        "ours_pairs_per_s": round(speed["ours"], 4), "trl_pairs_per_s": round(speed["theirs"], 4),
        "ratio": round(speed["ours"] / speed["theirs"], 3), "trl_pairs_at_once": theirs["pairs_at_once"],
        "cpu_ratio": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 3),
        "ours_peak_mib": round(ours["peak_mib"], 1), "trl_peak_mib": round(theirs["peak_mib"], 1),
        "ours_start_s": round(ours["start_seconds"], 2), "trl_start_s": round(theirs["start_seconds"], 2),
        "first_losses_ours": [a for a, _ in losses], "first_losses_trl": [b for _, b in losses],
        "first_margins_ours": [a for a, _ in margins], "first_margins_trl": [b for _, b in margins],
        "loss_difference": difference,
    }))
    if difference > 0.01:
        sys.exit("the losses differ by more than 1 %: the two sides do not do the same work")


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="finetuned-bench-") as name:
        folder = pathlib.Path(name)
        model = train.model_folder(options, folder)
        rows, pairs = make_pairs(options, AutoTokenizer.from_pretrained(model))
        files = [folder / "rows.jsonl", folder / "pairs.json"]
        files[0].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[1].write_text(json.dumps(pairs), encoding="utf-8")
        # Which of its ways is the faster one here, on the rows of one step.
        trials = {}
        candidates = {options.pairs_at_once} if options.pairs_at_once else {options.batch_size, 1}
        for at_once in candidates if len(candidates) > 1 else ():
            print(f"trl, {at_once} pairs at once …", file=sys.stderr, flush=True)
            trial = {"rows": options.batch_size, "epochs": 1, "pairs_at_once": at_once, "warm_up": 0}
            trials[at_once] = run_theirs(options, files[1], model, folder, **trial)["seconds"]
        at_once = min(trials, key=trials.get) if trials else min(candidates)
        best = {}
        for _ in range(options.rounds):
            for side, function in [
                ("ours", lambda: run_ours(options, files[0], model, folder)),
                ("theirs", lambda: run_theirs(options, files[1], model, folder, pairs_at_once=at_once)),
            ]:
                print(f"{side} …", file=sys.stderr, flush=True)
                figures = function()
                if side not in best or figures["seconds"] < best[side]["seconds"]:
                    best[side] = figures
        report(options, best["ours"], best["theirs"])


if __name__ == "__main__":
    main()
