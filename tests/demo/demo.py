"""The demo: one fine-tuning job from upload to answer, with nothing but OpenAI's SDK.

Uploads a set of real rows, has it checked, trains a small model on it, and reads the job's report: the tuned model
against the base model and examples in its prompt, on rows that were held out. `--case` names the set (see
`cases.py`). Exits 0 only if the tuned model is better than both.

Reads OPENAI_BASE_URL and OPENAI_API_KEY like any program of the SDK.
"""

import argparse
import json
import math
import os
import sys
import time

import openai

import cases
import terminal

MODEL = "smollm2-135m-instruct"
SHOWN_ROWS = 6
POLL_SECONDS = 0.5
TITLES = {"base": "base model", "few_shot": "base model, examples in its prompt", "tuned": "tuned model"}
# A share of pairs that chance brings about more seldom than this is no accident.
SIGNIFICANT = 0.05


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--case", default="sentiment", choices=cases.CASES, help="the set of rows")
    arguments.add_argument("--show-usage", action="store_true", help="print Python and curl to paste")
    arguments = arguments.parse_args()
    case = cases.CASES[arguments.case]

    started = time.monotonic()
    client = openai.OpenAI()
    print(f"{case.name}: {case.what}")
    training = upload(client, f"{case.name}_train.jsonl", case.training())
    held_out = upload(client, f"{case.name}_test.jsonl", case.test())
    request = case.request(MODEL, training.id, held_out.id)
    check(client, request)
    job = train(client, request)
    report = make_report(client, job, case)
    show_side_by_side(report)
    is_better = show_preference(client, job, case) if case.method == "dpo" else show_scores(report)
    print(f"\nThe whole demo took {terminal.duration(time.monotonic() - started)}.")
    if arguments.show_usage:
        print(usage(client, job.fine_tuned_model, report["rows"][0]["input"]))
    return 0 if is_better else 1


def upload(client, name, rows):
    terminal.headline(f"Upload {name}")
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    file = client.files.create(file=(name, data), purpose="fine-tune")
    print(f"{file.id}  {len(rows)} rows, {file.bytes:,} bytes")
    print(f"  {terminal.shorten(json.dumps(rows[0], ensure_ascii=False), 110)}")
    return file


def check(client, request):
    """What the server says of the rows before anything is trained."""
    terminal.headline("Check")
    found = client.post("/fine_tuning/jobs/validate", body=request, cast_to=object)
    for problem in found["problems"]:
        print(f"  {problem['severity']} {problem['code']}: {problem['message']}")
    if not found["valid"]:
        sys.exit("the rows have faults")
    rows, quality = found["dataset"]["training_file"], found["quality"]["training_file"]
    print(f"  format {rows['format']}, {found['trained_tokens']:,} tokens in {found['steps']} steps")
    if quality.get("size"):
        size = quality["size"].replace("_", " ")
        print(f"  {rows['n_examples']} rows for {quality['task']} ({quality['task_reason']}): {size}")
    print(
        f"  about {terminal.duration(found['estimated_seconds'])} at the speed known so far, "
        f"{found['memory']['peak_bytes'] / 2**20:.0f} MiB of memory"
    )


def train(client, request):
    """Creates the job and shows it until it ends."""
    terminal.headline("Fine-tuning job")
    request = dict(request)
    ours = {"finetuned": request.pop("finetuned")}
    job = client.fine_tuning.jobs.create(**request, extra_body=ours)
    losses = follow(client, job.id)
    job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status != "succeeded":
        sys.exit(f"the job ended as {job.status}: {job.error and job.error.message}")
    print()
    print(terminal.plot(losses, "training loss", "step"))
    return job


def follow(client, job_id):
    """Prints events as they come, steps as one live line; returns the loss of every step."""
    line, seen, losses = terminal.Line(), set(), []
    while True:
        # The status first: events that came before a terminal one are then all in the page.
        status = client.fine_tuning.jobs.retrieve(job_id).status
        page = client.fine_tuning.jobs.list_events(job_id, limit=100).data
        for event in reversed([event for event in page if event.id not in seen]):
            seen.add(event.id)
            if event.type == "metrics":
                losses.append(event.data["train_loss"])
                line.show(progress(event.data))
            else:
                line.finish()
                print(f"  {time.strftime('%H:%M:%S', time.localtime(event.created_at))}  {event.message}")
        if status in ("succeeded", "failed", "cancelled"):
            line.finish()
            return losses
        time.sleep(POLL_SECONDS)


