"""Answers that must be JSON: any object, or one that satisfies a schema. The base model would say nothing
of the kind by itself."""

import json
import typing

import openai
import pydantic
import pytest

from daemon import BASE_MODEL

ASK = [{"role": "user", "content": "Describe the fox Reynard, as JSON."}]


class Fox(pydantic.BaseModel):
    colour: typing.Literal["red", "grey", "white"]
    legs: int
    friends: list[typing.Literal["badger", "wolf"]]
    den: typing.Optional[bool]


def test_parse_gives_an_object_of_the_class(client):
    for seed in (1, 2):
        answer = client.chat.completions.parse(
            model=BASE_MODEL, messages=ASK, response_format=Fox, temperature=1.2, seed=seed,
            max_tokens=300)
        fox = answer.choices[0].message.parsed
        assert isinstance(fox, Fox) and answer.choices[0].finish_reason == "stop"


def test_a_streamed_answer_parses_too(client):
    with client.chat.completions.stream(
        model=BASE_MODEL, messages=ASK, response_format=Fox, temperature=1.0, seed=5, max_tokens=300
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0].message
    assert len(deltas) > 5 and isinstance(final.parsed, Fox)
    assert "".join(deltas) == final.content


def test_json_object_is_an_object_or_cut(client):
    for seed in range(3):
        answer = client.chat.completions.create(
            model=BASE_MODEL, messages=ASK, response_format={"type": "json_object"},
            temperature=1.0, seed=seed, max_tokens=60)
        choice = answer.choices[0]
        assert choice.message.content.lstrip().startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.finish_reason == "length"


def test_an_answer_that_is_cut_says_so(client):
    schema = {"type": "object", "properties": {"a": {"const": "x" * 100}}, "required": ["a"]}
    answer = client.chat.completions.create(
        model=BASE_MODEL, messages=ASK, max_tokens=5,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})
    assert answer.choices[0].finish_reason == "length"


def test_what_cannot_be_held_to_is_refused_by_name(client):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x$"}}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=BASE_MODEL, messages=ASK, response_format=form)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "response_format")
    assert "'pattern'" in caught.value.message
