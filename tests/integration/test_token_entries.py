"""Every generated token has one entry with its bytes and its place in the text, streamed or not."""

import json
from collections.abc import Iterator

import pytest
import torch
from starlette.testclient import TestClient
from tests.engine.test_token_bytes import TOKENIZERS
from tests.random_cases import cases
from tests.server.world import app_of
from transformers import LlamaConfig, LlamaForCausalLM

from manytune.engine.request import TokenLogprobs
from manytune.server.answers.token_entries import TokenEntries
from manytune.store.base import load_base
from manytune.store.store import AdapterStore

LIMIT = 16


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def written(request, tmp_path_factory) -> Iterator[tuple[TestClient, object]]:
    """A client of a server whose base draws any token of a tokenizer, and the tokenizer."""
    tokenizer = TOKENIZERS[request.param]
    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3,  # rows without a token
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    app = app_of(load_base(str(directory)), AdapterStore(directory / "store"))
    with TestClient(app, base_url="http://localhost") as client:
        yield client, tokenizer


def asked(client, path, **more):
    prompt = {"prompt": "café"} if path == "/v1/completions" else {}
    prompt = prompt or {"messages": [{"role": "user", "content": "café"}]}
    body = {"model": "base", "max_tokens": LIMIT, "temperature": 2, **prompt, **more}
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    return [json.loads(line[6:]) for line in response.text.split("\n\n") if line and line != "data: [DONE]"]


def chat_of(client, **more):
    """Text, entries and number of tokens, checked to be the same in a stream."""
    more = {"logprobs": True, "top_logprobs": 2, **more}
    whole = asked(client, "/v1/chat/completions", **more)
    (choice,) = whole["choices"]
    chunks = [c["choices"][0] for c in asked(client, "/v1/chat/completions", stream=True, **more)]
    entries = choice["logprobs"]["content"]
    assert [one for chunk in chunks if chunk["logprobs"] for one in chunk["logprobs"]["content"]] == entries
    text = choice["message"]["content"]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == text
    return text, entries, whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("seed", range(cases(6)))
def test_the_bytes_of_the_entries_are_those_of_the_text(written, seed):
    client, tokenizer = written
    special = {str(token): -100 for token in tokenizer.all_special_ids if token != tokenizer.eos_token_id}
    text, entries, count = chat_of(client, seed=seed, ignore_eos=seed % 2 == 0, logit_bias=special)
    assert len(entries) == count
    content = b"".join(bytes(one["bytes"]) for one in entries)
    if "\ufffd" not in text:
        assert content == text.encode()
    elif (
        "<0x41>" not in tokenizer.get_vocab()
    ):  # byte fallback's decoder replaces all bytes of a run, whole ones too
        assert content.decode(errors="replace") == text


def token_of(tokenizer, content):
    """The token of one byte."""
    name = f"<0x{content:02X}>"
    if name in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids(name)
    return tokenizer.convert_tokens_to_ids({0xF0: "ð", 0x9F: "Ł", 0x98: "ĺ", 0x80: "Ģ"}[content])


def test_parts_of_an_emoji_have_entries_of_their_own_and_one_place(written):
    client, tokenizer = written
    parts = [token_of(tokenizer, content) for content in "😀".encode()]
    body = {"logprobs": 4, "temperature": 0, "logit_bias": {str(token): 100 for token in parts}}
    # Each of the four bytes may come again, so the likeliest next one is forced by a penalty on those that came.
    choice = asked(client, "/v1/completions", presence_penalty=2, **body)["choices"][0]
    entries = choice["logprobs"]
    labels = {f"bytes:\\x{content:02x}" for content in "😀".encode()}
    assert set(entries["tokens"]) <= labels and len(entries["tokens"]) == LIMIT
    for label, logprob, top in zip(
        entries["tokens"], entries["token_logprobs"], entries["top_logprobs"], strict=True
    ):
        assert top[label] == logprob


@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_the_chosen_token_is_among_the_likeliest_ones(written, wanted):
    client, _ = written
    for seed in range(4):
        entries = asked(client, "/v1/completions", logprobs=wanted, seed=seed)["choices"][0]["logprobs"]
        rows = zip(entries["tokens"], entries["token_logprobs"], entries["top_logprobs"], strict=True)
        for token, logprob, top in rows:
            assert top[token] == logprob
            assert wanted <= len(top) <= wanted + 1
        _, content, _ = chat_of(client, seed=seed, top_logprobs=wanted)
        for one in content:
            own = {key: one[key] for key in ("token", "logprob", "bytes")}
            assert own in one["top_logprobs"] if wanted else one["top_logprobs"] == []


