"""Answers over HTTP are those of the engine alone, whatever other requests run at the same time."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.server.world import LIMIT, alone, chat_ids, plain_ids

MODELS = ["base", "one", "two"]


def ids_for(base, model, text):
    return chat_ids(base, text) if model == "base" else plain_ids(base, text)


def name_of(model):
    return None if model == "base" else model


def ask(client, model, text="abc", **more):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": LIMIT,
        "temperature": 0,
        **more,
    }
    return client.post("/v1/chat/completions", json=body)


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_is_answered_as_by_the_engine_alone(client, base, store, model):
    expected = alone(base, store, name_of(model), ids_for(base, model, "abc"))
    answer = ask(client, model).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == expected.usage.completion_tokens
    assert answer["model"] == model and answer["object"] == "chat.completion"


def test_the_models_answer_differently(client):
    assert len({ask(client, model).json()["choices"][0]["message"]["content"] for model in MODELS}) == 3


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_brings_the_same_text_in_pieces(client, model):
    whole = ask(client, model).json()
    chunks = events(ask(client, model, stream=True, stream_options={"include_usage": True}))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    parts = [c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]]
    assert "".join(parts) == whole["choices"][0]["message"]["content"]
    assert len([part for part in parts if part]) > 1
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]


def test_two_adapters_and_the_base_answer_at_once_as_they_do_alone(client, base, store):
    questions = [(model, text) for model in MODELS for text in ("a", "bcd", "x y z", "hello")]
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(lambda q: ask(client, *q).json(), questions))
    for (model, text), answer in zip(questions, answers, strict=True):
        expected = alone(base, store, name_of(model), ids_for(base, model, text))
        assert answer["choices"][0]["message"]["content"] == expected.text


def test_completions_go_on_from_bare_text_or_tokens(client, base, store):
    expected = alone(base, store, "one", plain_ids(base, "abc"))
    body = {"model": "one", "max_tokens": LIMIT, "temperature": 0}
    for prompt in ("abc", list(plain_ids(base, "abc"))):
        answer = client.post("/v1/completions", json={**body, "prompt": prompt}).json()
        assert [choice["text"] for choice in answer["choices"]] == [expected.text]
    other = alone(base, store, "one", plain_ids(base, "zz"))
    many = client.post("/v1/completions", json={**body, "prompt": ["abc", "zz"]}).json()
    assert [choice["text"] for choice in many["choices"]] == [expected.text, other.text]
    assert many["usage"]["prompt_tokens"] == 3 + 2
    streamed = events(client.post("/v1/completions", json={**body, "prompt": ["abc", "zz"], "stream": True}))
    texts = ["", ""]
    for chunk in streamed:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [expected.text, other.text]


def test_a_seed_repeats_an_answer_and_each_choice_has_its_own(client, base, store):
    asked = {"temperature": 1.5, "seed": 7, "n": 3}
    first, second = (ask(client, "one", **asked).json() for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert len(set(texts)) == 3
    ids = plain_ids(base, "abc")
    assert texts == [alone(base, store, "one", ids, temperature=1.5, seed=7 + n).text for n in range(3)]
    assert first["usage"]["prompt_tokens"] == len(ids)


def test_stop_strings_end_an_answer_and_are_not_in_it(client):
    text = ask(client, "one").json()["choices"][0]["message"]["content"]
    stop = text[4]
    choice = ask(client, "one", stop=stop).json()["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_log_probabilities_are_the_engines(client, base, store):
    expected = alone(base, store, "two", plain_ids(base, "abc"), logprobs=3)
    choice = ask(client, "two", logprobs=True, top_logprobs=3).json()["choices"][0]
    content = choice["logprobs"]["content"]
    tokens = [one.token_id for one in expected.logprobs]  # with the end token, if there is one
    assert [one["token"].strip(" ") for one in content] == [base.tokenizer.decode([t]) for t in tokens]
    for one, other in zip(content, expected.logprobs, strict=False):
        assert one["logprob"] == pytest.approx(other.logprob, abs=1e-5)
        assert [top["logprob"] for top in one["top_logprobs"]] == pytest.approx(
            [logprob for _, logprob in other.top], abs=1e-5
        )
        assert bytes(one["bytes"]).decode() == one["token"]
    chunks = events(ask(client, "two", logprobs=True, top_logprobs=3, stream=True))
    streamed = [t for c in chunks for t in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [one["token"] for one in streamed] == [one["token"] for one in content]
    body = {"model": "two", "prompt": "abc", "max_tokens": LIMIT, "temperature": 0, "logprobs": 2}
    logprobs = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [one["token"] for one in content]
    lengths = [len(token) for token in logprobs["tokens"]]
    assert logprobs["text_offset"] == [sum(lengths[:place]) for place in range(len(lengths))]


def test_fields_go_through_the_adapters_own_template_and_encoding(client, base, store):
    expected = alone(base, store, "one", plain_ids(base, "qed"))
    body = {"model": "one", "fields": {"text": "qed"}, "max_tokens": LIMIT, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == expected.text
    wrong = client.post("/v1/chat/completions", json={**body, "fields": {"txt": "qed"}})
    assert wrong.status_code == 400 and "needs the field 'text'" in wrong.json()["error"]["message"]
    of_base = client.post("/v1/chat/completions", json={**body, "model": "base"})
    assert of_base.status_code == 400 and of_base.json()["error"]["code"] == "no_template"


def test_a_message_may_come_in_parts_and_from_a_developer(client):
    whole = ask(client, "one").json()["choices"][0]["message"]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]
    assert (
        ask(client, "one", messages=[{"role": "user", "content": parts}]).json()["choices"][0]["message"]
        == whole
    )
    developer = ask(client, "base", messages=[{"role": "developer", "content": "abc"}]).json()
    system = ask(client, "base", messages=[{"role": "system", "content": "abc"}]).json()
    assert developer["choices"] == system["choices"]


def test_without_a_limit_an_answer_gets_what_fits(client):
    body = {"model": "base", "messages": [{"role": "user", "content": "a" * 30}], "logit_bias": {"0": -100}}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["usage"]["total_tokens"] == 64  # the base's positions


def test_compare_streams_all_models_from_one_batch(client, base, store):
    body = {"models": MODELS, "fields": {"text": "abc"}, "max_tokens": LIMIT}
    chunks = events(client.post("/v1/compare", json=body))
    texts = dict.fromkeys(MODELS, "")
    for chunk in chunks:
        assert MODELS[chunk["index"]] == chunk["model"]
        texts[chunk["model"]] += chunk["text"]
    ids = plain_ids(base, "abc")  # the base is asked as the first adapter is
    assert texts == {model: alone(base, store, name_of(model), ids).text for model in MODELS}
    order = [chunk["model"] for chunk in chunks]
    assert set(order[:3]) == set(MODELS), "side by side, not one after the other"
    whole = client.post("/v1/compare", json={**body, "stream": False}).json()
    assert {one["model"]: one["text"] for one in whole["answers"]} == texts
    twice = client.post("/v1/compare", json={**body, "models": ["one", "one"]})
    assert twice.status_code == 400


def test_models_lists_the_base_and_the_adapters_with_their_fields(client, store):
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == MODELS
    assert listed[1]["fields"] == ["text"] and listed[1]["root"] == store.resolve("one")
    assert client.get("/v1/models/two").json() == listed[2]
    assert client.get("/v1/models/base").json() == listed[0]
    assert client.get("/v1/models/three").json()["error"]["code"] == "model_not_found"
