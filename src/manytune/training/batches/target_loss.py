"""Negative log likelihood of weighted targets, without a second copy of the logits in the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows handled at a time, so that the temporary exponentials take a few megabytes whatever the batch.
_CHUNK_ELEMENTS = 1 << 21


class _WeightedNLL(torch.autograd.Function):
    """The loss and its gradient in closed form.

        L = sum_i w_i (logsumexp(z[r_i]) - z[r_i, y_i])
        dL/dz[r] = c_r softmax(z[r]) - sum_{i: r_i = r} w_i e_{y_i},  c_r = sum_{i: r_i = r} w_i

    Saved are the logits and one number a row; `cross_entropy` would keep the log-probabilities as well.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        normalizers = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
        for part in _chunks(logits):
            normalizers[part] = torch.logsumexp(logits[part].to(dtype), dim=-1)
        ctx.save_for_backward(logits, rows, labels, weights, normalizers)
        nll = normalizers[rows] - logits[rows, labels].to(dtype)
        return torch.dot(nll, weights.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        logits, rows, labels, weights, normalizers = ctx.saved_tensors
        scale = grad_outputs[0].to(normalizers.dtype) * weights.to(normalizers.dtype)
        row_scale = torch.zeros_like(normalizers).index_add_(0, rows, scale)
        grad = torch.empty_like(logits)
        for part in _chunks(logits):
            softmax = (logits[part].to(normalizers.dtype) - normalizers[part, None]).exp_()
            grad[part] = softmax.mul_(row_scale[part, None])
        grad.index_put_((rows, labels), -scale.to(grad.dtype), accumulate=True)
        return grad, None, None, None


def weighted_nll(logits: Tensor, rows: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of negative log likelihoods; several targets may read the same row of logits.

    Args:
        logits: Shape `(rows, vocabulary)`. Read in float32 at least.
        rows: Each target's row of `logits`. Shape `(n,)`.
        labels: Each target's token id. Shape `(n,)`.
        weights: Each target's weight. Shape `(n,)`.

    Returns:
        A scalar in nats.
    """
    loss: Tensor = _WeightedNLL.apply(logits, rows, labels, weights)  # type: ignore[no-untyped-call]
    return loss


def nll_and_gradient(logits: Tensor, rows: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """`weighted_nll` and its gradient at once, in the memory of the logits.

    The exponentials are computed once for both, a few megabytes at a time.

    Args:
        logits: As `weighted_nll` takes them, without a gradient. Overwritten with the result.
        rows: Each target's row of `logits`. Shape `(n,)`.
        labels: Each target's token id. Shape `(n,)`.
        weights: Each target's weight. Shape `(n,)`.

    Returns:
        The sum in nats, and its gradient for the logits, which is `logits`.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scale = weights.to(dtype)
    row_scale = torch.zeros(len(logits), dtype=dtype, device=logits.device).index_add_(0, rows, scale)
    targeted = logits[rows, labels].to(dtype)
    normalizers = torch.empty_like(row_scale)
    for part in _chunks(logits):
        values = logits[part].to(dtype)  # the same memory, unless the logits have half precision
        largest = values.amax(-1, keepdim=True)
        total = values.sub_(largest).exp_().sum(-1, keepdim=True)
        normalizers[part] = (largest + total.log()).squeeze(-1)
        values.mul_(row_scale[part, None] / total)
        if values.dtype != logits.dtype:
            logits[part] = values
    logits.index_put_((rows, labels), -scale.to(logits.dtype), accumulate=True)
    return torch.dot(normalizers[rows] - targeted, scale), logits


def _chunks(logits: Tensor) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]
