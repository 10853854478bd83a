"""Stored completions through the SDK: kept, listed, described, deleted."""

import openai
import pytest

import jobs
from daemon import BASE_MODEL


def test_a_stored_completion_has_a_life_of_its_own(client):
    topic = {"topic": "stored-test"}
    made = [
        jobs.ask(client, BASE_MODEL, f"What colour is {thing}?", max_tokens=2, store=True, metadata=topic)
        for thing in ("snow", "coal")
    ]
    jobs.ask(client, BASE_MODEL, max_tokens=1, metadata=topic)  # not stored
    listed = list(client.chat.completions.list(metadata=topic, limit=1))
    assert [c.id for c in listed] == [c.id for c in made], "oldest first, through the SDK's paging"
    first = client.chat.completions.retrieve(made[0].id)
    assert first.choices[0].message.content == made[0].choices[0].message.content
    assert first.metadata == topic and first.model == BASE_MODEL

    changed = client.chat.completions.update(first.id, metadata={"seen": "yes"})
    assert changed.metadata == {"seen": "yes"}
    messages = list(client.chat.completions.messages.list(first.id))
    assert [m.role for m in messages] == ["system", "user"]
    assert messages[1].id == f"{first.id}-1" and messages[1].content == "What colour is snow?"

    gone = client.chat.completions.delete(first.id)
    assert gone.deleted and gone.object == "chat.completion.deleted"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(first.id)
    client.chat.completions.delete(made[1].id)


def test_a_stream_is_stored_too(client):
    chunks = list(client.chat.completions.create(
        model=BASE_MODEL, messages=[{"role": "user", "content": "Count."}], max_tokens=4,
        temperature=0, stream=True, store=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    kept = client.chat.completions.retrieve(chunks[0].id)
    assert kept.choices[0].message.content == text
    client.chat.completions.delete(kept.id)
