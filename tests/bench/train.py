"""Training speed and memory: our engine against transformers + peft, in one run on this machine.

Same rows in the same order, same model, rank, learning rate, batch size, number of threads, precision (fp32).
Theirs is the Trainer with its usual padding collator, each in a process of its own, one after the other
(ours, theirs). A step's time is that of the whole optimizer step. Prints a table and, last, one JSON line.

    cargo xtask bench train [--rows 128] [--data tests/data/address_train.jsonl] [--rounds 1]
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "tests/data/address_train.jsonl")
    parser.add_argument("--model", type=pathlib.Path, help="a model folder; default: set-up's model")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1, help="each round runs ours, then theirs")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def prepare(options, folder):
    """The rows as a file, and the base model as a folder that both sides read."""
    lines = options.data.read_text(encoding="utf-8").splitlines()[: options.rows]
    if len(lines) < options.rows:
        sys.exit(f"{options.data} has only {len(lines)} rows")
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.model:
        return rows, options.model
    source = sorted(pathlib.Path(os.environ["FINETUNED_TEST_MODELS"]).glob("*.gguf"))[0]
    model = folder / "model"
    subprocess.run([os.environ["FINETUNED_BIN"], "models", "convert", source, model], check=True)
    return rows, model


def environment(options):
    """What both sides run under; waiting threads sleep, which serves both best on few cores."""
    threads = str(options.threads)
    return os.environ | {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
    }


def plan(options, rows, folder):
    return {
        "job_id": "ftjob-bench", "fence": 1, "method": "supervised", "base_model": "bench",
        "training_file": str(rows), "validation_file": None, "resume_from": None,
        "output_dir": str(folder),
        "hyperparameters": {
            "n_epochs": 1, "batch_size": options.batch_size, "learning_rate_multiplier": 1.0,
            "learning_rate": options.learning_rate, "schedule": "linear", "warmup_steps": 0,
            "weight_decay": 0.0, "max_grad_norm": 1.0, "max_seq_len": options.max_seq_len,
            "micro_batch_tokens": 4096, "checkpoint_steps": 0, "seed": options.seed,
            "lora": {
                "rank": options.rank, "alpha": 2.0 * options.rank, "dropout": 0.0,
                "target_modules": [
                    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                ],
            },
        },
    }


def run_ours(options, rows, model, folder):
    output = folder / f"ours-{time.monotonic_ns()}"
    output.mkdir()
    environment_ = environment(options)
    libraries = pathlib.Path(os.environ["LIBTORCH"]) / "lib"
    environment_["LD_LIBRARY_PATH"] = str(libraries)
    command = [os.environ["FINETUNED_ENGINE"], "--model", model, "--threads", str(options.threads)]
    began = time.monotonic()
    engine = subprocess.Popen(
        command, env=environment_, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    order = {"command": "train", "plan": plan(options, rows, output)}
    engine.stdin.write(json.dumps(order) + "\n")
    engine.stdin.flush()
    losses, tokens, targets, started, ended, peak = [], 0, 0, None, None, 0
    for line in engine.stdout:
        reply = json.loads(line)
        if reply["reply"] == "run_failed":
            sys.exit(f"our engine: {reply['failure']['message']}")
        if reply["reply"] == "run_finished":
            break
        if reply["reply"] != "run":
            continue
        report = reply["report"]
        if report["type"] == "started":
            started = time.monotonic()
        if report["type"] == "step":
            ended = time.monotonic()
            losses.append(report["train_loss"])
            tokens += report["tokens"]
            targets += report["target_tokens"]
            peak = peak_mib(engine.pid)
    engine.stdin.close()
    engine.wait()
    return {
        "seconds": ended - started, "tokens": tokens, "targets": targets, "losses": losses,
        "peak_mib": peak, "start_seconds": started - began,
    }


def peak_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc")


def run_theirs(options, rows, model, folder):
    result = folder / f"theirs-{time.monotonic_ns()}.json"
    began = time.time()
    settings = vars(options) | {"rows": str(rows), "model": str(model), "result": str(result)}
    settings = {key: str(v) if isinstance(v, pathlib.Path) else v for key, v in settings.items()}
    subprocess.run(
        [sys.executable, HERE / "train_peft.py", json.dumps(settings)],
        env=environment(options), check=True, stdout=sys.stderr,
    )
    figures = json.loads(result.read_text())
    figures["start_seconds"] = figures.pop("started_at") - began
    return figures


def report(options, ours, theirs):
    for name, side in [("ours", ours), ("theirs", theirs)]:
        if side["tokens"] != ours["tokens"] or side["targets"] != ours["targets"]:
            sys.exit(f"{name} saw {side['tokens']} tokens and {side['targets']} targets, not the same")
    pairs = list(zip(ours["losses"], theirs["losses"]))[:5]
    difference = max(abs(a / b - 1) for a, b in pairs)
    speed = {n: s["tokens"] / s["seconds"] for n, s in [("ours", ours), ("theirs", theirs)]}
    print(f"\n{options.rows} rows of {options.data.name}, {ours['tokens']} tokens, {ours['targets']} targets,")
    print(f"batch {options.batch_size}, rank {options.rank}, {options.threads} threads, fp32\n")
    print(f"{'':22}{'ours':>12}{'peft':>12}{'ratio':>9}")
    rows = [
        ("tokens per second", speed["ours"], speed["theirs"]),
        ("target tokens per s", *(s["targets"] / s["seconds"] for s in (ours, theirs))),
        ("peak memory, MiB", ours["peak_mib"], theirs["peak_mib"]),
        ("start to 1st step, s", ours["start_seconds"], theirs["start_seconds"]),
    ]
    for name, a, b in rows:
        print(f"{name:22}{a:12.1f}{b:12.1f}{a / b:9.2f}")
    print(f"loss of the first {len(pairs)} steps: at most {100 * difference:.3f} % apart")
    print(json.dumps({
        "bench": "train", "data": options.data.name, "rows": options.rows, "threads": options.threads,
        "tokens": ours["tokens"], "target_tokens": ours["targets"],
        "ours_tokens_per_s": round(speed["ours"], 2), "peft_tokens_per_s": round(speed["theirs"], 2),
        "ratio": round(speed["ours"] / speed["theirs"], 3),
        "ours_peak_mib": round(ours["peak_mib"], 1), "peft_peak_mib": round(theirs["peak_mib"], 1),
        "ours_start_s": round(ours["start_seconds"], 2), "peft_start_s": round(theirs["start_seconds"], 2),
        "first_losses_ours": [a for a, _ in pairs], "first_losses_peft": [b for _, b in pairs],
        "loss_difference": difference,
    }))
    if difference > 0.01:
        sys.exit("the losses differ by more than 1 %: the two sides do not do the same work")


def main():
    options = arguments()
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
        report(options, best["ours"], best["theirs"])


if __name__ == "__main__":
    main()
