"""The operation in C++ adds to each token what the formula says of its own adapter, and nothing of any other's."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.machine import assert_near, needs_compiler
from tests.random_cases import cases
from tests.reference.terms import added

from manytune.methods.tuners.terms import Update

pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")

from manytune.engine.openvino import native
from manytune.engine.openvino.native import NOTHING, Operation, Part, Weights, applied, plan_of

pytestmark = needs_compiler

PHI = ["", "relu", "gelu", "silu", "tanh"]


@pytest.fixture(scope="module")
def operation():
    """A machine that should have it and hasn't fails."""
    found = native.operation()
    assert found is not None
    return found


def weights_of(update, dtype=torch.float32):
    return Weights(update.down.to(dtype), update.up.T.contiguous().to(dtype), update.down_bias)


def rounded(update, dtype):
    return replace(update, down=update.down.to(dtype).float(), up=update.up.to(dtype).float())


def drawn(generator, rank, inputs, outputs, has_bias):
    down, up, bias = (
        torch.randn(*shape, generator=generator) for shape in ((rank, inputs), (outputs, rank), (rank,))
    )
    return Update(down, up, down_bias=bias if has_bias else None)


def run(operation, parts, adapters, tokens, x, ys, dtype=torch.float32):
    """`adapters`: the updates of each by their numbers."""
    kept = [
        [weights_of(own[part.number], dtype) if part.number in own else None for own in adapters]
        for part in parts
    ]
    entries = np.array([[NOTHING if one is None else one.entry for one in row] for row in kept], np.int64)
    return applied(operation, parts, plan_of(tokens, entries, dtype), x, ys)


@settings(max_examples=cases(40), deadline=None)
@given(data=st.data())
def test_it_computes_the_formula(operation, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    inputs = data.draw(st.sampled_from([1, 16, 37, 64]))
    widths = data.draw(st.lists(st.sampled_from([1, 16, 50, 96]), min_size=1, max_size=3))
    parts, at = [], 0
    for target, width in enumerate(widths):
        # A y of one layer, or of several of which some have updates.
        column = data.draw(st.sampled_from([0, 5]))
        for _ in range(data.draw(st.integers(0 if len(widths) > 1 else 1, 2))):
            parts.append(Part(at, target, column, width, inputs, data.draw(st.sampled_from(PHI))))
            at += 1
    parts = parts or [Part(0, 0, 0, widths[0], inputs, "")]
    adapters = [
        {
            part.number: drawn(
                generator,
                data.draw(st.sampled_from([1, 4, 8, 13])),
                inputs,
                part.outputs,
                data.draw(st.booleans()),
            )
            for part in parts
            if data.draw(st.booleans())
        }
        for _ in range(3)
    ]
    tokens = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=40))
    x = torch.randn(1, len(tokens), inputs, generator=generator)
    ys = [torch.randn(1, len(tokens), 5 + width + 3, generator=generator) for width in widths]
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    found = run(operation, parts, adapters, tokens, x, ys, dtype)
    for target, y in enumerate(ys):
        expected = y.clone()
        for part in parts:
            for token, adapter in enumerate(tokens):
                own = adapters[adapter].get(part.number)
                if part.target == target and own is not None:
                    columns = slice(part.column, part.column + part.outputs)
                    expected[0, token, columns] += added(
                        rounded(own, dtype), x[0, token], part.activation or None
                    )
        assert_near(found[target], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_bits_in_any_mixture(operation, dtype):
    generator = torch.Generator().manual_seed(4)
    part = Part(0, 0, 0, 90, 75, "silu")
    adapters = [{0: drawn(generator, rank, 75, 90, True)} for rank in (8, 21)]
    tokens = [0, 1, *[0] * 21, 1, 1, 0]
    x, y = (torch.randn(1, len(tokens), size, generator=generator) for size in (75, 90))
    (together,) = run(operation, [part], adapters, tokens, x, [y], dtype)
    for token, adapter in enumerate(tokens):
        own = slice(token, token + 1)
        (alone,) = run(operation, [part], adapters, [adapter], x[:, own], [y[:, own]], dtype)
        assert torch.equal(alone[0, 0], together[0, token])


def test_infinite_weights_and_inputs_stay_in_their_rows(operation):
    generator = torch.Generator().manual_seed(5)
    part = Part(0, 0, 0, 48, 32, "")
    good, bad = (drawn(generator, 8, 32, 48, False) for _ in range(2))
    bad = replace(bad, down=torch.full_like(bad.down, torch.inf), up=torch.full_like(bad.up, torch.nan))
    tokens = [0, 1, 0, 0, 0, 1, 2]
    x, y = (torch.randn(1, len(tokens), size, generator=generator) for size in (32, 48))
    x[0, -1] = torch.inf  # of a token without an adapter
    (found,) = run(operation, [part], [{0: good}, {0: bad}, {}], tokens, x, [y])
    for token, adapter in enumerate(tokens):
        expected = y[0, token] + (added(good, x[0, token], None) if adapter == 0 else 0)
        if adapter != 1:
            assert_near(found[0, token], expected)
        else:
            assert found[0, token].isnan().all()


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (Part(0, 0, 0, 48, 31, ""), 3),
        (Part(0, 0, 8, 48, 32, ""), 3),
        (Part(1, 0, 0, 48, 32, ""), 3),
        (Part(0, 0, 0, 48, 32, ""), 2),
    ],
)
def test_sizes_that_dont_fit_are_errors(operation, part, tokens):
    own = drawn(torch.Generator().manual_seed(6), 8, 32, 48, False)
    plan = plan_of([0] * tokens, np.array([[weights_of(own).entry]], np.int64))
    with pytest.raises(RuntimeError, match=r"another size than its layer|expected \d tokens"):
        applied(operation, [part], plan, torch.zeros(1, 3, 32), [torch.zeros(1, 3, 48)])


def unfound(caplog, *said):
    with caplog.at_level(logging.WARNING):
        assert native.operation.__wrapped__() is None
    for part in ("computed by products", *said):
        assert part in caplog.text


def test_without_a_compiler_the_log_says_what_to_install(caplog, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    unfound(caplog, "no C++ compiler found: install g++")


def test_it_can_be_switched_off(caplog, monkeypatch):
    monkeypatch.setenv("MANYTUNE_KERNELS", "torch")
    unfound(caplog, "MANYTUNE_KERNELS=torch")


def test_what_doesnt_compile_is_said(caplog, monkeypatch, tmp_path):
    (tmp_path / "wrong.cpp").write_text("#error no such thing")
    monkeypatch.setattr(native, "_SOURCES", tmp_path)
    unfound(caplog, "no such thing")


def test_a_library_that_is_none_of_openvinos_is_said(caplog, monkeypatch, tmp_path):
    (tmp_path / "other.cpp").write_text("int other() { return 0; }")
    monkeypatch.setattr(native, "_SOURCES", tmp_path)
    unfound(caplog)


def test_a_package_without_headers_is_said(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(native.ov, "__file__", str(tmp_path / "__init__.py"))
    unfound(caplog, "without its headers and libraries")


def test_a_result_that_is_wrong_is_found(caplog, monkeypatch, operation):
    class Swapped(Operation):
        def node(self, plan, x, targets, parts):
            return super().node(plan, x, targets, [replace(one, activation="relu") for one in parts])

    monkeypatch.setattr(native, "Operation", Swapped)
    unfound(caplog, "of the largest value away from torch's result")
    assert native.difference(operation) is None


def test_the_source_is_in_the_package():
    assert (Path(native.__file__).parent / "sources" / "updates.cpp").is_file()
