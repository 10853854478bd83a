"""Rows, jobs and waiting: what several test files need."""

import json

from daemon import BASE_MODEL, eventually

TERMINAL = {"succeeded", "failed", "cancelled"}

THINGS = (
    "sky grass snow coal blood lemon ocean sand leaf night milk rose rust cloud cherry honey "
    "crow ivory jade amber plum straw slate copper"
).split()


def row(question, answer, **assistant):
    return {
        "messages": [
            {"role": "system", "content": "Answer with one word."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **assistant},
        ]
    }


def rows(count=24, answer="zebra"):
    """Short rows that teach one odd answer: easy to learn, and never what the base model says."""
    return [row(f"What colour is {THINGS[i % len(THINGS)]} {i}?", answer) for i in range(count)]


def jsonl(examples):
    return "".join(json.dumps(example) + "\n" for example in examples).encode()


def upload(client, data, name="rows.jsonl", purpose="fine-tune"):
    return client.files.create(file=(name, data), purpose=purpose)


def create(client, training_file, *, epochs=1, batch=8, options=None, **fields):
    fields.setdefault("model", BASE_MODEL)
    fields.setdefault("seed", 7)
    return client.fine_tuning.jobs.create(
        training_file=training_file,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": batch}},
        },
        extra_body={"finetuned": options} if options else None,
        **fields,
    )


def wait(client, job_id, wanted=TERMINAL, seconds=150):
    """Waits until a job has one of the wanted states; fails when it ends in another one."""

    def probe():
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in wanted:
            return job
        assert job.status not in TERMINAL, f"{job.status}: {job.error}\n{texts(client, job_id)}"
        return None

    return eventually(probe, seconds, f"{job_id} in {sorted(wanted)}")


def succeed(client, job_id, seconds=150):
    return wait(client, job_id, {"succeeded"}, seconds)


def events(client, job_id):
    """All events, oldest first, through the SDK's own paging."""
    return list(client.fine_tuning.jobs.list_events(job_id, limit=50))[::-1]


def texts(client, job_id):
    return [event.message for event in events(client, job_id)]


def steps(client, job_id):
    """Numbers of the steps that were reported, in order."""
    return [e.data["step"] for e in events(client, job_id) if e.type == "metrics"]


def wait_for_step(client, job_id, step, seconds=120):
    def probe():
        if step in steps(client, job_id):
            return True
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status not in TERMINAL - {"succeeded"}, f"{job.status}: {job.error}"
        return False

    eventually(probe, seconds, f"step {step} of {job_id}")


def result_csv(client, job):
    [file_id, *_] = job.result_files
    return client.files.with_raw_response.content(file_id, extra_query={"format": "csv"}).text


def ask(client, model, question="What colour is snow 2?", **options):
    options.setdefault("temperature", 0)
    options.setdefault("max_tokens", 8)
    messages = [
        {"role": "system", "content": "Answer with one word."},
        {"role": "user", "content": question},
    ]
    return client.chat.completions.create(model=model, messages=messages, **options)
