"""Files through the SDK: create, list, retrieve, content, delete."""

import openai
import pytest

import jobs

ROWS = jobs.jsonl(jobs.rows(12))


@pytest.fixture
def file(client):
    file = jobs.upload(client, ROWS, "naïve name.jsonl")
    yield file
    try:
        client.files.delete(file.id)
    except openai.NotFoundError:
        pass


def test_a_created_file_has_openais_shape(file):
    assert file.id.startswith("file-")
    assert (file.object, file.purpose, file.status) == ("file", "fine-tune", "processed")
    assert file.bytes == len(ROWS)
    assert file.filename == "naïve name.jsonl"


def test_a_file_is_retrieved_as_it_was_created(client, file):
    assert client.files.retrieve(file.id) == file
    assert client.files.wait_for_processing(file.id, max_wait_seconds=5).status == "processed"


def test_the_content_is_byte_for_byte_what_was_uploaded(client, file):
    assert client.files.content(file.id).read() == ROWS


def test_listing_pages_through_all_files_newest_first(client):
    made = [jobs.upload(client, ROWS, f"{n}.jsonl").id for n in range(5)]
    listed = [f.id for f in client.files.list(purpose="fine-tune", limit=2)]
    assert [i for i in listed if i in made] == made[::-1]
    ascending = [f.id for f in client.files.list(limit=2, order="asc")]
    assert [i for i in ascending if i in made] == made
    for file_id in made:
        client.files.delete(file_id)


def test_an_unknown_purpose_lists_nothing(client, file):
    assert client.files.list(purpose="batch").data == []


def test_a_deleted_file_is_gone(client, file):
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file.id)
        assert caught.value.param == "id"
        assert f"No such File object: {file.id}" in str(caught.value)


def test_only_names_of_known_containers_are_taken_for_fine_tuning(client):
    with pytest.raises(openai.BadRequestError, match=r"\.jsonl, \.json, \.csv, \.tsv"):
        jobs.upload(client, ROWS, "rows.txt")


def test_a_purpose_that_does_not_exist_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.upload(client, ROWS, purpose="decoration")
    assert caught.value.param == "purpose"
    assert "fine-tune" in caught.value.message
