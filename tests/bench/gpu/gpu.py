"""What `run.sh` of the GPU bundle does: proves the engine on this machine's GPU, then measures the cells of the table in
docs/TRAINING.md, as far as the time allows. Needs Python with torch 2.11, whose libraries the engine uses, and
transformers and peft for the comparisons; what is missing is skipped and said.

Each part has a time limit of its own, and what it gave is in the results before the next one begins: a run that is cut
short loses the part in hand alone. Writes results.jsonl, table.md and run.log.

    ./run.sh [--cpu] [--limit SECONDS] [--out FOLDER] [--only PART ...]
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
BENCH = HERE.parent
ROOT = BENCH.parents[1]
SHAPES = HERE / "shapes"
# Seconds of the whole run that stay free for its end.
RESERVE = 5


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on the CPU: shows that everything runs")
    parser.add_argument("--limit", type=float, default=570, help="seconds for everything")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(os.environ.get("OUT") or "out"))
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    return parser.parse_args()


def has(package):
    return importlib.util.find_spec(package) is not None


class Run:
    """Where results go, and how much time is left."""

    def __init__(self, options, scratch):
        self.options, self.scratch = options, scratch
        self.ends = time.monotonic() + options.limit - RESERVE
        self.results = []
        options.out.mkdir(parents=True, exist_ok=True)
        self.log = open(options.out / "run.log", "a", encoding="utf-8")
        self.say(f"results: {options.out.resolve()}")

    def say(self, line):
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def left(self):
        return self.ends - time.monotonic()

    def command(self, words, limit, environment):
        """Runs one program in view; its lines, its exit code (none: it was stopped) and its seconds."""
        began = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in words], env=environment, text=True, errors="replace", start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        stopped = []

        def stop():
            stopped.append(True)
            os.killpg(process.pid, signal.SIGKILL)

        alarm = threading.Timer(limit, stop)
        alarm.start()
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            self.say("    " + lines[-1][:400])
        code = process.wait()
        alarm.cancel()
        return lines, None if stopped else code, time.monotonic() - began

    def attempt(self, part, limit):
        began = time.monotonic()
        try:
            words = part.words()
        except Exception as error:  # what a library says here is told, and the other parts go on
            return [f"{type(error).__name__}: {error}"], 1, time.monotonic() - began
        limit = max(limit - (time.monotonic() - began), 1)
        lines, code, _ = self.command(words, limit, os.environ | part.environment)
        return lines, code, time.monotonic() - began

    def part(self, part):
        """Takes one part to its end, or says why not, and keeps what it gave."""
        result = {"part": part.name, "cell": part.cell, "goal": part.goal, "predicted": part.predicted}
        if self.options.cpu and not isinstance(part, Check):
            result |= {"cell": f"a tiny shape in the place of: {part.cell}", "goal": "–", "predicted": "–"}
        limit = min(part.limit, self.left())
        if part.missing:
            result |= {"status": "skipped", "why": part.missing}
        elif limit < part.least:
            result |= {"status": "skipped", "why": f"{max(limit, 0):.0f} s are left, it takes {part.least} s"}
        else:
            self.say(f"\n== {part.name}: {part.cell} (at most {limit:.0f} s)")
            lines, code, seconds = self.attempt(part, limit)
            status = {0: "done", None: "stopped"}.get(code, "failed")
            objects = [found for line in lines if (found := as_object(line))]
            figures = part.read(objects)
            result |= {"status": status, "exit": code, "seconds": round(seconds, 1), "figures": figures}
            result["measured"] = (part.measured(figures) if figures else None) or None
            if (ratio := self.ratio(part, figures)) is not None:
                result["measured"] += f", {ratio:.3f} × {part.of}"
            if status != "done":
                result["last_lines"] = lines[-5:]
        self.results.append(result)
        with open(self.options.out / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        self.write_table()

    def ratio(self, part, figures):
        """The part's tokens per second over those of the part that it is held against."""
        base = [r["figures"] for r in self.results if r["part"] == part.of and r.get("figures")]
        both = [f["sum"] for f in [figures, *base] if f and f.get("sum")]
        return both[0]["tokens_per_second"] / both[1]["tokens_per_second"] if part.of and len(both) == 2 else None

    def write_table(self):
        lines = ["| part | work | goal | predicted | measured | status |", "|---|---|---|---|---|---|"]
        for r in self.results:
            status = r["status"] + (f" ({r['why']})" if "why" in r else f", {r['seconds']} s")
            lines.append(f"| {r['part']} | {r['cell']} | {r['goal']} | {r['predicted']} | {r.get('measured') or '–'} | {status} |")
        (self.options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return lines


def as_object(line):
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Part:
    """A program, how long it may take, and what its JSON lines mean."""

    least, predicted, goal, missing, of = 10, "–", "–", None, None

    def __init__(self, name, cell, limit, words, **more):
        self.name, self.cell, self.limit, self._words, self.environment = name, cell, limit, words, {}
        for key, value in more.items():
            setattr(self, key, value)

    def words(self):
        return self._words() if callable(self._words) else self._words

    def read(self, objects):
        return objects[-1] if objects else None

    def measured(self, figures):
        return None


class Check(Part):
    def read(self, objects):
        failed = [o for o in objects if o.get("passes") is False]
        counts = [o for o in objects if o["part"] == "summary"]
        facts = [o["facts"] for o in objects if o["part"] == "device"]
        worst = {}
        for o in objects:
            if o.get("bound") and o["error"] is not None:
                key = f"{o['part']} {o['precision']}"
                worst[key] = max(worst.get(key, 0), o["error"] / o["bound"])
        return {
            "facts": facts[0] if facts else None, "checks": counts[0]["checks"] if counts else None,
            "failed": failed, "worst_share_of_bound": worst,
        }

    def measured(self, figures):
        if figures["checks"] is None:
            return f"cut short, {len(figures['failed'])} failed so far"
        return f"{figures['checks']} checks, {len(figures['failed'])} failed"


class Measure(Part):
    def read(self, objects):
        sums = [o for o in objects if o.get("event") == "sum"]
        made = [o for o in objects if o.get("event") in ("made", "products")]
        steps = [o["seconds"] for o in objects if o.get("event") == "step"]
        return {"sum": sums[0] if sums else None, "before": made, "steps": steps}

    def measured(self, figures):
        total = figures["sum"]
        if not total:
            return f"steps of {figures['steps']} s" if figures["steps"] else None
        return (
            f"{total['tokens_per_second']:,.0f} tokens/s, {100 * total['share']:.0f} % of "
            f"{total['product_tflops']:.2f} TFLOP/s, {total['memory_mib'] or 0:,} MiB"
        )


class Compare(Part):
    def measured(self, figures):
        if "ratio" not in figures:
            return None
        ours = figures.get("ours_tokens_per_s") or figures.get("ours_pairs_per_s")
        return f"{figures['ratio']:.2f} × ({ours:,.1f} tokens or pairs/s), losses {100 * figures['loss_difference']:.2f} % apart"


def random_model(shape, scratch, device):
    """A model folder with random weights of a shape and the bundle's tokenizer."""
    folder = scratch / shape
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(exist_ok=True)
    shutil.copy(SHAPES / f"{shape}.json", folder / "config.json")
    torch.manual_seed(1)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100GB")
    del model
    if device != "cpu":
        torch.cuda.empty_cache()
    for file in (ROOT / "tokenizer").iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def parts(options, scratch, engine):
    device, precision = ("cpu", "fp32") if options.cpu else ("cuda:0", "bf16")
    size = lambda gpu, cpu: cpu if options.cpu else gpu
    tiny = lambda name: size(name, "tiny")
    fixtures = ROOT / "crates/model/tests/fixtures"
    numbers = ["--device", device, "--precision", precision]

    def measure(shape, *words):
        amounts = size(["--tokens", "8192", "--length", "4096", "--steps", "8"],
                       ["--tokens", "192", "--length", "64", "--steps", "2", "--warm-up", "1"])
        return [engine, "measure", "--config", SHAPES / f"{tiny(shape)}.json", *numbers, *amounts, *words]

    def bench(script, shape, *words):
        def made():
            folder = random_model(tiny(shape), scratch, device)
            return [sys.executable, BENCH / script, "--model", folder, *numbers, *words]
        return made

    python = " and ".join(p for p in ("torch", "transformers", "peft") if not has(p))
    no_python = f"{python} is not installed" if python else None
    # Each in a folder of its own, which only its part sees: transformers takes up whatever it finds.
    lacking = [p for p in ("pyarrow", "pandas", "xxhash", "dateutil") if not has(p)]
    trl_is_here = (ROOT / "packages/trl").is_dir() and not lacking
    no_trl = no_python or (None if has("trl") or trl_is_here else "trl or what it needs is not installed")
    liger_is_here = has("liger_kernel") or (ROOT / "packages/liger").is_dir() and has("triton")
    liger = ["--liger"] if liger_is_here and not options.cpu else []
    train_words = size(["--rows", "256", "--batch-size", "32", "--warm-up", "3", "--micro-batch-tokens", "16384"],
                       ["--rows", "16", "--batch-size", "8", "--warm-up", "1"])
    dpo_words = size(["--rows", "96", "--batch-size", "16", "--pairs-at-once", "16", "--warm-up", "2",
                      "--micro-batch-tokens", "16384"],
                     ["--rows", "8", "--batch-size", "4", "--pairs-at-once", "4", "--prompt", "60", "--answer", "20"])
    check = [engine, "check-device", "--device", device, "--json"]
    plain = {"FINETUNED_CUDA_WITHOUT": "all"}
    return [
        Check("check", "kernels and tiny steps against plain tch", 90, check, goal="no failure"),
        Measure("lora-8b", "8B, LoRA r=16, length 4096", 75, measure("llama-3.1-8b"),
                goal="12,500, 15,000 tokens/s; 60 %", predicted="14,700; 63 %"),
        Measure("qlora-8b", "8B in NF4, the same", 75, measure("llama-3.1-8b", "--quantization", "nf4"),
                goal="0.95 × LoRA", predicted="0.97 ×", of="lora-8b"),
        Measure("lora-7b", "7B Qwen2.5, LoRA r=16, length 4096", 60, measure("qwen2.5-7b"),
                goal="14,100 tokens/s; 60 %", predicted="15,700; 62 %"),
        Check("parity", "fixtures of all families", 120, [*check, "--fixtures", fixtures], goal="no failure"),
        Compare("ragged", "ragged chat rows, 1B, against transformers + peft" + (" + Liger" if liger else ""), 120,
                bench("train.py", "llama-3.2-1b", *train_words, *liger), goal="2 ×", predicted="2 ×",
                missing=no_python, least=30, environment=beside("liger") if liger else {}),
        Compare("dpo", "DPO, 300 + 200 tokens, 1B, against trl", 120,
                bench("dpo.py", "llama-3.2-1b", *dpo_words), goal="1.6 ×", predicted="1.3–1.7 ×",
                missing=no_trl, least=30, environment={} if has("trl") else beside("trl")),
        Measure("qlora-70b", "70B in NF4, length 2048, everything computed again", 90,
                measure("llama-3.1-70b", "--quantization", "nf4", "--recompute", "full",
                        *size(["--tokens", "2048", "--length", "2048", "--steps", "3", "--warm-up", "1"], [])),
                goal="fits 80 GB", predicted="78 GB at most", least=30),
        Measure("plain-8b", "8B, without kernels of ours", 60,
                measure("llama-3.1-8b", *size(["--tokens", "4096", "--steps", "2", "--warm-up", "1"], [])),
                environment=plain, least=30, of="lora-8b"),
    ]


def prepare():
    """Where torch is, for the engine to find its libraries; nothing else of the environment changes."""
    spec = importlib.util.find_spec("torch")
    libtorch = os.environ.get("LIBTORCH") or (str(pathlib.Path(spec.origin).parent) if spec else None)
    if not libtorch:
        sys.exit("this Python has no torch, whose libraries the engine needs: set PYTHON, or LIBTORCH to a libtorch 2.11.0")
    libraries = [str(pathlib.Path(libtorch) / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LIBTORCH"] = libtorch
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    engine = os.environ.setdefault("FINETUNED_ENGINE", str(ROOT / "bin/finetuned-engine"))
    os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
    return engine


def beside(packages):
    """The environment of a program that sees packages of the bundle too."""
    return {"PYTHONPATH": ":".join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT / "packages" / packages)]))}


def about():
    versions = {}
    for name in ("torch", "transformers", "peft", "liger_kernel", "trl", "pyarrow", "triton"):
        try:
            from importlib.metadata import version
            versions[name] = version(name.replace("_", "-"))
        except Exception:
            versions[name] = None
    manifest = ROOT / "MANIFEST"
    return {
        "versions": versions, "bundle": manifest.read_text().splitlines() if manifest.exists() else None,
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def main():
    options = arguments()
    engine = prepare()
    with tempfile.TemporaryDirectory(prefix="finetuned-gpu-") as name:
        run = Run(options, pathlib.Path(name))
        run.say(json.dumps(about()))
        if not options.cpu:
            run.command(["nvidia-smi"], 20, os.environ) if shutil.which("nvidia-smi") else run.say("no nvidia-smi")
        for part in parts(options, run.scratch, engine):
            if not options.only or part.name in options.only:
                run.part(part)
        run.say("\n" + "\n".join(run.write_table()))
    bad = [r["part"] for r in run.results if r["status"] in ("failed", "stopped")]
    if bad:
        sys.exit("not done: " + ", ".join(bad))


if __name__ == "__main__":
    main()
