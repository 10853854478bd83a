"""Drives one engine process over its protocol, for the measurements beside this file."""

import json
import os
import pathlib
import subprocess
import sys
import time

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def cores():
    return len(os.sched_getaffinity(0))


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

    def __init__(self, model, threads, quantization="none", device="cpu", precision="auto"):
        libraries = {"LD_LIBRARY_PATH": str(pathlib.Path(os.environ["LIBTORCH"]) / "lib")}
        self.device = device
        self.process = subprocess.Popen(
            [os.environ["FINETUNED_ENGINE"], "--model", str(model), "--threads", str(threads),
             "--quantization", quantization, "--device", device, "--precision", precision],
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
        """The most physical memory so far, or since `forget_peak`; of a GPU what is taken by now."""
        if self.device != "cpu":
            return device_mib()
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmHWM in /proc")

    def cpu_seconds(self):
        """What all its threads have worked so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def device_mib():
    """What everybody together has taken of the first GPU's memory."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.run(query, check=True, capture_output=True, text=True).stdout)


def measure(model, threads, plan, warm_up=0, device="cpu", precision="auto"):
    """Takes a run to its end in an engine of its own; times are of its steps after the first `warm_up`."""
    steps, first, started, ended, peak, cpu = [], None, None, None, 0, [0, 0]
    began = time.monotonic()
    quantization = plan["hyperparameters"].get("quantization", "none")
    plan["hyperparameters"]["precision"] = precision
    with Engine(model, threads, quantization, device, precision) as ours:
        for report in ours.train(plan):
            if report["type"] == "started":
                first = started = time.monotonic()
                cpu[0] = ours.cpu_seconds()
            if report["type"] == "step":
                ended, cpu[1] = time.monotonic(), ours.cpu_seconds()
                steps.append(report)
                if len(steps) == warm_up:
                    started, cpu[0] = ended, cpu[1]
                if device == "cpu":
                    peak = ours.peak_mib()
        if device != "cpu":
            peak = ours.peak_mib()
    timed = steps[warm_up:]
    return {
        "seconds": ended - started, "cpu_seconds": cpu[1] - cpu[0], "start_seconds": first - began,
        "tokens": sum(step["tokens"] for step in timed), "targets": sum(step["target_tokens"] for step in timed),
        "losses": [step["train_loss"] for step in steps], "steps": steps, "peak_mib": peak,
    }


def run_beside(script, options, folder, **changes):
    """Runs the other side of a comparison in a process of its own, with the options as its one argument."""
    result = folder / f"theirs-{time.monotonic_ns()}.json"
    settings = vars(options) | {"result": result} | changes
    settings = {key: str(v) if isinstance(v, pathlib.Path) else v for key, v in settings.items()}
    began = time.time()
    subprocess.run(
        [sys.executable, script, json.dumps(settings)], env=environment(options.threads), check=True,
        stdout=sys.stderr,
    )
    figures = json.loads(result.read_text())
    figures["start_seconds"] = figures.pop("started_at") - began
    return figures
