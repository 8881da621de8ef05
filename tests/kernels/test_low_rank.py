"""The kernel for LoRA's products against separate operations in float64."""

import itertools

import pytest
import torch
from tests.kernels.machine import assert_near, needs_compiler
from tests.reference import lora as slow

from manytune.kernels import low_rank

pytestmark = needs_compiler

WIDTHS = (16, 48, 80, 576)
SCALING = 0.75


def operands(rows, width, out, rank, *, seed=0):
    """x, A, B, the gradient of y, and what y and the gradient of x hold before."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (rank, width), (out, rank), (rows, out), (rows, out), (rows, width))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def by_kernel(library, x, a, b, grad, y, grad_x, *, left_out=()):
    """What each result is, by name; those of the backward pass without the ones left out."""
    y = y.clone()
    low = low_rank.forward(library, x, a, b, y, SCALING)
    grad_x = None if "grad_x" in left_out else grad_x.clone()
    given_x, given_low = (None if name in left_out else t for name, t in (("grad_a", x), ("grad_b", low)))
    grad_a, grad_b = low_rank.backward(library, grad, given_x, given_low, a, b, grad_x, SCALING)
    return {"low": low, "y": y, "grad_x": grad_x, "grad_a": grad_a, "grad_b": grad_b}


def by_definition(x, a, b, grad, y, grad_x):
    x, a, b = (t.double().requires_grad_() for t in (x, a, b))
    update = slow.lora_linear(x, x.new_zeros(len(b), x.shape[1]), None, a, b, SCALING)
    grads = torch.autograd.grad(update, (x, a, b), grad.double())
    return {
        "low": x @ a.T,
        "y": y + update,
        "grad_x": grad_x + grads[0],
        "grad_a": grads[1],
        "grad_b": grads[2],
    }


def assert_agrees(library, given):
    found, expected = by_kernel(library, *given), by_definition(*given)
    for name, value in expected.items():
        assert_near(found[name], value, name)


@pytest.mark.parametrize("rank", [1, 5, 8, 16, 24, 32])
@pytest.mark.parametrize("rows", [1, 47, 48, 49, 200])
def test_it_adds_to_y_and_to_the_gradient_of_x_what_separate_operations_do(library, rows, rank):
    for width, out in itertools.product(WIDTHS, WIDTHS):
        assert_agrees(library, operands(rows, width, out, rank))


@pytest.mark.parametrize("rank", range(1, 33))
def test_every_rank_it_takes(library, rank):
    assert_agrees(library, operands(50, 32, 64, rank))


def test_no_rows_give_gradients_of_zero(library):
    x, a, b, grad, y, grad_x = operands(0, 32, 48, 4)
    low_rank.backward(
        library, *(torch.ones(9, n) for n in (48, 32, 4)), a, b, None, SCALING
    )  # no zeros left behind
    found = by_kernel(library, x, a, b, grad, y, grad_x)
    assert not found["grad_a"].any() and not found["grad_b"].any()


NEEDED = ("grad_x", "grad_a", "grad_b")


@pytest.mark.parametrize(
    "left_out", [left for count in (1, 2, 3) for left in itertools.combinations(NEEDED, count)]
)
def test_what_nobody_asks_for_is_not_computed_and_the_rest_keeps_its_bits(library, left_out):
    given = operands(100, 48, 80, 5)
    everything = by_kernel(library, *given)
    found = by_kernel(library, *given, left_out=left_out)
    for name in NEEDED:
        if name in left_out:
            assert found[name] is None
        else:
            assert torch.equal(found[name], everything[name])


@pytest.mark.parametrize("strided", range(4))
def test_operands_may_lie_in_memory_in_any_order(library, strided):
    given = operands(60, 48, 80, 5)
    expected = by_kernel(library, *given)
    given[strided] = given[strided].t().contiguous().t()
    assert not given[strided].is_contiguous()
    found = by_kernel(library, *given)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_same_inputs_give_the_same_bits(library):
    given = operands(500, 80, 48, 16)
    first, second = by_kernel(library, *given), by_kernel(library, *given)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_threads_share_the_rows(library, request):
    given = operands(500, 80, 48, 16)
    alone = by_kernel(library, *given)
    assert library.omp_get_max_threads() == 1
    request.getfixturevalue("two_threads")
    assert library.omp_get_max_threads() == 2  # torch's threads, not a second set of them
    first, second = by_kernel(library, *given), by_kernel(library, *given)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert_near(first[name], value, name)
    for name in ("low", "y", "grad_x"):  # rows of their own
        assert torch.equal(first[name], alone[name]), name
    # Sums over all rows, each thread's own first: that two threads took part shows in the last bits.
    assert not torch.equal(first["grad_a"], alone["grad_a"])


def test_what_it_takes():
    x, a, b = torch.zeros(3, 32), torch.zeros(32, 32), torch.zeros(48, 32)
    weight = torch.zeros(48, 32)
    assert low_rank.suits(x, weight, a, b)
    for t in (torch.Tensor.double, torch.Tensor.bfloat16, lambda t: t.to("meta")):
        assert not low_rank.suits(t(x), weight, a, b)
        assert not low_rank.suits(x, t(weight), a, b)
        assert not low_rank.suits(x, weight, t(a), b)
        assert not low_rank.suits(x, weight, a, t(b))
    assert not low_rank.suits(x, weight, torch.zeros(33, 32), torch.zeros(48, 33))
    assert not low_rank.suits(x[:, :24], weight[:, :24], a[:, :24], b)
    assert not low_rank.suits(x, weight[:24], a, b[:24])
