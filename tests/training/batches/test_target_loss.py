"""The weighted target loss against torch's cross entropy, one target at a time."""

import pytest
import torch
from torch.nn import functional

from manytune.training.batches import target_loss
from manytune.training.batches.target_loss import nll_and_gradient, weighted_nll

ROWS = torch.tensor([0, 0, 2, 2, 2, 4])
LABELS = torch.tensor([1, 3, 0, 0, 5, 2])
WEIGHTS = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])


def logits(dtype):
    return (4 * torch.randn(5, 6, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()


def one_target_at_a_time(values):
    return sum(
        weight * functional.cross_entropy(values[row], label)
        for row, label, weight in zip(ROWS, LABELS, WEIGHTS.to(values.dtype), strict=True)
    )


@pytest.mark.parametrize("elements", [1 << 21, 7])  # all rows at a time, and one row at a time
def test_loss_and_gradient_equal_cross_entropy(elements, monkeypatch):
    monkeypatch.setattr(target_loss, "_CHUNK_ELEMENTS", elements)
    found, expected = logits(torch.float64), logits(torch.float64)
    loss = weighted_nll(found, ROWS, LABELS, WEIGHTS)
    reference = one_target_at_a_time(expected)
    (2.5 * loss).backward()
    (2.5 * reference).backward()
    assert loss.item() == pytest.approx(reference.item(), abs=1e-12)
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("elements", [1 << 21, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_and_gradient_at_once_are_the_same(dtype, elements, monkeypatch):
    monkeypatch.setattr(target_loss, "_CHUNK_ELEMENTS", elements)
    expected = logits(dtype)
    reference = weighted_nll(expected, ROWS, LABELS, WEIGHTS)
    reference.backward()
    values = expected.detach().clone()
    loss, gradient = nll_and_gradient(values, ROWS, LABELS, WEIGHTS)
    assert gradient is values
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert loss.dtype == reference.dtype and loss.item() == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected.grad, atol=tolerance, rtol=1e-2)


def test_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(
        lambda values: weighted_nll(values, ROWS, LABELS, WEIGHTS), (logits(torch.float64),)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_read_in_float32(dtype):
    found = logits(dtype)
    loss = weighted_nll(found, ROWS, LABELS, WEIGHTS)
    loss.backward()
    expected = found.detach().double().requires_grad_()
    reference = one_target_at_a_time(expected)
    reference.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(found.grad, expected.grad.to(dtype), atol=2e-2, rtol=1e-2)


def test_a_row_without_targets_gets_no_gradient():
    values = logits(torch.float32)
    weighted_nll(values, ROWS, LABELS, WEIGHTS).backward()
    assert values.grad[[1, 3]].eq(0).all()
    assert values.grad[[0, 2, 4]].ne(0).all()


def test_large_logits_do_not_overflow():
    values = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = weighted_nll(values, torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert values.grad.tolist() == [[1.0, -1.0, 0.0]]
