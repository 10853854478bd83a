"""Every way of adapting a model, from the request to the tuned model's answer."""

import openai
import pytest

import jobs

METHODS = {
    "rslora": {"lora": {"rank": 4, "rslora": True, "rank_pattern": {"down_proj": 8}}},
    "dora": {"lora": {"rank": 4, "dora": True, "target_modules": ["q_proj", "v_proj"]}},
    "qlora": {"quantization": "nf4", "lora": {"rank": 4}},
    "bf16": {"precision": "bf16", "lora": {"rank": 4}},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_answers(client, name):
    file = jobs.upload(client, jobs.jsonl(jobs.rows(10)))
    options = {"learning_rate": 1e-3, **METHODS[name]}
    job = jobs.create(client, file.id, epochs=1, batch=5, suffix=name, options=options)
    job = jobs.succeed(client, job.id)
    shown = job.model_extra["finetuned"]
    for key, value in METHODS[name].items():
        assert value.items() <= shown[key].items() if isinstance(value, dict) else shown[key] == value
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, max_tokens=3, temperature=0,
        messages=[{"role": "user", "content": "What colour is snow 2?"}],
    )
    assert answer.choices[0].message.content is not None
    assert answer.usage.completion_tokens >= 1
    client.models.delete(job.fine_tuned_model)


@pytest.mark.parametrize(
    "options, param",
    [
        ({"quantization": "int8"}, "finetuned.quantization"),
        ({"precision": "fp8"}, "finetuned.precision"),
        ({"lora": {"dora": True, "dropout": 0.1}}, "finetuned.lora.dropout"),
        ({"lora": {"rank_pattern": {"lm_head": 4}}}, "finetuned.lora.rank_pattern.lm_head"),
        ({"lora": {"ranks": 4}}, "finetuned.lora.ranks"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_path(client, training_file, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.create(client, training_file.id, options=options)
    assert caught.value.param == param
