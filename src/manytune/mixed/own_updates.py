"""Low-rank updates of samples that have an adapter each, multiplied with each adapter's weights where they are.

Stacks (`updates.py`) hold copies, which pay where adapters stay for many requests. A call of a `PeftModel` is one
batch, before which any weight may have changed: here nothing is copied, so nothing can be outdated, and a C++ kernel
reads each weight once. For float32 on CPUs; whatever it doesn't take goes into stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from manytune.kernels import own_updates as kernel
from manytune.kernels.build import load_kernels, ready
from manytune.kernels.own_updates import Blocks, OwnWeights
from manytune.methods.tuners.terms import Terms, Update
from manytune.mixed.owners import Owners


@dataclass(frozen=True)
class OwnUpdate:
    """The samples' updates at one layer; a layer calls it as it does a stack's `Product`.

    Attributes:
        weights: Of the adapters that have one here.
        blocks: For a number of rows, which of them are whose.
        source: None: z is this layer's input.
        reads_output: Likewise False.
    """

    weights: OwnWeights
    blocks: Callable[[int], Blocks]
    source: None = None
    reads_output: bool = False

    def add(self, z: Tensor, y: Tensor) -> None:
        """Add the adapters' updates to y in place.

        Args:
            z: What they read, (..., in).
            y: The layer's result as rows, (tokens, out).
        """
        x = z if z.dim() == 2 else z.reshape(-1, z.shape[-1])
        blocks = self.blocks(y.shape[0])
        if _by_kernel(x, y):
            kernel.add(
                load_kernels().loaded(), x if x.stride(1) == 1 else x.contiguous(), y, blocks, self.weights
            )
        else:
            self._add_by_torch(x, y, blocks)

    def _add_by_torch(self, x: Tensor, y: Tensor, blocks: Blocks) -> None:
        rows = blocks.order.tensor_split(blocks.ends[:-1].tolist())
        weights = self.weights
        for mine, down, up, scaling in zip(
            rows, weights.downs, weights.ups, weights.scalings.tolist(), strict=True
        ):
            if down is not None and up is not None:
                update = scaling * ((x[mine].to(down.dtype) @ down.t()) @ up.t())
                y.index_add_(0, mine, update.to(y.dtype))


def divided(terms: Mapping[str, Terms], owners: Owners) -> tuple[dict[str, OwnUpdate], dict[str, Terms]]:
    """What can be added from adapters' own weights, by path of the layer, and what is left for stacks.

    Args:
        terms: The adapters. Where the kernel isn't loaded, all of it is left.
        owners: The adapter of each sample.
    """
    if not ready() or owners.chunks:
        return {}, dict(terms)
    found: dict[str, list[Update | None]] = {}
    rest = {}
    for place, (name, own) in enumerate(terms.items()):
        if own.activation is not None or own.reads_output:
            rest[name] = own
            continue
        left = {}
        for path, update in own.updates.items():
            if _suits(update):
                found.setdefault(path, [None] * len(terms))[place] = update
            else:
                left[path] = update
        rest[name] = replace(own, updates=left)
    blocks = cache(_blocks_of(owners, list(terms)))
    return {path: OwnUpdate(_weights(updates), blocks) for path, updates in found.items()}, rest


def _suits(update: Update) -> bool:
    return (
        update.down is not None
        and not update.lookup
        and update.down_bias is None
        and update.up_bias is None
        and update.source is None
        and kernel.suits(update.down, update.up)
    )


def _weights(updates: Sequence[Update | None]) -> OwnWeights:
    return kernel.own_weights(
        [None if update is None else update.down for update in updates],
        [None if update is None else update.up for update in updates],
        [0.0 if update is None else update.scaling for update in updates],
    )


def _blocks_of(owners: Owners, names: Sequence[str]) -> Callable[[int], Blocks]:
    def find(rows: int) -> Blocks:
        single, _ = owners.of(rows)
        mine: dict[str | None, list[int]] = {}
        for row, name in enumerate(single):
            mine.setdefault(name, []).append(row)
        blocks = [mine.get(name, []) for name in names]
        ends = torch.tensor([len(block) for block in blocks]).cumsum(0)
        return Blocks(torch.tensor([row for block in blocks for row in block]), ends)

    return find


def _by_kernel(x: Tensor, y: Tensor) -> bool:
    """Whether the kernel computes these; torch does where operations are recorded."""
    recorded = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    float32 = x.dtype == y.dtype == torch.float32
    return float32 and y.stride(1) == 1 and not recorded and not torch.compiler.is_compiling()
