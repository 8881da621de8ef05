"""Whether compiled kernels compute what they should, on a problem that takes a few milliseconds."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from manytune.kernels import attention, low_rank, own_updates, panels
from manytune.kernels.fingerprints import fingerprints

_TOLERANCE = 1e-4  # of the largest value: a hundred times what rounding does


def difference(library: ctypes.CDLL) -> str | None:
    """Compare the kernels with their formulas in float64.

    Args:
        library: The compiled kernels.

    Returns:
        Which result is wrong, and by how much; None if all are right.
    """
    with torch.inference_mode(mode=False):  # which the first call may come in, and has no gradients
        pairs = {
            **_attention(library),
            **_low_rank(library),
            **_own_updates(library),
            **_panels(library),
            **_fingerprints(library),
        }
    for name, (found, expected) in pairs.items():
        error = float((found.double() - expected).abs().max() / expected.abs().max())
        if not error <= _TOLERANCE:
            return f"{name} is {error:.1e} of its largest value away from torch's"
    return None


def _attention(library: ctypes.CDLL) -> dict[str, tuple[Tensor, Tensor]]:
    """Two sequences of 40 and 50 rows that share their first 20; two heads of queries read one of keys."""
    draw = torch.Generator().manual_seed(0)
    rows, shared, scaling, window = 70, 20, 0.2, 45
    query, key, value, grad = (torch.randn(rows, heads, 32, generator=draw) for heads in (2, 1, 1, 2))
    paths = torch.cat([torch.arange(40), torch.arange(shared), torch.arange(40, rows)])
    blocks = torch.tensor([[0, 0, 40], [40, shared, 50]])
    position = torch.cat([torch.arange(40), torch.arange(shared, 50)])
    distance = position[:, None] - position
    second = torch.arange(rows) >= 40
    same = (second[:, None] == second) | (second[:, None] & (torch.arange(rows) < shared))
    seen = same & (distance >= 0) & (distance < window)
    wide = [x.double().requires_grad_() for x in (query, key, value)]
    with torch.enable_grad():
        scores = torch.einsum("thd,sgd->hts", wide[0], wide[1]) * scaling
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        expected = torch.einsum("hts,sgd->thd", weights, wide[2])
        expected_grads = torch.autograd.grad(expected, wide, grad.double())
    visibility = attention.Visibility(paths, blocks, scaling, window)
    out, normalizers = attention.forward(library, query, key, value, visibility)
    grads = attention.backward(library, grad, query, key, value, out, normalizers, visibility)
    names = [f"attention's gradient of the {name}" for name in ("queries", "keys", "values")]
    return {
        "attention": (out, expected.detach()),
        **dict(zip(names, zip(grads, expected_grads, strict=True), strict=True)),
    }


def _low_rank(library: ctypes.CDLL) -> dict[str, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    rows, width, out, rank, scaling = 100, 48, 80, 5, 0.7
    x, a, b, grad = (
        torch.randn(*shape, generator=draw)
        for shape in ((rows, width), (rank, width), (out, rank), (rows, out))
    )
    y, grad_x = torch.zeros(rows, out), torch.zeros(rows, width)
    low = low_rank.forward(library, x, a, b, y, scaling)
    grad_a, grad_b = low_rank.backward(library, grad, x, low, a, b, grad_x, scaling)
    wide_x, wide_a, wide_b, wide_grad = (t.double() for t in (x, a, b, grad))
    assert grad_a is not None and grad_b is not None
    return {
        "LoRA's update": (y, scaling * wide_x @ wide_a.T @ wide_b.T),
        "LoRA's gradient of x": (grad_x, scaling * wide_grad @ wide_b @ wide_a),
        "LoRA's gradient of A": (grad_a, scaling * (wide_grad @ wide_b).T @ wide_x),
        "LoRA's gradient of B": (grad_b, scaling * wide_grad.T @ (wide_x @ wide_a.T)),
    }


def _own_updates(library: ctypes.CDLL) -> dict[str, tuple[Tensor, Tensor]]:
    """Three adapters of unlike ranks with 5, 0 and 18 of 24 rows, in no order, and one row without an adapter."""
    draw = torch.Generator().manual_seed(2)
    width, out, scalings = 21, 50, (0.7, 1.0, 0.3)
    x, y = torch.randn(24, width, generator=draw), torch.randn(24, out, generator=draw)
    downs = [torch.randn(rank, width, generator=draw) for rank in (8, 4, 3)]
    ups = [torch.randn(out, rank, generator=draw) for rank in (8, 4, 3)]
    order = torch.randperm(24, generator=draw)[:23]
    expected = y.double()
    for rows, place in ((order[:5], 0), (order[5:], 2)):
        low = scalings[place] * x[rows].double() @ downs[place].double().T
        expected[rows] += low @ ups[place].double().T
    blocks = own_updates.Blocks(order, torch.tensor([5, 5, 23]))
    own_updates.add(library, x, y, blocks, own_updates.own_weights(downs, ups, scalings))
    return {"updates of rows with an adapter each": (y, expected)}


def _panels(library: ctypes.CDLL) -> dict[str, tuple[Tensor, Tensor]]:
    """Products that end within a panel, and have more inputs than are taken at a time, with few and with many rows."""
    draw, found = torch.Generator().manual_seed(4), {}
    weight, bias = torch.randn(100, 600, generator=draw), torch.randn(100, generator=draw)
    packed = panels.pack(library, weight)
    for rows in (3, 70):
        x = torch.randn(rows, 600, generator=draw)
        y = panels.multiply(library, x, packed, panels.padded_bias(packed, bias), 100)
        found[f"a product with {rows} rows"] = (y, x.double() @ weight.double().T + bias)
    return found


def _fingerprints(library: ctypes.CDLL) -> dict[str, tuple[Tensor, Tensor]]:
    """The same content elsewhere, and with one value changed: in the lanes, behind them, and in another piece."""
    first = torch.randn((1 << 18) + 100, generator=torch.Generator().manual_seed(3))
    tensors = [first, first.clone()]
    for place in (5, (1 << 18) + 3, (1 << 18) + 99):
        tensors.append(first.clone())
        tensors[-1][place] *= -1
    found = fingerprints(library, tensors)
    equal = torch.tensor([float(one == found[0]) for one in found])
    return {"equality of fingerprints": (equal, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).double())}
