"""Uploads in parts and files that expire, through the SDK as it is."""

import concurrent.futures
import hashlib
import random
import time

import openai
import pytest

import jobs

ROWS = jobs.jsonl(jobs.rows(12))
LARGE = random.Random(7).randbytes(9_000_000)
HOUR = {"anchor": "created_at", "seconds": 3600}


def begin(client, content, **options):
    options = {"filename": "rows.jsonl", "purpose": "fine-tune", "mime_type": "text/jsonl", **options}
    return client.uploads.create(bytes=len(content), **options)


def add(client, upload, data):
    part = client.uploads.parts.create(upload.id, data=data)
    assert (part.object, part.upload_id) == ("upload.part", upload.id)
    return part.id


def retrieve(client, upload):
    """Our own call, which the SDK does not know."""
    return client.get(f"/uploads/{upload.id}", cast_to=openai.types.Upload)


def refused(call, *, param=None, code=None, match=None):
    """No retries, no harm: the answer is final."""
    with pytest.raises(openai.BadRequestError, match=match) as caught:
        call()
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


def test_a_file_on_disk_goes_up_in_parts(client, tmp_path):
    path = tmp_path / "large file.bin"
    path.write_bytes(LARGE)
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/octet-stream", purpose="user_data", part_size=2_000_000,
        md5=hashlib.md5(LARGE).hexdigest(),
    )
    assert (upload.status, upload.filename, upload.bytes) == ("completed", path.name, len(LARGE))
    assert upload.file.bytes == len(LARGE)
    assert client.files.content(upload.file.id).read() == LARGE
    middle = client.files.with_raw_response.content(
        upload.file.id, extra_headers={"Range": "bytes=1999990-2000009"}
    )
    assert (middle.status_code, middle.content) == (206, LARGE[1_999_990:2_000_010])
    client.files.delete(upload.file.id)


def test_bytes_in_memory_go_up_in_parts_and_are_trained_on(client):
    upload = client.uploads.upload_file_chunked(
        file=ROWS, filename="rows.jsonl", bytes=len(ROWS), mime_type="text/jsonl", purpose="fine-tune",
        part_size=500,
    )
    job = jobs.succeed(client, jobs.create(client, upload.file.id, batch=12).id)
    assert job.training_file == upload.file.id


def test_parts_sent_at_once_are_ordered_by_the_completion(client):
    upload = begin(client, LARGE, filename="x.bin", purpose="assistants")
    assert (upload.object, upload.status, upload.file) == ("upload", "pending", None)
    assert upload.expires_at == upload.created_at + 3600
    pieces = [LARGE[i : i + 2_500_000] for i in range(0, len(LARGE), 2_500_000)]
    with concurrent.futures.ThreadPoolExecutor(len(pieces)) as pool:
        parts = list(pool.map(lambda piece: add(client, upload, piece), pieces))
    received = {part["id"]: part["bytes"] for part in retrieve(client, upload).model_extra["parts"]}
    assert received == {part: len(piece) for part, piece in zip(parts, pieces)}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: client.uploads.complete(upload.id, part_ids=parts), range(3)))
    assert len({upload.file.id for upload in done}) == 1
    # A completion that is sent again, as after a broken connection.
    assert client.uploads.complete(upload.id, part_ids=parts) == done[0]
    assert client.files.content(done[0].file.id).read() == LARGE
    client.files.delete(done[0].file.id)
    assert retrieve(client, upload).file is None


def test_an_upload_is_resumed_from_the_parts_received(client):
    upload = begin(client, ROWS)
    add(client, upload, ROWS[:700])
    # Another process, which knows the upload's id alone.
    parts = retrieve(client, upload).model_extra["parts"]
    there = sum(part["bytes"] for part in parts)
    assert parts[0]["sha256"] == hashlib.sha256(ROWS[:there]).hexdigest()
    rest = add(client, upload, ROWS[there:])
    done = client.uploads.complete(upload.id, part_ids=[parts[0]["id"], rest])
    assert client.files.content(done.file.id).read() == ROWS
    client.files.delete(done.file.id)