def test_end_tokens_that_are_ignored_or_end_an_answer_have_an_entry(written):
    client, tokenizer = written
    bias = {str(tokenizer.eos_token_id): 100}
    for ignore_eos, count in ((True, 5), (False, 1)):
        text, entries, tokens = chat_of(client, max_tokens=5, logit_bias=bias, ignore_eos=ignore_eos)
        assert (text, len(entries), tokens) == ("", count, count)
        assert {(one["token"], tuple(one["bytes"])) for one in entries} == {("</s>", ())}
        body = {"max_tokens": 5, "logit_bias": bias, "ignore_eos": ignore_eos, "logprobs": 1}
        found = asked(client, "/v1/completions", **body)["choices"][0]["logprobs"]
        assert found["tokens"] == ["</s>"] * count and found["text_offset"] == [0] * count


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("seed", range(cases(3)))
def test_offsets_are_places_in_the_text(written, seed, echo):
    client, tokenizer = written
    special = {str(token): -100 for token in tokenizer.all_special_ids}
    body = {"logprobs": 2, "seed": seed, "echo": echo, "logit_bias": special}
    choice = asked(client, "/v1/completions", **body)["choices"][0]
    text, entries = choice["text"], choice["logprobs"]
    places = [*entries["text_offset"], len(text)]
    assert places[0] == 0 and places == sorted(places)
    if "\ufffd" not in text:
        for label, start, end in zip(entries["tokens"], places, places[1:], strict=False):
            assert text[start:end] == label or label.startswith("bytes:")
    chunks = [c["choices"][0] for c in asked(client, "/v1/completions", stream=True, **body)]
    assert "".join(chunk["text"] for chunk in chunks) == text
    for name, values in entries.items():
        assert [one for chunk in chunks if chunk["logprobs"] for one in chunk["logprobs"][name]] == values


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_tokens_of_one_text_are_told_apart(chosen):
    texts = {0: ("a", b"a"), 1: ("a", b"a"), 2: ("b", b"b"), 3: ("a", b"a")}
    top = ((1, -0.5), (0, -1.5), (2, -2.0), (3, -3.0))
    entries = TokenEntries(lambda token, first: texts[token]).text(
        [TokenLogprobs(chosen, dict(top)[chosen], top)]
    )
    (found,) = entries["top_logprobs"]
    assert sorted(found.values()) == sorted(value for _, value in top)
    assert found[texts[chosen][0]] == dict(top)[chosen]
    assert found["token_id:3"] == -3.0


def stopped(client, stop, token, **more):
    """Text, reason and length of an answer that is one token again and again, whole and streamed alike."""
    body = {"temperature": 0, "logit_bias": {str(token): 100}, "stop": stop, "logprobs": 1, **more}
    whole = asked(client, "/v1/completions", **body)
    chunks = [c["choices"][0] for c in asked(client, "/v1/completions", stream=True, **body)]
    (choice,) = whole["choices"]
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]
    return choice["text"], choice["finish_reason"], whole["usage"]["completion_tokens"]


def test_special_tokens_are_stop_strings_like_any_other(written):
    client, tokenizer = written
    names = {name for name in tokenizer.all_special_tokens if name != tokenizer.eos_token}
    assert names
    for name in names:
        token = tokenizer.convert_tokens_to_ids(name)
        assert stopped(client, ["never", name], token) == ("", "stop", 1)
        assert stopped(client, name[:-1], token) == ("", "stop", 1), "a part of one"
        assert stopped(client, f"{name[-1]}{name[0]}", token) == (name[:-1], "stop", 2), "across two"
        assert stopped(client, "never", token) == (name * LIMIT, "length", LIMIT)


def test_an_end_token_that_is_ignored_is_a_stop_string_too(written):
    client, tokenizer = written
    end = tokenizer.eos_token_id
    assert stopped(client, ["never", "</s>"], end, ignore_eos=True) == ("", "stop", 1)
    assert stopped(client, ["never"], end, ignore_eos=True) == ("", "length", LIMIT)


def test_entries_go_on_to_the_end_of_a_stop_string(written):
    client, _ = written
    text, entries, _ = chat_of(client, seed=1)
    stop = next(letter for letter in text[2:] if letter.isascii() and letter.isprintable())
    cut, kept, count = chat_of(client, seed=1, stop=stop)
    assert cut == text[: text.index(stop)] and len(kept) == count
    assert kept == entries[:count]
    assert stop.encode() in b"".join(bytes(one["bytes"]) for one in kept)
