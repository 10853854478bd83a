"""Training speed and memory: our engine against transformers + peft, in one run on this machine.

Same rows in the same order, same model, rank, learning rate, batch size, number of threads, precision (fp32;
`--device cuda:0 --precision bf16` on a GPU, theirs then with autocast and, with `--liger`, with Liger's kernels).
Theirs is the Trainer with its usual padding collator, each in a process of its own, one after the other
(ours, theirs). A step's time is that of the whole optimizer step. Prints a table and, last, one JSON line.

    cargo xtask bench train [--rows 128] [--data tests/data/address_train.jsonl] [--rounds 1] [--quantization nf4]
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import engine
import torch

# Tokens of the matrix products that measure the machine.
GEMM_TOKENS = 1024
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def arguments(words=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "tests/data/address_train.jsonl")
    parser.add_argument("--model", type=pathlib.Path, help="a model folder; default: set-up's model")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--full", action="store_true", help="rows of exactly --max-seq-len tokens instead of data")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--quantization", choices=["none", "nf4"], default="none", help="of the base model")
    parser.add_argument("--threads", type=int, default=engine.cores())
    parser.add_argument("--rounds", type=int, default=1, help="each round runs ours, then theirs")
    parser.add_argument("--seed", type=int, default=42)
    on_device(parser)
    return parser.parse_args(words)


def on_device(parser):
    """What a run on a GPU says beside; left out, everything is as on a CPU."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--liger", action="store_true", help="theirs with Liger's kernels")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096, help="ours")
    parser.add_argument("--warm-up", type=int, default=0, help="first steps that are not timed")


def read_rows(options):
    lines = options.data.read_text(encoding="utf-8").splitlines()[: options.rows]
    if len(lines) < options.rows:
        sys.exit(f"{options.data} has only {len(lines)} rows")
    return lines


def full_rows(options):
    """Rows that are cut at `--max-seq-len`, so that the padding collator has nothing to pad."""
    def row(number):
        answer = " ".join(str((number + n) * 7919 % 1000) for n in range(options.max_seq_len))
        return [{"role": "user", "content": "Go on counting."}, {"role": "assistant", "content": answer}]

    return [json.dumps({"messages": row(number)}) for number in range(options.rows)]


def prepare(options, folder):
    """The rows as a file, and the base model as a folder that both sides read."""
    lines = full_rows(options) if options.full else read_rows(options)
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rows, model_folder(options, folder)


def model_folder(options, folder):
    """The base model as a folder: the given one, or set-up's."""
    if options.model:
        return options.model
    source = sorted(pathlib.Path(os.environ["FINETUNED_TEST_MODELS"]).glob("*.gguf"))[0]
    model = folder / "model"
    subprocess.run([os.environ["FINETUNED_BIN"], "models", "convert", source, model], check=True)
    return model


def run_ours(options, rows, model, folder):
    output = folder / f"ours-{time.monotonic_ns()}"
    output.mkdir()
    plan = engine.plan(
        rows, output, batch_size=options.batch_size, learning_rate=options.learning_rate,
        max_seq_len=options.max_seq_len, seed=options.seed, lora=engine.lora(options.rank),
        quantization=options.quantization, tuning=getattr(options, "tuning", "lora"),
        virtual_tokens=getattr(options, "virtual_tokens", None),
        micro_batch_tokens=options.micro_batch_tokens,
    )
    return engine.measure(model, options.threads, plan, options.warm_up, options.device, options.precision)


def run_theirs(options, rows, model, folder):
    return engine.run_beside(HERE / "train_peft.py", options, folder, rows=rows, model=model)


def gemm_rate(config, options):
    """FLOP/s of this machine's matrix product on the model's own shapes, forward and backward: the best of five."""
    torch.set_num_threads(options.threads)
    on_gpu = options.device != "cpu"
    settings = {"device": options.device, "dtype": torch.bfloat16 if options.precision == "bf16" else torch.float32}
    tokens = options.micro_batch_tokens if on_gpu else GEMM_TOKENS
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    d, f = config["hidden_size"], config["intermediate_size"]
    q, kv = widths(config)
    seconds = flops = 0.0
    for inner, outer in [(d, q + 2 * kv), (q, d), (d, 2 * f), (f, d)]:
        weight, x = torch.rand(outer, inner, **settings), torch.rand(tokens, inner, **settings)
        y = torch.rand(tokens, outer, **settings)
        for a, b in [(x, weight.T), (y, weight)]:
            out = torch.empty(tokens, b.shape[1], **settings)
            times = []
            for _ in range(5):
                wait()
                began = time.perf_counter()
                torch.mm(a, b, out=out)
                wait()
                times.append(time.perf_counter() - began)
            seconds += min(times)
            flops += 2 * tokens * inner * outer
    return flops / seconds