def test_a_wrong_completion_is_refused_and_the_right_one_taken(client):
    upload, other = begin(client, ROWS), begin(client, ROWS)
    part, foreign = add(client, upload, ROWS), add(client, other, ROWS)
    complete = client.uploads.complete

    def wrong(part_ids, **options):
        return lambda: complete(upload.id, part_ids=part_ids, **options)

    refused(wrong([]), param="part_ids", code="invalid_value", match="0 bytes")
    refused(wrong([part, part]), param="part_ids", code="invalid_value", match="more than once")
    refused(wrong([foreign]), param="part_ids", code="invalid_value", match=foreign)
    refused(wrong([part], md5="0" * 32), param="md5", code="invalid_value")
    refused(wrong([part], md5="short"), param="md5", code="invalid_value")
    done = complete(upload.id, part_ids=[part], md5=hashlib.md5(ROWS).hexdigest().upper())
    assert done.status == "completed"
    refused(lambda: add(client, upload, b"late"), match="'completed'")
    refused(lambda: client.uploads.cancel(upload.id), match="'completed'")
    assert client.uploads.cancel(other.id).status == "cancelled"
    client.files.delete(done.file.id)


def test_a_cancelled_upload_takes_nothing_more(client):
    upload = begin(client, ROWS)
    part = add(client, upload, ROWS)
    for _ in range(2):
        assert client.uploads.cancel(upload.id).status == "cancelled"
    refused(lambda: add(client, upload, ROWS), match="'cancelled'")
    refused(lambda: client.uploads.complete(upload.id, part_ids=[part]), match="'cancelled'")
    assert retrieve(client, upload).status == "cancelled"


def test_an_empty_file_goes_up_without_parts(client):
    upload = client.uploads.upload_file_chunked(
        file=b"", filename="empty.txt", bytes=0, mime_type="text/plain", purpose="user_data"
    )
    assert client.files.content(upload.file.id).read() == b""
    client.files.delete(upload.file.id)


@pytest.mark.parametrize(
    "wrong, param, code",
    [
        ({"purpose": "decoration"}, "purpose", "invalid_value"),
        ({"filename": "rows.txt"}, None, None),
        ({"filename": ""}, "filename", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after.seconds", "integer_below_min_value"),
        ({"extra_body": {"bytes": -1}}, "bytes", "integer_below_min_value"),
        ({"extra_body": {"bytes": 2**34}}, "bytes", "integer_above_max_value"),
        ({"extra_body": {"colour": "red"}}, "colour", "unknown_parameter"),
    ],
)
def test_a_wrong_announcement_is_refused_by_field(client, wrong, param, code):
    refused(lambda: begin(client, ROWS, **wrong), param=param, code=code)


def test_an_unknown_upload_is_not_found(client):
    for call in (
        lambda: client.uploads.cancel("upload_nothing"),
        lambda: client.uploads.complete("upload_nothing", part_ids=[]),
        lambda: client.uploads.parts.create("upload_nothing", data=b"x"),
    ):
        with pytest.raises(openai.NotFoundError, match="No such Upload object: upload_nothing"):
            call()


def test_a_part_has_its_limit(client):
    upload = begin(client, bytes(70_000_000), filename="x.bin", purpose="user_data")
    with pytest.raises(openai.APIStatusError) as caught:
        add(client, upload, bytes(64 * 1024 * 1024 + 1))
    assert caught.value.status_code == 413
    client.uploads.cancel(upload.id)


def test_files_expire_when_asked_to(client):
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune", expires_after=HOUR)
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    batch = client.files.create(file=("rows.jsonl", ROWS), purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 24 * 3600
    upload = begin(client, ROWS, expires_after=HOUR)
    done = client.uploads.complete(upload.id, part_ids=[add(client, upload, ROWS)])
    assert done.file.expires_at == done.file.created_at + 3600
    assert abs(done.file.created_at - time.time()) < 60
    for made in (file, batch, done.file):
        client.files.delete(made.id)


@pytest.mark.parametrize(
    "wrong, param, code",
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after[seconds]", "integer_below_min_value"),
        ({"anchor": "created_at", "seconds": 2592001}, "expires_after[seconds]", "integer_above_max_value"),
        ({"anchor": "last_active_at", "seconds": 3600}, "expires_after[anchor]", "invalid_value"),
        ({"seconds": 3600}, "expires_after[anchor]", "missing_required_parameter"),
        ({"anchor": "created_at"}, "expires_after[seconds]", "missing_required_parameter"),
        ({"anchor": "created_at", "seconds": 3600, "days": 1}, "expires_after[days]", "unknown_parameter"),
    ],
)
def test_a_wrong_expiry_of_a_file_is_refused_by_field(client, wrong, param, code):
    create = client.files.create
    refused(
        lambda: create(file=("rows.jsonl", ROWS), purpose="fine-tune", expires_after=wrong), param=param, code=code
    )
