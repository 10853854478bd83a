"""The demo: one fine-tuning job from upload to answer, with nothing but OpenAI's SDK.

Teaches a small model to classify sentences from film reviews, on real labelled rows, and measures it on
held-out ones before and after. Exits 0 only if the tuned model is better.

Reads OPENAI_BASE_URL and OPENAI_API_KEY like any program of the SDK.
"""

import argparse
import collections
import json
import os
import pathlib
import sys
import time

import openai

import terminal

DATA = pathlib.Path(__file__).parent.parent / "data"
MODEL = "smollm2-135m-instruct"
LABELS = ("positive", "negative")
TRAINING_ROWS = 512
HELD_OUT_ROWS = 50
SHOWN_ROWS = 6
# Examples in the prompt of the fairer baseline, which shows the base model what form is wanted.
PROMPT_EXAMPLES = 4
# Longer answers are not the label anyway.
MAX_ANSWER_TOKENS = 8
POLL_SECONDS = 0.5

Answer = collections.namedtuple("Answer", "text label")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--show-usage", action="store_true", help="print Python and curl to paste")
    show_usage = arguments.parse_args().show_usage

    started = time.monotonic()
    client = openai.OpenAI()
    training, held_out = training_rows(), held_out_rows()
    file = upload(client, training)
    terminal.headline(f"The base model on {len(held_out)} held-out sentences")
    before = answers(client, MODEL, held_out)
    terminal.headline(f"The base model with {PROMPT_EXAMPLES} examples in its prompt")
    helped = answers(client, MODEL, held_out, examples=few_examples(training))
    job = train(client, file)
    terminal.headline(f"{job.fine_tuned_model} on the same sentences")
    after = answers(client, job.fine_tuned_model, held_out)
    show_side_by_side(held_out, before, after)
    is_better = show_accuracy(before, helped, after)
    print(f"\nThe whole demo took {terminal.duration(time.monotonic() - started)}.")
    if show_usage:
        print(usage(client, job.fine_tuned_model))
    return 0 if is_better else 1


def read_rows(name):
    with open(DATA / name, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def training_rows():
    return read_rows("sentiment_train.jsonl")[:TRAINING_ROWS]


def held_out_rows():
    """As many of each label, so that always giving the same answer is right half of the time."""
    return balanced(read_rows("sentiment_test.jsonl"), HELD_OUT_ROWS)


def few_examples(rows):
    """Some training rows as earlier turns of the conversation."""
    return [message for row in balanced(rows, PROMPT_EXAMPLES) for message in row["messages"][1:]]


def balanced(rows, count):
    each = count // len(LABELS)
    by_label = [[row for row in rows if label_of(row) == label][:each] for label in LABELS]
    return [row for pair in zip(*by_label) for row in pair]


def label_of(row):
    return row["messages"][-1]["content"]


def sentence_of(row):
    return row["messages"][-2]["content"]


def upload(client, rows):
    terminal.headline("Upload")
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    file = client.files.create(file=("sentiment.jsonl", data), purpose="fine-tune")
    print(f"{file.id}  {len(rows)} rows, {file.bytes:,} bytes")
    print(f"  a sentence: {terminal.shorten(sentence_of(rows[0]), 70)}")
    print(f"  its label:  {label_of(rows[0])}")
    return file


def answers(client, model, rows, examples=()):
    """The model's greedy answer to every row, without its label."""
    line, found = terminal.Line(), []
    for number, row in enumerate(rows, 1):
        system, question, _ = row["messages"]
        completion = client.chat.completions.create(
            model=model,
            messages=[system, *examples, question],
            temperature=0,
            max_tokens=MAX_ANSWER_TOKENS,
        )
        found.append(Answer(completion.choices[0].message.content, label_of(row)))
        right = sum(map(is_exact, found))
        line.show(f"{terminal.bar(number / len(rows))} {number}/{len(rows)}  exactly right: {right}")
    line.finish()
    return found


def is_exact(answer):
    return answer.text.strip().rstrip(".").lower() == answer.label


def train(client, file):
    """Creates the job and shows it until it ends."""
    terminal.headline("Fine-tuning job")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        suffix="sentiment",
        seed=1,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}},
        },
        # Ours, beyond OpenAI's three hyperparameters.
        extra_body={"finetuned": {"learning_rate": 5e-4, "lora": {"rank": 16, "alpha": 32}}},
    )
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


def show_side_by_side(rows, before, after):
    terminal.headline("Side by side")
    print(f"{'sentence':<56}{'label':<10}{'base model':<26}tuned model")
    for row, base, tuned in list(zip(rows, before, after))[:SHOWN_ROWS]:
        sentence = terminal.shorten(sentence_of(row), 54)
        base_text = terminal.shorten(base.text, 24)
        tuned_text = terminal.shorten(tuned.text, 24)
        mark = "✓" if is_exact(tuned) else "✗"
        print(f"{sentence:<56}{base.label:<10}{base_text:<26}{tuned_text} {mark}")


def show_accuracy(before, helped, after):
    """Prints the share of answers that are exactly the label; true if the tuned model's is the best."""
    terminal.headline("Held-out accuracy")
    shares = []
    for title, found in (
        ("base model", before),
        (f"base model, {PROMPT_EXAMPLES} examples in the prompt", helped),
        ("tuned model", after),
    ):
        shares.append(sum(map(is_exact, found)) / len(found))
        print(f"{title:<40}{terminal.bar(shares[-1])} {shares[-1]:>4.0%}")
    print("Without examples the base model mostly misses the form; with them it guesses in the right one.")
    is_better = shares[-1] > max(shares[:-1])
    print("The tuned model is better." if is_better else "THE TUNED MODEL IS NOT BETTER.")
    return is_better


def usage(client, model):
    base_url, key = str(client.base_url).rstrip("/"), os.environ["OPENAI_API_KEY"]
    prompt = "Classify the sentence from a film review. Answer with one word: positive or negative."
    body = json.dumps(
        {
            "model": model,
            "messages": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": "A small, warm film that stays with you."},
            ],
        }
    )
    return f"""
Python:

from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}",
    messages=[
        {{"role": "system", "content": "{prompt}"}},
        {{"role": "user", "content": "A small, warm film that stays with you."}},
    ],
)
print(answer.choices[0].message.content)

curl:

curl {base_url}/chat/completions \\
  -H 'Authorization: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{body}'"""


if __name__ == "__main__":
    sys.exit(main())
