"""Calls of functions: a model that is taught to call, and calls that must come from any model."""

import json

import openai
import pytest

import jobs
from daemon import BASE_MODEL

CITIES = "Ulm Bonn Kiel Mainz Trier Jena Gera Celle Hamm Unna Fulda Worms".split()

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def question(city):
    return [{"role": "user", "content": f"How is the weather in {city}?"}]


def row(city, index):
    call = {
        "id": f"call_{index}",
        "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
    }
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [*question(city), answer], "tools": [WEATHER]}


@pytest.fixture(scope="module")
def caller(client):
    """A model that has learned to call the function."""
    rows = [row(CITIES[i % len(CITIES)], i) for i in range(10)]
    file = jobs.upload(client, jobs.jsonl(rows), "calls.jsonl")
    job = jobs.create(client, file.id, epochs=2, batch=2, options={"learning_rate": 2e-3})
    return jobs.succeed(client, job.id).fine_tuned_model


def test_a_model_that_was_taught_calls_calls(client, caller):
    answer = client.chat.completions.create(
        model=caller, messages=question("Ulm"), tools=[WEATHER], temperature=0, max_tokens=60)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.id.startswith("call_") and call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Ulm"}

    # The answer goes back as it came, with the result behind it.
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*question("Ulm"), choice.message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(
        model=caller, messages=messages, tools=[WEATHER], temperature=0, max_tokens=4)
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens + 20


def test_streamed_fragments_make_the_same_call(client, caller):
    options = dict(
        model=caller, messages=question("Kiel"), tools=[WEATHER], temperature=0, max_tokens=60)
    whole = client.chat.completions.create(**options).choices[0].message.tool_calls[0]
    chunks = [c.choices[0] for c in client.chat.completions.create(**options, stream=True)]
    fragments = [call for c in chunks for call in c.delta.tool_calls or []]
    assert fragments[0].id.startswith("call_") and fragments[0].function.name == "get_weather"
    assert all(f.id is None and f.function.name is None for f in fragments[1:])
    assert len(fragments) > 3, "the arguments come in pieces"
    assert "".join(f.function.arguments for f in fragments) == whole.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    with client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == whole.function.arguments


def test_none_means_no_calls(client, caller):
    answer = client.chat.completions.create(
        model=caller, messages=question("Ulm"), tools=[WEATHER], tool_choice="none",
        temperature=0, max_tokens=8)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_any_model_calls_when_it_must(client):
    tools = [WEATHER, {"type": "function", "function": {
        "name": "set_lamp", "strict": True,
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}},
                       "required": ["on"], "additionalProperties": False}}}]
    named = client.chat.completions.create(
        model=BASE_MODEL, messages=question("Ulm"), tools=tools, max_tokens=40, temperature=0,
        tool_choice={"type": "function", "function": {"name": "set_lamp"}})
    [call] = named.choices[0].message.tool_calls
    assert call.function.name == "set_lamp"
    assert type(json.loads(call.function.arguments)["on"]) is bool
    required = client.chat.completions.create(
        model=BASE_MODEL, messages=question("Ulm"), tools=tools, max_tokens=60, temperature=0,
        tool_choice="required", parallel_tool_calls=False)
    assert required.choices[0].message.tool_calls[0].function.name in ("get_weather", "set_lamp")


def test_functions_of_old_are_answered_as_of_old(client, caller):
    answer = client.chat.completions.create(
        model=caller, messages=question("Bonn"), functions=[WEATHER["function"]],
        temperature=0, max_tokens=60)
    choice = answer.choices[0]
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    assert choice.message.function_call.name == "get_weather"


def test_faulty_tools_are_refused_by_path(client):
    bad = {"type": "function", "function": {"name": "not good"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=BASE_MODEL, messages=question("Ulm"), tools=[bad])
    assert caught.value.param == "tools[0].function.name"
