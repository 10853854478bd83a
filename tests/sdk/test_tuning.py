"""Prompt and prefix tuning, from the request to the tuned model's answer."""

import openai
import pytest

import jobs

TUNINGS = {
    "prompt": {"count": 8, "init_text": "Answer each question with the word zebra."},
    "prefix": {"count": 4},
}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_virtual_tokens_are_trained_and_answer(client, tuning):
    file = jobs.upload(client, jobs.jsonl(jobs.rows(12)))
    options = {"tuning": tuning, "virtual_tokens": TUNINGS[tuning]}
    job = jobs.create(client, file.id, epochs=4, batch=4, suffix=tuning, options=options)
    job = jobs.succeed(client, job.id)
    shown = job.model_extra["finetuned"]
    assert (shown["tuning"], shown["virtual_tokens"]) == (tuning, TUNINGS[tuning])
    assert "lora" not in shown and shown["learning_rate"] == pytest.approx(0.02)
    # The tokens of the file, not the virtual ones.
    assert job.trained_tokens == 4 * shown["dataset"]["training_file"]["tokens"]
    tuned = jobs.ask(client, job.fine_tuned_model, n=2)
    base = jobs.ask(client, job.model)
    assert [choice.message.content for choice in tuned.choices] == ["zebra", "zebra"]
    # Virtual tokens are no tokens of the prompt.
    assert tuned.usage.prompt_tokens == base.usage.prompt_tokens
    client.models.delete(job.fine_tuned_model)


@pytest.mark.parametrize(
    "options, param",
    [
        ({"tuning": "magic"}, "finetuned.tuning"),
        ({"tuning": "prompt", "lora": {"rank": 4}}, "finetuned.lora"),
        ({"virtual_tokens": {"count": 4}}, "finetuned.virtual_tokens"),
        ({"tuning": "prefix", "virtual_tokens": {"count": 0}}, "finetuned.virtual_tokens.count"),
        ({"tuning": "prefix", "virtual_tokens": {"tokens": 4}}, "finetuned.virtual_tokens.tokens"),
    ],
)
def test_options_that_do_not_apply_are_refused_by_path(client, training_file, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.create(client, training_file.id, options=options)
    assert caught.value.param == param
