"""What decides a request's replica, and how many answers it counts as."""

import json

import pytest

from manytune.replicas.affinity import PREFIX_CHARS, read_body

CHAT, COMPLETIONS, COMPARE = "/v1/chat/completions", "/v1/completions", "/v1/compare"


def read(path, **body):
    return read_body(path, json.dumps(body).encode())


def key(path, **body):
    return read(path, **body).key("base", {"one": "d1", "alias": "d1", "two": "d2"}.get)


def messages(*texts):
    return [{"role": "user", "content": text} for text in texts]


def test_requests_for_one_adapter_share_a_replica_whatever_they_ask_and_by_what_name():
    found = {
        key(CHAT, model="one", messages=messages("a")),
        key(CHAT, model="alias", messages=messages("b")),
        key(COMPLETIONS, model="one", prompt="c"),
        key("/v1/classify", model="one", input=["d"]),
        key(COMPARE, models=["base", "one", "two"], messages=messages("e")),
    }
    assert found == {"adapter d1"}
    assert key(CHAT, model="unknown", messages=[]) == "adapter unknown"


def test_requests_for_the_base_share_a_replica_if_their_prompts_begin_alike():
    system = {"role": "system", "content": "s" * PREFIX_CHARS}
    long = [key(CHAT, model="base", messages=[system, *messages(text)]) for text in "ab"]
    short = [key(CHAT, model="base", messages=messages(text)) for text in "ab"]
    assert long[0] == long[1] and short[0] != short[1]
    tokens = [key(COMPLETIONS, model="base", prompt=[*range(300), last]) for last in (1, 2)]
    assert tokens[0] == tokens[1] != key(COMPLETIONS, model="base", prompt=[7, *range(300)])


@pytest.mark.parametrize(
    ("path", "body", "answers", "field"),
    [
        (CHAT, {"model": "one", "n": 3}, 3, "n"),
        (CHAT, {"model": "one"}, 1, "n"),
        (COMPLETIONS, {"model": "one", "prompt": ["a", "b"], "n": 2}, 4, "n"),
        (COMPLETIONS, {"model": "one", "prompt": [[1], [2], [3]]}, 3, "prompt"),
        (COMPLETIONS, {"model": "one", "prompt": [1, 2, 3]}, 1, "prompt"),
        (COMPARE, {"models": ["one", "two"]}, 2, "models"),
        ("/v1/embeddings", {"model": "one", "input": ["a", "b"]}, 1, "n"),
        (CHAT, {"model": "one", "n": True}, 1, "n"),
        (CHAT, {"model": "one", "n": "4"}, 1, "n"),
    ],
)
def test_answers_are_counted_as_the_routes_count_them(path, body, answers, field):
    found = read(path, **body)
    assert (found.answers, found.count_field) == (answers, field)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"a"', b'{"model": 1}', b"{}", b"[" * 100_000, b'{"model": null, "models": ["one"]}'],
)
def test_a_body_that_cannot_be_read_is_left_to_the_replica(body):
    assert read_body(CHAT, body) is None


def test_other_routes_are_for_any_replica():
    assert read("/v1/models", model="one") is None
