"""Checkpoint permissions through the SDK: two projects, each with a key of its own."""

import openai
import pytest

import jobs


@pytest.fixture(scope="module")
def project(server):
    return server.command("projects", "create", "--name", "another team")


@pytest.fixture(scope="module")
def other(server, project):
    return server.client(api_key=server.command("keys", "create", "--project", project))


def test_a_permission_opens_a_model_and_its_end_closes_it(client, other, project, tuned):
    model = tuned.fine_tuned_model
    permissions = client.fine_tuning.checkpoints.permissions
    for call in (lambda: other.models.retrieve(model), lambda: jobs.ask(other, model)):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
    [permission] = permissions.create(model, project_ids=[project])
    assert (permission.object, permission.project_id) == ("checkpoint.permission", project)
    assert [p.id for p in permissions.list(model, order="ascending", project_id=project)] == [permission.id]
    assert permissions.retrieve(model).data[0].id == permission.id
    assert other.models.retrieve(model).owned_by == "personal"
    assert model in [m.id for m in other.models.list()]
    assert "zebra" in jobs.ask(other, model).choices[0].message.content
    with pytest.raises(openai.PermissionDeniedError):
        other.models.delete(model)
    with pytest.raises(openai.PermissionDeniedError):
        other.fine_tuning.checkpoints.permissions.create(model, project_ids=[project])
    gone = permissions.delete(permission.id, fine_tuned_model_checkpoint=model)
    assert gone.deleted and gone.id == permission.id
    with pytest.raises(openai.NotFoundError):
        jobs.ask(other, model)
    assert list(permissions.list(model)) == []


def test_lists_page_by_the_sdks_own_cursor(server, client, project, tuned):
    checkpoint = client.fine_tuning.jobs.checkpoints.list(tuned.id).data[-1].fine_tuned_model_checkpoint
    projects = [project, server.command("projects", "create", "--name", "a third")]
    permissions = client.fine_tuning.checkpoints.permissions
    permissions.create(checkpoint, project_ids=projects)
    try:
        paged = permissions.list(checkpoint, limit=1, order="descending")
        assert [p.project_id for p in paged] == projects[::-1]
    finally:
        for permission in list(permissions.list(checkpoint)):
            permissions.delete(permission.id, fine_tuned_model_checkpoint=checkpoint)


def test_unknown_projects_and_models_are_refused(client, tuned):
    permissions = client.fine_tuning.checkpoints.permissions
    with pytest.raises(openai.BadRequestError) as caught:
        permissions.create(tuned.fine_tuned_model, project_ids=["proj_unknown"])
    assert caught.value.param == "project_ids"
    with pytest.raises(openai.NotFoundError) as caught:
        permissions.create("ft:unknown:x::1", project_ids=["proj_default"])
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        permissions.delete("cp_unknown", fine_tuned_model_checkpoint=tuned.fine_tuned_model)
