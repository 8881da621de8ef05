"""Rows stay compact, and every sequence keeps its own keys and values, whatever comes and goes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases

from manytune.engine.kv_cache import WIDTH_MULTIPLE, KVCache, row_width


def cache(budget=8 * WIDTH_MULTIPLE, max_rows=8):
    return KVCache(
        layers=2,
        heads=2,
        head_dim=4,
        budget=budget,
        max_rows=max_rows,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def values(seed, tokens):
    return torch.randn(2, 2, 2, tokens, 4, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=cases(70), deadline=None)
@given(data=st.data())
def test_each_sequence_keeps_its_own_values(data):
    kept = cache()
    wrote = {}
    decoding = set()
    for number in range(data.draw(st.integers(1, 30))):
        name = str(number)
        action = data.draw(st.sampled_from(["add", "add", "write", "decode", "truncate", "remove"]))
        if action == "add":
            max_tokens = data.draw(st.integers(1, 3 * WIDTH_MULTIPLE))
            widest = row_width(max([max_tokens, *(entry[0] for entry in wrote.values())]))
            if (len(wrote) + 1) * widest <= 8 * WIDTH_MULTIPLE:
                kept.add(name, max_tokens)
                wrote[name] = (max_tokens, values(number, 0))
        elif wrote:
            name = data.draw(st.sampled_from(sorted(wrote)))
            max_tokens, own = wrote[name]
            if action == "write" and own.shape[3] < max_tokens:
                more = values(1000 + number, data.draw(st.integers(1, max_tokens - own.shape[3])))
                kept.write(name, more)
                wrote[name] = (max_tokens, torch.cat((own, more), dim=3))
            elif action == "truncate":
                kept.truncate(name, gone := data.draw(st.integers(0, own.shape[3])))
                wrote[name] = (max_tokens, own[:, :, :, : own.shape[3] - gone])
            elif action == "decode" and name not in decoding:
                kept.start_decoding(name)
                decoding.add(name)
            elif action == "remove":
                kept.remove(name)
                del wrote[name]
                decoding.discard(name)
        kept.check_integrity()
        assert set(kept.order) == set(wrote)
        assert set(kept.order[: kept.decoding]) == decoding
        for name, (_, own) in wrote.items():
            assert kept.length(name) == own.shape[3]
            assert torch.equal(kept.read(name, own.shape[3]), own)


def test_layers_are_views_of_the_rows():
    kept = cache()
    kept.add("a", 10)
    kept.write("a", values(1, 3))
    keys, found = kept.layer(1)
    assert torch.equal(keys[0, :, :3], values(1, 3)[1, 0]) and torch.equal(
        found[0, :, :3], values(1, 3)[1, 1]
    )
    keys[kept.row("a"), :, 3] = 1.0
    kept.extend("a", 1)
    assert kept.read("a", 4)[1, 0, :, 3].eq(1.0).all()


def test_what_was_never_written_is_finite(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(*shape, float("nan"), **options))
    kept = cache()
    for number in range(3):
        kept.add(str(number), 2 + number * WIDTH_MULTIPLE // 2)
        for layer in range(2):
            for part in kept.layer(layer):
                assert torch.isfinite(part[: len(kept)]).all()


def test_a_sequence_cannot_outgrow_its_row():
    kept = cache()
    kept.add("a", 2)
    with pytest.raises(AssertionError, match="outgrew"):
        kept.write("a", values(1, 3))
