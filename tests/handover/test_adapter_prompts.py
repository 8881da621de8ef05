"""An adapter is asked as in its training, whatever vLLM's own chat template is."""

from __future__ import annotations

import dataclasses

import pytest
from tests.server.world import CHAT, chat_ids, plain_ids
from tests.store.adapters_made import make_adapter

from manytune.store.manifest import Manifest

OWN = CHAT.replace("{{ m.role }} ", "{{ m.role }}  ").replace("assistant ", "assistant  ")


def add(store, base, tmp_path, name, **changes):
    """An adapter whose manifest says how its prompts are made."""
    made = make_adapter(tmp_path / f"made-{name}", base, seed=7)
    manifest = dataclasses.replace(Manifest.read(made / "manifest.json"), **changes)
    (made / "manifest.json").write_text(manifest.to_json())
    store.add(made, name=name)


def chat(client, model, **more):
    body = {"model": model, "messages": [{"role": "user", "content": "abc"}], **more}
    return client.post("/v1/chat/completions", json=body)


def tokens_of(fake_client, sent):
    """What vLLM would make of what it was sent."""
    return tuple(fake_client.post("/tokenize", json=sent).json()["tokens"])


@pytest.fixture
def tokenized(fake):
    from starlette.testclient import TestClient

    return lambda: tokens_of(TestClient(fake.app), fake.asked[-1])


def test_an_adapter_trained_without_a_chat_template_gets_its_messages_joined(client, base, tokenized):
    assert chat(client, "one").status_code == 200
    assert tokenized() == plain_ids(base, "abc") != chat_ids(base, "abc")


def test_the_base_and_adapters_of_its_chat_template_get_that(client, base, store, tmp_path, tokenized):
    add(store, base, tmp_path, "chatty", encoding="chat")
    for model in ("base", "chatty"):
        assert chat(client, model).status_code == 200
        assert tokenized() == chat_ids(base, "abc")


def test_an_adapter_with_a_chat_template_of_its_own_gets_it(client, base, store, tmp_path, fake):
    add(store, base, tmp_path, "own", encoding="chat", encoding_options={"chat_template": OWN})
    assert chat(client, "own").status_code == 200
    assert fake.asked[-1]["chat_template"] == OWN


def test_fields_go_through_the_adapters_prompt_template(client, fake):
    body = {"model": "one", "fields": {"text": "abc"}}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert fake.asked[-1]["messages"] == [{"role": "user", "content": "abc"}]
    missing = client.post("/v1/chat/completions", json={"model": "one", "fields": {"other": "abc"}})
    assert missing.status_code == 400 and "text" in missing.json()["error"]["message"]


def test_an_adapter_of_which_vllm_makes_other_prompts_is_refused_with_the_first_difference(
    client, base, store, fake, tmp_path
):
    add(store, base, tmp_path, "chatty", encoding="chat")
    fake.template = CHAT.replace("assistant ", "assistant")
    answer = chat(client, "chatty")
    assert answer.status_code == 409
    message = answer.json()["error"]["message"]
    assert "vLLM makes other prompts than its training did" in message and "is missing" in message
    assert chat(client, "one").status_code == 200  # it brings its own


def test_another_end_token_of_an_adapters_own_template_ends_its_answers(client, base, store, tmp_path, fake):
    own = CHAT.replace("<end>", "<unk>")
    add(store, base, tmp_path, "other-end", encoding="chat", encoding_options={"chat_template": own})
    assert chat(client, "other-end", stop_token_ids=[3]).status_code == 200
    assert fake.asked[-1]["stop_token_ids"] == [3, base.tokenizer.unk_token_id]
    assert chat(client, "other-end", ignore_eos=True).status_code == 200
    assert "stop_token_ids" not in fake.asked[-1]
