"""Chat completions of the base model and of tuned ones, with and without streaming."""

import time

import openai
import pytest

import jobs
from daemon import BASE_MODEL

STORY = [{"role": "user", "content": "Tell me a short story about a fox."}]


def text(completion):
    return completion.choices[0].message.content


def test_the_tuned_model_learned_and_the_base_model_did_not(client, tuned):
    assert "zebra" in text(jobs.ask(client, tuned.fine_tuned_model)).lower()
    assert "zebra" not in text(jobs.ask(client, BASE_MODEL)).lower()


def test_a_checkpoint_answers_under_its_own_name(client, tuned):
    checkpoint = client.fine_tuning.jobs.checkpoints.list(tuned.id).data[1]
    answer = jobs.ask(client, checkpoint.fine_tuned_model_checkpoint)
    assert answer.model == checkpoint.fine_tuned_model_checkpoint


def test_a_model_answers_soon_after_its_job(client, training_file):
    job = jobs.succeed(client, jobs.create(client, training_file.id, batch=24).id)
    started = time.monotonic()
    jobs.ask(client, job.fine_tuned_model, max_tokens=1)
    took = time.monotonic() - started
    # The promise is two seconds on a quiet machine.
    assert took < 5, f"{took:.1f} s to the first answer"


def test_the_completion_has_openais_shape(client, tuned):
    completion = jobs.ask(client, tuned.fine_tuned_model)
    assert completion.id.startswith("chatcmpl-")
    assert (completion.object, completion.model) == ("chat.completion", tuned.fine_tuned_model)
    choice = completion.choices[0]
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.refusal, choice.logprobs) == ("assistant", None, None)
    usage = completion.usage
    assert usage.prompt_tokens > 10 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_greedy_answers_repeat(client):
    first, second = (
        text(client.chat.completions.create(
            model=BASE_MODEL, messages=STORY, temperature=0, max_tokens=16))
        for _ in range(2)
    )
    assert first == second and len(first) > 10


def test_streaming_says_the_same_in_pieces(client):
    options = dict(model=BASE_MODEL, messages=STORY, temperature=0, max_tokens=16)
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    with_choices = [c.choices[0] for c in chunks if c.choices]
    assert with_choices[0].delta.role == "assistant"
    pieces = [choice.delta.content for choice in with_choices if choice.delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == text(whole)
    assert with_choices[-1].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_the_first_words_arrive_before_the_last(client):
    started = time.monotonic()
    arrivals = [
        time.monotonic() - started
        for chunk in client.chat.completions.create(
            model=BASE_MODEL, messages=STORY, temperature=0, max_tokens=24, stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert arrivals[0] < arrivals[-1] / 2


def test_max_tokens_ends_the_answer(client):
    for limit in ("max_tokens", "max_completion_tokens"):
        completion = client.chat.completions.create(
            model=BASE_MODEL, messages=STORY, temperature=0, **{limit: 3})
        assert completion.usage.completion_tokens == 3
        assert completion.choices[0].finish_reason == "length"


def test_a_stop_text_ends_the_answer_and_is_left_out(client):
    options = dict(model=BASE_MODEL, messages=STORY, temperature=0, max_tokens=24)
    whole = text(client.chat.completions.create(**options))
    stop = whole.split()[3]
    stopped = client.chat.completions.create(**options, stop=[stop, "never said"])
    assert stopped.choices[0].finish_reason == "stop"
    assert text(stopped) == whole[: whole.index(stop)]


def test_a_seed_makes_sampling_repeat(client):
    def sample(seed):
        return text(client.chat.completions.create(
            model=BASE_MODEL, messages=STORY, temperature=1.0, top_p=0.95, seed=seed, max_tokens=12))

    assert sample(11) == sample(11)
    assert len({sample(seed) for seed in (11, 12, 13)}) > 1


def test_several_choices_of_one_prompt(client):
    completion = client.chat.completions.create(
        model=BASE_MODEL, messages=STORY, n=2, temperature=1.0, seed=3, max_tokens=6)
    assert [choice.index for choice in completion.choices] == [0, 1]


def test_content_parts_are_text(client):
    plain = jobs.ask(client, BASE_MODEL, max_tokens=4)
    parts = client.chat.completions.create(
        model=BASE_MODEL,
        temperature=0,
        max_tokens=4,
        messages=[
            {"role": "developer", "content": "Answer with one word."},
            {"role": "user", "content": [{"type": "text", "text": "What colour is snow 2?"}]},
        ],
    )
    assert text(parts) == text(plain)


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        jobs.ask(client, "no-such-model")
    assert caught.value.code == "model_not_found"
    assert "no-such-model" in caught.value.message


def test_a_prompt_beyond_the_context_is_refused_with_its_count(client):
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.ask(client, BASE_MODEL, "fox " * 9_000)
    assert caught.value.code == "context_length_exceeded"


def test_sampling_values_out_of_range_are_refused(client):
    for options, field in (({"temperature": 3}, "temperature"), ({"top_p": 2}, "top_p")):
        with pytest.raises(openai.BadRequestError) as caught:
            jobs.ask(client, BASE_MODEL, **options)
        assert caught.value.param == field


def test_chat_goes_on_while_a_job_runs(client, training_file):
    job = jobs.create(client, training_file.id, epochs=5, batch=4)
    try:
        jobs.wait_for_step(client, job.id, 1)
        assert text(jobs.ask(client, BASE_MODEL, max_tokens=4))
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    finally:
        client.fine_tuning.jobs.cancel(job.id)