def widths(config):
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return config["num_attention_heads"] * size, config["num_key_value_heads"] * size


def step_flops(config, rank, tokens, targets, length):
    """Multiplications and additions that LoRA training of these tokens needs, without any recomputation."""
    d, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    q, kv = widths(config)
    linears = layers * (d * (q + 2 * kv) + q * d + 3 * d * f)
    sides = layers * (3 * d + q + 2 * kv + q + d + 2 * (d + f) + f + d)
    attention = 7 * length * q * layers
    return tokens * (4 * linears + attention + 6 * rank * sides) + targets * 4 * d * config["vocab_size"]


def report(options, model, ours, theirs):
    for name, side in [("ours", ours), ("theirs", theirs)]:
        if side["tokens"] != ours["tokens"] or side["targets"] != ours["targets"]:
            sys.exit(f"{name} saw {side['tokens']} tokens and {side['targets']} targets, not the same")
    pairs = list(zip(ours["losses"], theirs["losses"]))[:5]
    difference = max(abs(a / b - 1) for a, b in pairs)
    speed = {n: s["tokens"] / s["seconds"] for n, s in [("ours", ours), ("theirs", theirs)]}
    print(f"\n{options.rows} rows of {options.data.name if not options.full else 'full length'}, {ours['tokens']} tokens, {ours['targets']} targets,")
    base = ", base model in NF4" if options.quantization == "nf4" else ""
    print(f"batch {options.batch_size}, rank {options.rank}, {options.threads} threads, {options.precision} on {options.device}{base}\n")
    print(f"{'':22}{'ours':>12}{'peft':>12}{'ratio':>9}")
    rows = [
        ("tokens per second", speed["ours"], speed["theirs"]),
        ("target tokens per s", *(s["targets"] / s["seconds"] for s in (ours, theirs))),
        ("CPU seconds", ours["cpu_seconds"], theirs["cpu_seconds"]),
        ("peak memory, MiB", ours["peak_mib"], theirs["peak_mib"]),
        ("start to 1st step, s", ours["start_seconds"], theirs["start_seconds"]),
    ]
    for name, a, b in rows:
        print(f"{name:22}{a:12.1f}{b:12.1f}{a / b:9.2f}")
    config = json.loads((model / "config.json").read_text())
    rows = options.rows - options.warm_up * options.batch_size
    flops = step_flops(config, options.rank, ours["tokens"], ours["targets"], ours["tokens"] / rows)
    rate = gemm_rate(config, options)
    share = {n: flops / s["seconds"] / rate for n, s in [("ours", ours), ("theirs", theirs)]}
    print(f"{'share of GEMM rate, %':22}{100 * share['ours']:12.1f}{100 * share['theirs']:12.1f}")
    print(f"the machine's own matrix product on these shapes: {rate / 1e9:.1f} GFLOP/s")
    print(f"loss of the first {len(pairs)} steps: at most {100 * difference:.3f} % apart")
    print(json.dumps({
        "bench": "train", "quantization": options.quantization, "data": "full" if options.full else options.data.name, "rows": options.rows, "threads": options.threads,
        "device": options.device, "precision": options.precision, "liger": options.liger,
        "tokens": ours["tokens"], "target_tokens": ours["targets"],
        "ours_tokens_per_s": round(speed["ours"], 2), "peft_tokens_per_s": round(speed["theirs"], 2),
        "ratio": round(speed["ours"] / speed["theirs"], 3),
        "cpu_ratio": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 3),
        "ours_peak_mib": round(ours["peak_mib"], 1), "peft_peak_mib": round(theirs["peak_mib"], 1),
        "ours_start_s": round(ours["start_seconds"], 2), "peft_start_s": round(theirs["start_seconds"], 2),
        "gemm_gflops": round(rate / 1e9, 1), "ours_gemm_share": round(share["ours"], 3),
        "peft_gemm_share": round(share["theirs"], 3),
        "first_losses_ours": [a for a, _ in pairs], "first_losses_peft": [b for _, b in pairs],
        "loss_difference": difference,
    }))
    if difference > 0.01:
        sys.exit("the losses differ by more than 1 %: the two sides do not do the same work")


def main(words=None):
    options = arguments(words)
    with tempfile.TemporaryDirectory(prefix="finetuned-bench-") as name:
        folder = pathlib.Path(name)
        rows, model = prepare(options, folder)
        best = {}
        for _ in range(options.rounds):
            for side, function in [("ours", run_ours), ("theirs", run_theirs)]:
                print(f"{side} …", file=sys.stderr, flush=True)
                figures = function(options, rows, model, folder)
                if side not in best or figures["seconds"] < best[side]["seconds"]:
                    best[side] = figures
        report(options, model, best["ours"], best["theirs"])


if __name__ == "__main__":
    main()
