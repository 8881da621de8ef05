"""Finding 10: no web page of somebody else makes a server on this machine answer. Headers are those of browsers."""

from __future__ import annotations

import json

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient
from tests.server.api_client import ROOT
from tests.server.world import app_of

from manytune.server.access.auth import Keys
from manytune.server.access.origins import check_sender
from manytune.server.http_errors import HttpError
from manytune.server.middleware import PUBLIC_PATHS

BODY = json.dumps({"model": "base", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
JSON = {"content-type": "application/json"}


def outcome(headers: dict[str, str], *, is_page: bool = False, is_keyless: bool = True) -> int:
    """The status of a refusal, or 200."""
    try:
        check_sender(Headers(headers), is_page=is_page, is_keyless=is_keyless)
    except HttpError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    "content_type",
    [
        {"content-type": "text/plain"},
        {"content-type": "text/plain;charset=UTF-8"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "text/plain; application/json"},
        {"content-type": "application/jsonx"},
        {},
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify", "/v1/compare"]
)
def test_a_body_that_a_form_could_send_is_not_read(client: TestClient, path: str, content_type: dict) -> None:
    refused = client.post(path, content=BODY.encode(), headers=content_type)
    assert refused.status_code == 415 and refused.json()["error"]["code"] == "unsupported_media_type"


def test_json_of_any_kind_is_read(client: TestClient) -> None:
    for value in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"):
        answer = client.post("/v1/chat/completions", content=BODY, headers={"content-type": value})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "sender",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://localhost.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("OPTIONS", "/v1/models")],
)
def test_a_page_of_another_origin_gets_no_answer_of_a_keyless_server(
    client: TestClient, method: str, path: str, sender: dict[str, str]
) -> None:
    content = BODY if method == "POST" else None
    refused = client.request(method, path, content=content, headers={**JSON, **sender})
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "foreign_origin"
    assert "access-control-allow-origin" not in refused.headers


def test_the_servers_own_page_and_links_to_it_work(client: TestClient) -> None:
    own = {"origin": "http://localhost", "sec-fetch-site": "same-origin", **JSON}
    assert client.post("/v1/chat/completions", content=BODY, headers=own).status_code == 200
    assert client.get("/v1/models", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    assert {"/", "/operator"} <= PUBLIC_PATHS


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]", "[::1]:8000")),
        *((host, 400) for host in ("evil.example", "localhost.evil.example", "localhost@evil.example", "")),
        *((host, 400) for host in ("127.0.0.1.evil.example", "[::2]", "[::1]evil", "localhost:x", "::1")),
    ],
)
def test_a_keyless_server_answers_to_its_own_host_names_only(host: str, status: int) -> None:
    assert outcome({"host": host}) == status


def test_two_host_headers_or_none_are_refused() -> None:
    for hosts in ([], ["localhost", "evil.example"], ["localhost", "localhost"]):
        headers = Headers(raw=[(b"host", host.encode()) for host in hosts])
        with pytest.raises(HttpError) as refused:
            check_sender(headers, is_page=True, is_keyless=True)
        assert refused.value.status == 400


def test_a_key_is_what_counts_where_there_are_keys(base, store) -> None:
    with TestClient(app_of(base, store, Keys([ROOT]))) as client:
        headers = {"origin": "https://app.example", "host": "models.example", **JSON}
        assert client.post("/v1/chat/completions", content=BODY, headers=headers).status_code == 401
        with_key = {**headers, "authorization": "Bearer root"}
        assert client.post("/v1/chat/completions", content=BODY, headers=with_key).status_code == 200
        as_form = {**with_key, "content-type": "text/plain"}
        assert client.post("/v1/chat/completions", content=BODY, headers=as_form).status_code == 415
