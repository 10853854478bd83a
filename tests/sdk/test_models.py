"""Models through the SDK, tuned ones and checkpoints included."""

import openai
import pytest

import jobs
from daemon import BASE_MODEL


def test_base_and_tuned_models_are_listed(client, tuned):
    models = {model.id: model for model in client.models.list()}
    assert models[BASE_MODEL].object == "model"
    assert models[tuned.fine_tuned_model].created > 0
    assert any(name.endswith(":ckpt-step-3") for name in models)


def test_a_model_is_retrieved_by_its_full_name(client, tuned):
    assert client.models.retrieve(tuned.fine_tuned_model).id == tuned.fine_tuned_model
    assert client.models.retrieve(BASE_MODEL).id == BASE_MODEL


def test_an_unknown_model_is_not_found(client):
    for call in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call("no-such-model")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_base_model_cannot_be_deleted_through_the_api(client):
    with pytest.raises(openai.APIStatusError) as caught:
        client.models.delete(BASE_MODEL)
    assert caught.value.status_code in (400, 403)
    assert client.models.retrieve(BASE_MODEL).id == BASE_MODEL


def test_a_deleted_tuned_model_answers_no_more(client, training_file):
    job = jobs.create(client, training_file.id, batch=24)
    model = jobs.succeed(client, job.id).fine_tuned_model
    assert jobs.ask(client, model).model == model
    assert client.models.delete(model).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        jobs.ask(client, model)
    assert caught.value.code == "model_not_found"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
