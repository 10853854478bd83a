"""Drives one engine process over its protocol, for the measurements beside this file."""

import json
import os
import pathlib
import subprocess
import sys

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def environment(threads):
    """What every side of a comparison runs under; waiting threads sleep, which serves all best on few cores."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
    }


def plan(rows, output, **changes):
    """A supervised LoRA run over `rows`; `changes` are hyperparameters."""
    hyperparameters = {
        "n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 1.0, "learning_rate": 2e-4,
        "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "max_seq_len": 1024, "micro_batch_tokens": 4096, "checkpoint_steps": 0, "seed": 42,
        "lora": lora(16),
    }
    return {
        "job_id": "ftjob-bench", "fence": 1, "method": "supervised", "base_model": "bench",
        "training_file": str(rows), "validation_file": None, "resume_from": None,
        "output_dir": str(output), "hyperparameters": hyperparameters | changes,
    }


def lora(rank):
    return {"rank": rank, "alpha": 2.0 * rank, "dropout": 0.0, "target_modules": LINEARS}


class Engine:
    """A running engine; `with` ends it."""

    def __init__(self, model, threads):
        libraries = {"LD_LIBRARY_PATH": str(pathlib.Path(os.environ["LIBTORCH"]) / "lib")}
        self.process = subprocess.Popen(
            [os.environ["FINETUNED_ENGINE"], "--model", str(model), "--threads", str(threads)],
            env=environment(threads) | libraries, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def send(self, command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def replies(self):
        for line in self.process.stdout:
            yield json.loads(line)

    def train(self, plan):
        """Yields a run's reports until it is finished."""
        self.send({"command": "train", "plan": plan})
        for reply in self.replies():
            if reply["reply"] == "run_failed":
                sys.exit(f"our engine: {reply['failure']['message']}")
            if reply["reply"] == "run_finished":
                return
            if reply["reply"] == "run":
                yield reply["report"]

    def wait_until_ready(self):
        for reply in self.replies():
            if reply["reply"] == "ready":
                return reply

    def peak_mib(self):
        """The most physical memory so far, or since `forget_peak`."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmHWM in /proc")

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
