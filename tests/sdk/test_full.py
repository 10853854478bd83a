"""Full fine-tuning: every weight of a copy of the base model is trained, and the copy answers."""

import openai
import pytest

import jobs
from daemon import BASE_MODEL


def ask(client, model):
    answer = client.chat.completions.create(
        model=model, max_tokens=4, temperature=0,
        messages=[
            {"role": "system", "content": "Answer with one word."},
            {"role": "user", "content": "What colour is snow 2?"},
        ],
    )
    return answer.choices[0].message.content


def test_a_whole_model_is_trained_and_answers(client):
    file = jobs.upload(client, jobs.jsonl(jobs.rows(10)))
    options = {
        "tuning": "full", "optimizer": "adamw_8bit", "learning_rate": 2e-4, "schedule": "constant",
        "warmup_steps": 0,
    }
    job = jobs.create(client, file.id, epochs=1, batch=5, suffix="whole", options=options)
    job = jobs.succeed(client, job.id)
    shown = job.model_extra["finetuned"]
    assert (shown["tuning"], shown["optimizer"]) == ("full", "adamw_8bit")
    before = ask(client, BASE_MODEL)
    after = ask(client, job.fine_tuned_model)
    assert after and after != before, "two steps of every weight are seen in the answer"
    assert ask(client, BASE_MODEL) == before, "the base model is as it was"
    assert job.fine_tuned_model in {model.id for model in client.models.list()}
    client.models.delete(job.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(job.fine_tuned_model)


@pytest.mark.parametrize(
    "options, param",
    [
        ({"tuning": "whole"}, "finetuned.tuning"),
        ({"tuning": "full", "quantization": "nf4"}, "finetuned.quantization"),
        ({"tuning": "full", "lora": {"rank": 4}}, "finetuned.lora"),
        ({"optimizer": "sgd"}, "finetuned.optimizer"),
    ],
)
def test_what_does_not_go_together_is_refused_by_path(client, training_file, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.create(client, training_file.id, options=options)
    assert caught.value.param == param