def progress(metrics):
    step, total = metrics["step"], metrics["total_steps"]
    text = f"{terminal.bar(step / total)} step {step}/{total}  loss {metrics['train_loss']:.3f}"
    if "tokens_per_second" in metrics:
        text += f"  {metrics['tokens_per_second']:.0f} tokens/s"
    if "seconds_left" in metrics:
        text += f"  {terminal.duration(metrics['seconds_left'])} left"
    return text


def make_report(client, job, case):
    """The models' answers to the held-out rows, and their scores."""
    terminal.headline("Report: the models answer rows that none was trained on")
    path, line = f"/fine_tuning/jobs/{job.id}/report", terminal.Line()
    # What a preference is worth is told by pairs; a few answers show what the models say.
    wanted = SHOWN_ROWS if case.method == "dpo" else case.held_out
    report = client.post(path, body={"rows": wanted}, cast_to=object)
    while report["status"] in ("pending", "in_progress"):
        done, of = report["progress"]["answers"], report["progress"]["wanted"]
        if of:
            line.show(f"{terminal.bar(done / of)} {done} of {of} answers")
        time.sleep(POLL_SECONDS)
        report = client.get(path, cast_to=object)
    line.finish()
    if report["status"] != "completed":
        sys.exit(f"no report: {report['reason'] or report['error']}")
    return report


def show_side_by_side(report):
    terminal.headline("Side by side")
    for row in report["rows"][:SHOWN_ROWS]:
        print(terminal.shorten(row["input"][-1]["content"], 100))
        for title, text in (
            ("wanted", row["expected"]),
            ("base model", row["base"]["text"]),
            ("tuned model", row["tuned"]["text"]),
        ):
            print(f"    {title:<12}{terminal.shorten(text or '', 84)}")


def show_scores(report):
    """Prints each model's score; true if the tuned model's is the best."""
    metric = report["primary_metric"]
    terminal.headline(f"{report['held_out']['rows']} held-out rows: {metric}")
    scores = {one["name"]: one["metrics"][metric] for one in report["contenders"]}
    for name, title in TITLES.items():
        print(f"{title:<40}{terminal.bar(scores[name])} {scores[name]:>4.0%}")
    print()
    print(report["verdict"])
    is_better = scores["tuned"] > max(scores["base"], scores["few_shot"])
    print("The tuned model is better." if is_better else "THE TUNED MODEL IS NOT BETTER.")
    return is_better


def show_preference(client, job, case):
    """What the job itself measured: pairs it has not seen, in which the preferred answer gained more likelihood."""
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    share = next(
        event.data["full_valid_reward_accuracy"]
        for event in events
        if event.type == "metrics" and event.data.get("full_valid_reward_accuracy") is not None
    )
    pairs, right = case.held_out, round(share * case.held_out)
    chance = sum(math.comb(pairs, k) for k in range(right, pairs + 1)) / 2**pairs
    terminal.headline(f"{pairs} held-out pairs")
    print(f"the preferred answer gained more in {terminal.bar(share)} {right} of {pairs}")
    print(f"By chance it would be half of them; as many or more happen so with a probability of {chance:.2g}.")
    is_better = chance < SIGNIFICANT
    print("The tuned model prefers what it was shown." if is_better else "THE TUNED MODEL PREFERS NOTHING.")
    return is_better


def usage(client, model, messages):
    base_url, key = str(client.base_url).rstrip("/"), os.environ["OPENAI_API_KEY"]
    messages = [{key: message[key] for key in ("role", "content")} for message in messages]
    request = json.dumps({"model": model, "messages": messages})
    quoted = request.replace("'", "'\\''")
    return f"""
Python:

from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="{key}")
answer = client.chat.completions.create(model="{model}", messages={messages!r})
print(answer.choices[0].message.content)

curl:

curl {base_url}/chat/completions \\
  -H 'Authorization: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{quoted}'"""


if __name__ == "__main__":
    sys.exit(main())
