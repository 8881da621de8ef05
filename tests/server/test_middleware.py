"""Before any route: host names, request ids and the size of bodies."""

import pytest
from starlette.testclient import TestClient
from tests.server.world import app_of


def test_a_body_that_is_too_large_is_refused_whatever_its_length_says(base, store):
    with TestClient(app_of(base, store, max_body_bytes=1000), base_url="http://localhost") as client:
        headers = {"content-type": "application/json"}
        whole = client.post("/v1/chat/completions", content=b"x" * 1001, headers=headers)
        pieces = client.post("/v1/chat/completions", content=iter([b"x" * 600] * 2), headers=headers)
        assert whole.status_code == pieces.status_code == 413
        assert whole.json()["error"]["code"] == "body_too_large"
        for length in ("²", "9" * 5000, "-1"):  # no number that Python reads quietly
            wrong = {**headers, "content-length": length.encode()}
            assert client.post("/v1/chat/completions", content=b"{}", headers=wrong).status_code == 413


def test_a_server_without_keys_answers_to_no_other_host_name(client):
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_requests_have_ids(client):
    given = client.get("/healthz", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert len(client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32


def test_half_a_character_is_refused_wherever_it_is_and_whole_ones_and_backslashes_are_not(client):
    def sent(content: str):
        message = f'{{"role": "user", "content": "{content}"}}'
        body = f'{{"model": "base", "max_tokens": 1, "messages": [{message}]}}'
        return client.post(
            "/v1/chat/completions", content=body.encode(), headers={"content-type": "application/json"}
        )

    for half in ("a\\ud83d", "\\uDE00 b", "\\ud83d\\ud83d\\ude00", "\\ud83d\\ude00\\ude00"):
        answer = sent(half)
        assert answer.status_code == 400 and "half a character" in answer.json()["error"]["message"]
    for whole in ("\\ud83d\\ude00", "\\\\ud83d", "\\u00e9"):
        assert "half a character" not in sent(whole).text
    assert "half a character" not in sent('\\ud83d"').text  # no JSON


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "base", "prompt": "\ud800", "max_tokens": 1}'.encode("utf-8", "surrogatepass"),
        b'{"model": "base", "prompt": "\xff", "max_tokens": 1}',
        '{"model": "base", "prompt": "abc", "max_tokens": 1}'.encode("utf-16"),
        '{"model": "base", "prompt": "abc", "max_tokens": 1}'.encode("utf-32-le"),
    ],
)
def test_a_body_that_is_not_utf_8_is_refused_even_if_python_reads_it(client, body):
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "isn't UTF-8" in answer.json()["error"]["message"]
