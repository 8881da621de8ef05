"""A base without its weights."""

from __future__ import annotations

import pytest
from tests.store.peft_made import save_peft
from tests.word_base import save_word_encoder

from manytune.errors import ServeError
from manytune.handover import base as handover_base
from manytune.handover.base import empty_base
from manytune.handover.vllm_engine import check_store
from manytune.handover.vllm_rules import VllmVerdicts
from manytune.store.folder import store_at


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))


def test_its_weights_are_read_once_and_again_when_a_file_has_changed(base, tmp_path, monkeypatch):
    loads = []
    load = handover_base.load_base

    def counted(*args, **more):
        loads.append(args)
        return load(*args, **more)

    monkeypatch.setattr(handover_base, "load_base", counted)
    lines = []
    for _ in range(2):
        found = empty_base(base.name, notify=lines.append)
        assert found.base.fingerprint == base.fingerprint and found.location == base.name
        assert {parameter.device.type for parameter in found.base.model.parameters()} == {"meta"}
    assert len(loads) == len(lines) == 1
    base.model.save_pretrained(base.name)  # the same, written again
    empty_base(base.name, notify=lines.append)
    assert len(loads) == 2


def test_a_directory_of_peft_adapters_is_checked_without_the_bases_weights(base, tmp_path):
    save_peft(tmp_path / "adapters" / "support", 1)
    found = empty_base(base.name, notify=print)
    store = store_at(tmp_path / "adapters", found.base)
    store.refresh()
    (checked,) = check_store(store, VllmVerdicts(store, found.base, patterns=True), ())
    assert checked.entry.names == ("support",) and checked.reason is None


def test_an_adapter_of_another_base_is_refused(base, store, tmp_path):
    other = tmp_path / "other"
    base.model.model.embed_tokens.weight.data[0] += 1
    try:
        base.model.save_pretrained(other)
    finally:
        base.model.model.embed_tokens.weight.data[0] -= 1
    base.tokenizer.save_pretrained(other)
    found = empty_base(str(other), notify=print)
    checked = check_store(store, VllmVerdicts(store, found.base, patterns=True), ())
    assert all("trained on another base; the weights differ" in (one.reason or "") for one in checked)


def test_a_base_that_writes_no_text_is_refused(tmp_path):
    save_word_encoder(tmp_path / "encoder", ["<pad>", "<unk>", "<begin>", "<end>"])
    with pytest.raises(ServeError, match="this base is an encoder"):
        empty_base(str(tmp_path / "encoder"), notify=print)
