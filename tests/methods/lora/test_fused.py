"""The fused step against separate operations: values, gradients, shapes, dtypes, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.reference import lora as slow
from torch import Tensor

from manytune.methods.lora.fused import lora_linear

OPERANDS = ("x", "weight", "bias", "lora_a", "lora_b")
#: Relative to the largest element: a float32 or bfloat16 sum in another order differs by a few units in the last place.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Setup:
    shape: tuple[int, ...] = (2, 3)
    inner: int = 5
    outer: int = 4
    rank: int = 2
    dtype: torch.dtype = torch.float64
    adapter: torch.dtype = torch.float64
    bias: bool = True
    dropout: float = 0.0
    scaling: float = 1.5
    needs: frozenset[str] = frozenset({"x", "lora_a", "lora_b"})
    strided: bool = False
    transposed: bool = False

    def operands(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

        x = draw(*self.shape, self.inner, dtype=self.dtype)
        if self.strided:
            x = draw(self.inner, *reversed(self.shape), dtype=self.dtype).permute(*range(x.ndim - 1, -1, -1))
        weight = draw(self.outer, self.inner, dtype=self.dtype)
        if self.transposed:
            weight = weight.t().contiguous().t()
        values = {
            "x": x,
            "weight": weight,
            "bias": draw(self.outer, dtype=self.dtype) if self.bias else None,
            "lora_a": draw(self.rank, self.inner, dtype=self.adapter),
            "lora_b": draw(self.outer, self.rank, dtype=self.adapter),
        }
        return {
            name: value if value is None else value.detach().requires_grad_(name in self.needs)
            for name, value in values.items()
        }


def outcome(function: Any, setup: Setup) -> tuple[Tensor, dict[str, Tensor | None]]:
    operands = setup.operands()
    torch.manual_seed(1)
    y = function(*operands.values(), setup.scaling, dropout=setup.dropout)
    if y.requires_grad:
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    return y.detach(), {name: None if t is None else t.grad for name, t in operands.items()}


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    size = float(expected.double().abs().max()) if expected.numel() else 0.0
    off = (found.double() - expected.double()).abs()
    assert not off.numel() or float(off.max()) <= TOLERANCE[dtype] * max(size, 1.0), what


def assert_agrees(setup: Setup) -> None:
    found, found_grads = outcome(lora_linear, setup)
    expected, expected_grads = outcome(slow.lora_linear, setup)
    coarsest = max(setup.dtype, setup.adapter, key=TOLERANCE.__getitem__)
    assert_close(found, expected, coarsest, "y")
    for name in OPERANDS:
        mine, theirs = found_grads[name], expected_grads[name]
        assert (mine is None) == (theirs is None), name
        if mine is not None and theirs is not None:
            assert_close(mine, theirs, coarsest, name)


setups = st.builds(
    Setup,
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    inner=st.integers(1, 7),
    outer=st.integers(1, 7),
    rank=st.integers(1, 4),
    dtype=st.sampled_from(list(TOLERANCE)),
    adapter=st.sampled_from(list(TOLERANCE)),
    bias=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    scaling=st.sampled_from([1.0, 0.25, -2.0]),
    needs=st.frozensets(st.sampled_from(OPERANDS)),
    strided=st.booleans(),
    transposed=st.booleans(),
)


@settings(max_examples=cases(70), deadline=None)
@given(setup=setups)
@example(setup=Setup(shape=()))
@example(setup=Setup(shape=(0,)))
@example(setup=Setup(shape=(2, 0, 3)))
@example(setup=Setup(shape=(1, 2, 3), strided=True, dropout=0.5))
@example(setup=Setup(dtype=torch.bfloat16, adapter=torch.float32, needs=frozenset(OPERANDS)))
@example(setup=Setup(dtype=torch.float32, adapter=torch.bfloat16, needs=frozenset(OPERANDS)))
@example(setup=Setup(needs=frozenset(OPERANDS), transposed=True, dropout=0.5))
@example(setup=Setup(needs=frozenset()))
def test_values_and_gradients_are_those_of_separate_operations(setup: Setup) -> None:
    assert_agrees(setup)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_the_numerical_ones(shape: tuple[int, ...], bias: bool) -> None:
    operands = Setup(shape=shape, bias=bias, needs=frozenset(OPERANDS)).operands()
    assert torch.autograd.gradcheck(lambda *given: lora_linear(*given, 1.5), tuple(operands.values()))


def test_gradients_are_the_numerical_ones_under_a_fixed_dropout_mask() -> None:
    def step(*given: Any) -> Tensor:
        torch.manual_seed(3)
        return lora_linear(*given, 1.5, dropout=0.4)

    assert torch.autograd.gradcheck(step, tuple(Setup(needs=frozenset(OPERANDS)).operands().values()))


def test_an_adapter_in_a_narrower_dtype_does_not_round_the_bases_product() -> None:
    setup = Setup(dtype=torch.float32, adapter=torch.bfloat16)
    operands = setup.operands() | {"lora_b": torch.zeros(4, 2, dtype=torch.bfloat16)}
    expected = torch.nn.functional.linear(operands["x"], operands["weight"], operands["bias"])
    assert torch.equal(lora_linear(*operands.values(), 1.5), expected)


def test_zero_b_gives_the_base_layers_output_to_the_bit() -> None:
    for dtype in TOLERANCE:
        setup = Setup(dtype=dtype, adapter=dtype if dtype == torch.float64 else torch.float32, shape=(7,))
        operands = setup.operands()
        operands["lora_b"] = torch.zeros_like(operands["lora_b"])
        expected = torch.nn.functional.linear(operands["x"], operands["weight"], operands["bias"])
        assert torch.equal(lora_linear(*operands.values(), 1.5), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float64])
def test_under_autocast_dtypes_are_those_of_separate_operations(
    base: torch.dtype, dtype: torch.dtype
) -> None:
    setup = Setup(dtype=base, adapter=torch.float64 if base == torch.float64 else torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        found, found_grads = outcome(lora_linear, setup)
        expected, expected_grads = outcome(slow.lora_linear, setup)
    assert_close(found, expected, torch.bfloat16, "y")
    for name in setup.needs:
        mine, theirs = found_grads[name], expected_grads[name]
        assert mine is not None and theirs is not None
        assert_close(mine, theirs, torch.bfloat16, name)


def test_dropout_keeps_the_share_it_says_and_scales_the_rest() -> None:
    x = torch.ones(400, 250, dtype=torch.float64)
    eye = torch.eye(250, dtype=torch.float64)
    torch.manual_seed(0)
    y = lora_linear(x, torch.zeros_like(eye), None, eye, eye, 1.0, dropout=0.3)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    # 100,000 draws: the share kept is within five standard deviations, 5 · sqrt(0.3 · 0.7 / 100,000).
    assert float((y != 0).double().mean()) == pytest.approx(0.7, abs=0.0073)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_input_is_kept_once_and_the_update_never(dropout: float) -> None:
    setup = Setup(shape=(64,), inner=32, outer=48, rank=2, dropout=dropout)
    operands = setup.operands()
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            sizes.append(tensor.numel())
        return tensor

    own = {t.untyped_storage().data_ptr() for n, t in operands.items() if n != "x" and t is not None}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        lora_linear(*operands.values(), 1.5, dropout=dropout)
    # x (64 × 32) and x Aᵀ (64 × 2); with dropout the mask besides x after dropout. Nothing has the output's 48 columns.
    assert sorted(sizes) == ([64 * 2, 64 * 32] if dropout == 0.0 else [64 * 2, 64 * 32, 64 * 32])


def test_what_nobody_asks_for_is_not_kept() -> None:
    operands = Setup(needs=frozenset({"x"})).operands()
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        lora_linear(*operands.values(), 1.5)
    assert {tuple(t.shape) for t in kept} == {(4, 5), (2, 5), (4, 2)}
