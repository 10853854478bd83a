"""Completions of plain texts, and what chats and texts tell about their tokens."""

import math

import openai
import pytest

import jobs
from daemon import BASE_MODEL

PROMPT = "The capital of France is"


def test_a_text_goes_on(client):
    answer = client.completions.create(model=BASE_MODEL, prompt=PROMPT, temperature=0)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.usage.completion_tokens == 16
    assert "Paris" in answer.choices[0].text
    pieces = client.completions.create(model=BASE_MODEL, prompt=PROMPT, temperature=0, stream=True)
    assert "".join(p.choices[0].text for p in pieces if p.choices) == answer.choices[0].text


def test_the_prompt_s_own_tokens_can_be_scored(client):
    answer = client.completions.create(
        model=BASE_MODEL, prompt=PROMPT + " Paris", echo=True, logprobs=2, max_tokens=0, temperature=0)
    choice = answer.choices[0]
    assert choice.text == PROMPT + " Paris"
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text and told.token_logprobs[0] is None
    assert told.text_offset[-1] == len(PROMPT) and told.tokens[-1] == " Paris"
    assert max(told.top_logprobs[-1], key=told.top_logprobs[-1].get) == " Paris"
    assert answer.usage.completion_tokens == 0


def test_prompts_come_in_lists_and_as_tokens(client):
    answer = client.completions.create(
        model=BASE_MODEL, prompt=["One, two,", PROMPT], n=2, max_tokens=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    by_ids = client.completions.create(
        model=BASE_MODEL, prompt=[504, 3575, 282], echo=True, max_tokens=2, temperature=0)
    assert by_ids.usage.prompt_tokens == 3 and by_ids.choices[0].text


def test_the_best_of_several_is_the_most_probable(client):
    best = client.completions.create(
        model=BASE_MODEL, prompt=PROMPT, best_of=3, logprobs=0, max_tokens=4, seed=2)
    all_three = client.completions.create(
        model=BASE_MODEL, prompt=PROMPT, n=3, logprobs=0, max_tokens=4, seed=2)
    mean = lambda c: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs)
    assert best.choices[0].text == max(all_three.choices, key=mean).text
    assert best.usage.completion_tokens == all_three.usage.completion_tokens


def test_a_tuned_model_completes_texts_too(client, tuned):
    answer = client.completions.create(
        model=tuned.fine_tuned_model, prompt=PROMPT, max_tokens=3, stop=["\n"])
    assert answer.model == tuned.fine_tuned_model


def test_an_unknown_token_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=BASE_MODEL, prompt=[10_000_000])
    assert caught.value.param == "prompt"


def test_log_probabilities_are_the_same_whole_and_streamed(client):
    options = dict(
        model=BASE_MODEL, messages=[{"role": "user", "content": "Say: Grüße 漢字 😀"}],
        temperature=0, max_tokens=24, logprobs=True, top_logprobs=3)
    choice = client.chat.completions.create(**options).choices[0]
    entries = choice.logprobs.content
    text = bytes(b for e in entries for b in e.bytes).decode(errors="replace")
    assert text == choice.message.content
    for entry in entries:
        top = [t.logprob for t in entry.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        # Greedy: the token is the first of the most probable ones.
        assert math.isclose(entry.logprob, top[0]) and entry.logprob <= 0
    chunks = client.chat.completions.create(**options, stream=True)
    streamed = [e for c in chunks for e in ((c.choices[0].logprobs and c.choices[0].logprobs.content) or [])]
    assert [(e.bytes, e.logprob) for e in streamed] == [(e.bytes, e.logprob) for e in entries]


def test_bias_bans_and_forces_tokens(client):
    options = dict(model=BASE_MODEL, prompt=PROMPT, max_tokens=1, temperature=0)
    first = client.completions.create(**options, logprobs=1).choices[0]
    raw = client.completions.create(**options, logit_bias={"42": 100}).choices[0]
    assert raw.text != first.text


def test_raw_responses_carry_their_headers(client):
    raw = client.chat.completions.with_raw_response.create(
        model=BASE_MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().choices[0].finish_reason == "length"
