"""LoRA layers through the C++ kernel: when it is taken, and that it gives what torch's operations give."""

import functools

import pytest
import torch
from tests.kernels.machine import assert_near, needs_compiler, without_kernels
from tests.reference import lora as slow

from manytune.kernels import lora_linear as kernel
from manytune.kernels import low_rank, products
from manytune.kernels.build import load_kernels
from manytune.methods.lora import fused

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(not products._AVAILABLE, reason="this torch has no oneDNN"),
]

lora_linear = functools.partial(fused.lora_linear, fast=True)
OPERANDS = ("x", "weight", "bias", "lora_a", "lora_b")
USUAL = ("x", "lora_a", "lora_b")


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """What the kernel was called for, forward and backward."""
    load_kernels().loaded()
    calls = []

    def noting(name):
        function = getattr(low_rank, name)
        return lambda *given: calls.append(name) or function(*given)

    for name in ("forward", "backward"):
        monkeypatch.setattr(low_rank, name, noting(name))
    return calls


def operands(shape=(2, 7), *, width=48, out=80, rank=5, bias=True, needs=USUAL, transposed=False):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator)
    values = {
        "x": torch.randn(*shape, width, generator=generator),
        "weight": weight.t().contiguous().t() if transposed else weight,
        "bias": torch.randn(out, generator=generator) if bias else None,
        "lora_a": torch.randn(rank, width, generator=generator),
        "lora_b": torch.randn(out, rank, generator=generator),
    }
    return {
        name: value if value is None else value.requires_grad_(name in needs)
        for name, value in values.items()
    }


def outcome(function, given, **options):
    """The layer's result, and the gradient of each operand, by name."""
    leaves = {
        name: None if t is None else t.detach().requires_grad_(t.requires_grad) for name, t in given.items()
    }
    y = function(*leaves.values(), 0.75, **options)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (y * weight).sum().backward()
    return {"y": y.detach()} | {name: None if t is None else t.grad for name, t in leaves.items()}


def assert_agrees(found, expected):
    for name, value in expected.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            assert found[name].dtype == torch.float32
            assert_near(found[name], value, name)


def wide(given):
    return {
        name: t if t is None else t.detach().double().requires_grad_(t.requires_grad)
        for name, t in given.items()
    }


@pytest.mark.parametrize("transposed", [False, True])  # as Conv1D holds its weight
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (97,), (2, 7), (2, 3, 5)])
def test_a_layer_gives_what_torchs_operations_give(shape, bias, transposed, taken, monkeypatch):
    given = operands(shape, bias=bias, transposed=transposed)
    found = outcome(lora_linear, given)
    assert taken == ["forward", "backward"]
    without_kernels(monkeypatch)
    assert_agrees(found, outcome(lora_linear, given))
    assert taken == ["forward", "backward"]
    assert_agrees(found, outcome(slow.lora_linear, wide(given)))


@pytest.mark.parametrize(
    "needs",
    [("x",), ("lora_a",), ("lora_b",), ("lora_a", "lora_b"), ("bias",), ("x", "bias", "lora_a", "lora_b")],
)
def test_what_asks_for_no_gradient_gets_none(needs, taken):
    given = operands(needs=needs)
    found = outcome(lora_linear, given)
    assert taken == ["forward", "backward"]
    assert {name for name in OPERANDS if found[name] is not None} == set(needs)
    assert_agrees(found, outcome(slow.lora_linear, wide(given)))


def test_rows_and_gradients_may_lie_in_memory_in_any_order(taken):
    given = operands((7, 3))
    given["x"] = given["x"].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    leaf = given["x"].detach().requires_grad_()
    y = lora_linear(leaf, *list(given.values())[1:], 0.75)
    y.backward(torch.ones(1, 1, 1).expand_as(y))  # its strides are 0
    assert taken == ["forward", "backward"]
    wider = wide(given)
    slow.lora_linear(*wider.values(), 0.75).sum().backward()
    for name, found in (("x", leaf), ("lora_a", given["lora_a"]), ("lora_b", given["lora_b"])):
        assert_near(found.grad, wider[name].grad, name)


def test_no_rows_are_no_trouble(taken):
    found = outcome(lora_linear, operands((0, 4)))
    assert taken == ["forward", "backward"]
    assert found["y"].shape == (0, 4, 80) and found["x"].shape == (0, 4, 48)
    assert not found["lora_a"].any() and not found["lora_b"].any()


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"rank": 33}, {}),
        ({"width": 24}, {}),
        ({"out": 24}, {}),
        ({"needs": ("x", "weight", "lora_a", "lora_b")}, {}),
        ({}, {"dropout": 0.5}),
    ],
)
def test_what_the_kernel_does_not_know_is_left_to_torch(changes, options, taken):
    given = operands(**changes)
    assert options or not kernel.suits(*(given[name] for name in ("x", "weight", "lora_a", "lora_b")))
    torch.manual_seed(1)
    found = outcome(lora_linear, given, **options)
    torch.manual_seed(1)
    expected = outcome(slow.lora_linear, given, **options)
    assert_agrees(found, expected)
    assert not taken


@pytest.mark.parametrize("names", [OPERANDS, ("x", "weight", "bias"), ("lora_a", "lora_b")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_torch(names, dtype, taken):
    given = operands()
    for name in names:
        given[name] = given[name].detach().to(dtype).requires_grad_(name in USUAL)
    assert outcome(lora_linear, given)["y"].dtype == given["weight"].dtype
    assert not taken


def test_autocast_is_left_to_torch(taken):
    with torch.autocast("cpu", torch.bfloat16):
        assert outcome(lora_linear, operands())["y"].dtype == torch.bfloat16
    assert not taken


def test_outside_of_training_nothing_changes(taken):
    given = operands()
    assert kernel.suits(*(given[name] for name in ("x", "weight", "lora_a", "lora_b")))
    outcome(fused.lora_linear, given)
    assert not taken


@pytest.mark.parametrize("needed", [(True, True, True), (False, True, False), (True, False, True)])
def test_the_compiler_knows_what_the_operations_give(needed):
    needs_x, needs_a, needs_b = needed
    x, weight, bias, a, b = (t.detach() for t in operands((50,)).values())
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(kernel._opaque_forward, (x, weight, bias, a, b, 0.75), test_utils=checks)
    grad, low = torch.randn(50, 80), torch.randn(50, 5)
    given = (grad, x if needs_a else None, low if needs_b else None, weight, a, b, 0.75, needs_x)
    torch.library.opcheck(kernel._opaque_backward, given, test_utils=checks)


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's own, in its compiler
@pytest.mark.parametrize("needs", [USUAL, ("lora_a", "lora_b")])
def test_compiled_code_holds_it_whole(needs, taken):
    torch._dynamo.reset()
    compiled = torch.compile(lora_linear, dynamic=True, fullgraph=True, backend="aot_eager")
    for shape in ((3, 5), (2, 7)):
        given = operands(shape, needs=needs)
        found = outcome(compiled, given)
        assert taken == ["forward", "backward"]
        assert_agrees(found, outcome(lora_linear, given))
        taken.clear()
