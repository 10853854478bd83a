"""Checks of training data: the time and the memory of `finetuned data check` for 100,000 rows of 100 MB.

The rows are texts of the sentences in `tests/data`, in an order by chance; one of fifty is a copy, nearly a copy, or holds
personal data. All that the server would do is done: reading, tokenising, quality, the report. Passes within 10 seconds
of two cores and 512 MB. Prints a table and, last, one JSON line.

    cargo xtask bench data [--rows N] [--repeats N] [--cores N]
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ["FINETUNED_BIN"]
MODEL = pathlib.Path(os.environ["FINETUNED_TEST_MODELS"]) / "smollm2-135m-instruct.gguf"
BYTES_PER_ROW = 1000
MOST_SECONDS = 10.0
MOST_MB = 512.0
# One of so many rows is a copy, one nearly a copy, one holds an address.
DOUBTFUL_EVERY = 150


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--cores", type=int, default=2)
    return parser.parse_args()


def sentences():
    lines = (ROOT / "tests/data/sentiment_train.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][1]["content"] for line in lines]


def write_rows(path, count):
    """Rows of about a thousand bytes, the same in every run."""
    chance, known, rows = random.Random(7), sentences(), 0
    last = None
    with open(path, "w") as file:
        while rows < count:
            turn = rows % DOUBTFUL_EVERY
            question, answer = text(chance, known, 400), text(chance, known, 400)
            if turn == 1 and last:
                question, answer = last
            elif turn == 2 and last:
                question = last[0].replace(" the ", " that ", 1)
            elif turn == 3:
                answer += " Write to jane.doe@acme.co.uk."
            last = (question, answer)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
            rows += 1


def text(chance, known, length):
    parts = []
    while sum(map(len, parts)) < length:
        parts.append(chance.choice(known))
    # Names and numbers that no vocabulary has met.
    parts.append(f"No. {chance.randrange(10**9)} of {chance.randrange(10**6):x}.")
    return " ".join(parts)


def checked(path, model, cores):
    """Seconds, peak in MB, and the report."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    command = [BINARY, "data", "check", str(path), "--model", str(model), "--json"]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, allowed)
    )
    report = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        sys.exit(f"the check ended with status {status}: {report[:500]!r}")
    return seconds, usage.ru_maxrss * 1024 / 1e6, json.loads(report)


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="finetuned-bench-") as folder:
        path, model = pathlib.Path(folder) / "rows.jsonl", pathlib.Path(folder) / "model"
        subprocess.run([BINARY, "models", "convert", str(MODEL), str(model)], check=True, stdout=sys.stderr)
        write_rows(path, options.rows)
        megabytes = path.stat().st_size / 1e6
        runs = [checked(path, model, options.cores) for _ in range(options.repeats)]
    seconds = statistics.median(run[0] for run in runs)
    peak = max(run[1] for run in runs)
    figures = runs[-1][2]
    tokens = figures["dataset"]["training_file"]["tokens"]
    quality = figures["quality"]["training_file"]
    within = seconds <= MOST_SECONDS and peak <= MOST_MB
    print(f"{'rows':>9} {'MB':>7} {'tokens':>12} {'seconds':>8} {'MB/s':>6} {'peak MB':>8} {'copies':>7} {'near':>6}")
    print(
        f"{options.rows:9} {megabytes:7.1f} {tokens:12} {seconds:8.2f} {megabytes / seconds:6.1f} {peak:8.1f}"
        f" {quality['exact_duplicates']:7} {quality['near_duplicates']:6}"
    )
    print(json.dumps({
        "bench": "data", "rows": options.rows, "megabytes": megabytes, "tokens": tokens, "cores": options.cores,
        "seconds": seconds, "all_seconds": [run[0] for run in runs], "peak_mb": peak,
        "most_seconds": MOST_SECONDS, "most_mb": MOST_MB, "within": within,
    }))
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
