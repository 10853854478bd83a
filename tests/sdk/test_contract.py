"""The check of answers against the descriptions finds what is wrong."""

import json
import urllib.request

import pytest

import contract


@pytest.fixture(scope="module")
def agreement(server):
    with urllib.request.urlopen(f"{server.root_url}/openapi.json", timeout=30) as answer:
        return contract.Contract(json.load(answer))


FILE = {"id": "file-1", "object": "file", "bytes": 1, "created_at": 1, "expires_at": None, "filename": "a",
        "purpose": "fine-tune", "status": "processed", "status_details": None}
LIST = {"object": "list", "data": [FILE], "first_id": "file-1", "last_id": "file-1", "has_more": False}


@pytest.mark.parametrize("status, kind, body, fault", [
    (200, "application/json", LIST, None),
    (418, "application/json", LIST, "the status is not described"),
    (200, "text/plain", LIST, "the media type 'text/plain' is not described"),
    (200, "application/json", {**LIST, "has_more": "no"}, "has_more: 'no' is not of type 'boolean'"),
    (200, "application/json", {**LIST, "data": [{**FILE, "status": "odd"}]}, "data.0.status: 'odd' is not one of"),
    (404, "application/json", {"error": "gone"}, "error: 'gone' is not of type 'object'"),
])
def test_a_fault_is_named(agreement, status, kind, body, fault):
    agreement.faults.clear()
    path = "/v1/files" if status != 404 else "/v1/files/file-1"
    agreement.check(contract.Exchange("GET", path + "?limit=1", status, kind, json.dumps(body).encode()))
    assert bool(agreement.faults) == (fault is not None)
    assert fault is None or fault in agreement.faults[0]


def test_what_the_published_description_forbids_is_found_too(agreement):
    agreement.faults.clear()
    wrong = {**FILE, "purpose": "odd"}
    agreement.check(contract.Exchange("GET", "/v1/files/file-1", 200, "application/json", json.dumps(wrong).encode()))
    assert [fault for fault in agreement.faults if "published: purpose" in fault]


def test_the_page_of_the_description_is_served(server):
    with urllib.request.urlopen(f"{server.root_url}/docs", timeout=30) as page:
        assert page.headers.get_content_type() == "text/html" and b"openapi.json" in page.read()
