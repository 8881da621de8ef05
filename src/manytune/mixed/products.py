"""Small products of many adapters: U φ(D z + e) + f for each token's own D and U.

Adapters of one shape share a stack: for each kind of layer one tensor with the adapters first, then the blocks.
D is kept as (in, rank) and U as (rank, out), both read along their rows, which is the fastest order for few tokens.
Layers that read the same tensor have their D side by side, so that one product serves them. Ranks are rounded up to
powers of two and filled with zeros, which add nothing.

Semantics (`tests/reference/mixed_batch.py`): for each token, its own adapter's formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manytune.methods.tuners.terms import NONLINEARITIES, Terms, Update
from manytune.mixed.layer_groups import Kind, kind_of, path_of, together
from manytune.mixed.selection import Selection

_SMALLEST_RANK = 4
# With a CPU the system gives memory to those slots only that are written to, so that many cost no more than few.
_FIRST_SLOTS, _FIRST_SLOTS_ON_CPU = 8, 32


@dataclass(frozen=True)
class Shape:
    """What adapters of one stack have in common.

    Attributes:
        kinds: The kinds of layers with the numbers of their blocks.
        rank: The rank that they are filled up to.
        down_bias: Whether there are biases e.
        up_bias: Whether there are biases f.
        activation: Name of φ; None for the identity.
        reads_output: Whether z is the layer's own output.
        sources: For each kind, the kind whose input is z, or None for its own.
        dtype: Of the weights.
    """

    kinds: tuple[tuple[Kind, tuple[int, ...]], ...]
    rank: int
    down_bias: bool
    up_bias: bool
    activation: str | None
    reads_output: bool
    sources: tuple[str | None, ...]
    dtype: torch.dtype


def shape_of(terms: Terms, dtype: torch.dtype) -> Shape | None:
    """The shape of an adapter's updates; None if it has none.

    Args:
        terms: The adapter.
        dtype: In which its products are made.
    """
    if not terms.updates:
        return None
    blocks: dict[Kind, list[int]] = {}
    sources: dict[Kind, str | None] = {}
    for path, update in terms.updates.items():
        kind, block = _kind(path, update)
        blocks.setdefault(kind, []).append(block)
        source = update.source
        sources[kind] = None if source is None else kind_of(source, 0, 0)[0].path
    rank = max(update.rank for update in terms.updates.values())
    return Shape(
        kinds=tuple((kind, tuple(sorted(blocks[kind]))) for kind in sorted(blocks)),
        rank=max(_SMALLEST_RANK, 1 << (rank - 1).bit_length()),
        down_bias=any(update.down_bias is not None for update in terms.updates.values()),
        up_bias=any(update.up_bias is not None for update in terms.updates.values()),
        activation=terms.activation,
        reads_output=terms.reads_output,
        sources=tuple(sources[kind] for kind in sorted(blocks)),
        dtype=dtype,
    )


def _kind(path: str, update: Update) -> tuple[Kind, int]:
    return kind_of(path, update.inputs, update.outputs)


@dataclass
class _Group:
    """Layers of one block that read the same tensor: their D side by side.

    `seen` and `low` are the last input and its products with D, while a forward runs.
    """

    down: Tensor  # (slots, in, ranks) of one block
    down_bias: Tensor | None  # (slots, ranks)
    seen: Tensor | None = None
    low: list[Tensor] | None = None


@dataclass
class Product:
    """One layer of a stack.

    Attributes:
        source: Path of the layer whose input is z; None for this one.
        reads_output: Whether z is this layer's output.
    """

    stack: UpdateStack
    group: _Group
    columns: slice
    up: Tensor  # (slots, rank, out)
    up_bias: Tensor | None  # (slots, out)
    source: str | None
    reads_output: bool

    def add(self, z: Tensor, y: Tensor) -> None:
        """Add the adapters' terms to y in place.

        Args:
            z: What they read, (1, T, in).
            y: The layer's result, (1, T, out).
        """
        selection = self.stack.selection
        assert selection is not None
        group = self.group
        if group.seen is not z or group.low is None:
            group.low = self.stack.low(selection, group, z[0])
            group.seen = z
        out = y[0]
        if out.dtype == self.up.dtype:
            self._add(selection, group.low, out)
        else:
            # Adapters in float32 on a half-precision base: summed in float32 and rounded once.
            wide = out.to(torch.promote_types(out.dtype, self.up.dtype))
            self._add(selection, group.low, wide)
            out.copy_(wide)

    def _add(self, selection: Selection, low: list[Tensor], out: Tensor) -> None:
        grid, place = selection.grid, 0
        if grid is not None:
            small = low[0][:, :, self.columns]  # (slots, width, rank)
            up = self.up[: grid.slots]
            bias = None if self.up_bias is None else self.up_bias[: grid.slots, None]
            rows = out[: selection.decoding]
            if grid.scatter is None:
                # Added in a second step: torch adds in the first only if the rows are contiguous, and else makes one
                # product after another.
                rows.add_(torch.bmm(small, up)[:, 0])
                if bias is not None:
                    rows.add_(bias[:, 0])
            else:
                found = torch.bmm(small, up)  # (slots, width, out)
                if bias is not None:
                    found += bias
                found = found.flatten(0, 1).index_select(0, grid.scatter)
                if grid.bare is not None:
                    # Not a product with 0: another adapter's result may be infinite.
                    found.masked_fill_(grid.bare, 0)
                rows.add_(found)
            place = 1
        for span, found in zip(selection.spans, low[place:], strict=True):
            small = found[:, self.columns]
            if isinstance(span.rows, slice):
                part = out[span.rows].addmm_(small, self.up[span.slot])
                if self.up_bias is not None:
                    part += self.up_bias[span.slot]
            else:
                part = out.index_select(0, span.rows).addmm_(small, self.up[span.slot])
                if self.up_bias is not None:
                    part += self.up_bias[span.slot]
                out[span.rows] = part


class UpdateStack:
    """The updates of adapters of one shape.

    Args:
        shape: What they have in common.
        device: Where they are.

    Attributes:
        selection: Which tokens use which adapter in the present forward; None if none does.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.selection: Selection | None = None
        self._device = device
        self._members: list[str] = []
        self._between: Callable[[Tensor], Tensor] | None = (
            None if shape.activation is None else NONLINEARITIES[shape.activation]()
        )
        self._blocks = dict(shape.kinds)
        # What is read beside another layer or behind this one isn't shared.
        apart = shape.reads_output or any(shape.sources)
        kinds = list(self._blocks)
        self._groups = [(kind,) for kind in kinds] if apart else _same_blocks(together(kinds), self._blocks)
        self._tensors: dict[tuple[str, Kind], Tensor] = {}
        self.products: dict[str, Product] = {}
        self._grow(_FIRST_SLOTS_ON_CPU if device.type == "cpu" else _FIRST_SLOTS)

    def __len__(self) -> int:
        return len(self._members)

    def slot(self, adapter: str) -> int:
        """The place of an adapter."""
        return self._members.index(adapter)

    def add(self, adapter: str, updates: Mapping[str, Update]) -> None:
        """Copy an adapter's weights behind the others.

        Mutates: the tensors are made anew if there is no room; `products` then changes.
        """
        if len(self._members) == self._capacity:
            self._grow(2 * self._capacity)
        slot = len(self._members)
        if (
            self.shape.down_bias
            or self.shape.up_bias
            or any(update.rank < self.shape.rank for update in updates.values())
        ):
            for tensor in self._tensors.values():
                tensor[slot] = 0
        for group in self._groups:
            for number, kind in enumerate(group):
                self._fill(slot, group[0], number, kind, updates)
        self._members.append(adapter)

    def remove(self, adapter: str) -> None:
        """Forget an adapter; the last takes its place."""
        slot, last = self.slot(adapter), len(self._members) - 1
        if slot != last:
            for tensor in self._tensors.values():
                tensor[slot] = tensor[last]
            self._members[slot] = self._members[last]
        self._members.pop()

    def end_forward(self) -> None:
        """Let go of activations."""
        for product in self.products.values():
            product.group.seen = product.group.low = None

    @property
    def nbytes(self) -> int:
        """Size of the weights, free room included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def low(self, selection: Selection, group: _Group, z: Tensor) -> list[Tensor]:
        """φ(D z + e) for the grid and for each span: (slots, width, ranks) and (tokens, ranks)."""
        if z.dtype != group.down.dtype:
            z = z.to(group.down.dtype)
        found, grid = [], selection.grid
        if grid is not None:
            rows = z[: selection.decoding] if grid.gather is None else z.index_select(0, grid.gather)
            small = torch.bmm(rows.view(grid.slots, grid.width, -1), group.down[: grid.slots])
            if group.down_bias is not None:
                small += group.down_bias[: grid.slots, None]
            found.append(small)
        for span in selection.spans:
            rows = z[span.rows] if isinstance(span.rows, slice) else z.index_select(0, span.rows)
            small = rows @ group.down[span.slot]
            if group.down_bias is not None:
                small += group.down_bias[span.slot]
            found.append(small)
        return found if self._between is None else [self._between(small) for small in found]

    # -- terms

    def _fill(self, slot: int, first: Kind, number: int, kind: Kind, updates: Mapping[str, Update]) -> None:
        mine = [updates[path_of(kind, block)] for block in self._blocks[kind]]
        start = number * self.shape.rank
        for rank in {update.rank for update in mine}:
            chosen = [place for place, update in enumerate(mine) if update.rank == rank]
            where: slice | list[int] = slice(None) if len(chosen) == len(mine) else chosen
            some = [mine[place] for place in chosen]
            columns = slice(start, start + rank)
            down = torch.stack([update.down for update in some if update.down is not None]).to(
                self._device, self.shape.dtype
            )  # (blocks, rank, in)
            self._tensors["down", first][slot][where, :, columns] = down.transpose(1, 2)
            scaling = torch.tensor(
                [update.scaling for update in some], dtype=self.shape.dtype, device=self._device
            )
            up = torch.stack([update.up for update in some]).to(
                self._device, self.shape.dtype
            )  # (blocks, out, rank)
            self._tensors["up", kind][slot][where, :rank] = up.transpose(1, 2) * scaling[:, None, None]
            for place, update in zip(chosen, some, strict=True):
                if update.down_bias is not None:
                    self._tensors["down_bias", first][slot, place, columns] = update.down_bias
                if update.up_bias is not None:
                    self._tensors["up_bias", kind][slot, place] = update.up_bias * update.scaling

    def _grow(self, capacity: int) -> None:
        self._capacity = capacity
        rank, old = self.shape.rank, self._tensors
        self._tensors = {}
        for group in self._groups:
            first, blocks = group[0], len(self._blocks[group[0]])
            self._tensors["down", first] = self._empty(blocks, first.inputs, rank * len(group))
            if self.shape.down_bias:
                self._tensors["down_bias", first] = self._empty(blocks, rank * len(group))
            for kind in group:
                self._tensors["up", kind] = self._empty(blocks, rank, kind.outputs)
                if self.shape.up_bias:
                    self._tensors["up_bias", kind] = self._empty(blocks, kind.outputs)
        for key, tensor in old.items():
            self._tensors[key][: len(self._members)] = tensor[: len(self._members)]
        self._make_products()

    def _empty(self, *shape: int) -> Tensor:
        # A slot is written whole before it is read, and the system gives memory to those that are written.
        return torch.empty((self._capacity, *shape), dtype=self.shape.dtype, device=self._device)

    def _make_products(self) -> None:
        rank = self.shape.rank
        sources = dict(zip((kind for kind, _ in self.shape.kinds), self.shape.sources, strict=True))
        self.products = {}
        for kinds in self._groups:
            for place, block in enumerate(self._blocks[kinds[0]]):
                bias = self._tensors.get(("down_bias", kinds[0]))
                group = _Group(
                    self._tensors["down", kinds[0]][:, place], None if bias is None else bias[:, place]
                )
                for number, kind in enumerate(kinds):
                    up_bias = self._tensors.get(("up_bias", kind))
                    source = sources[kind]
                    self.products[path_of(kind, block)] = Product(
                        self,
                        group,
                        slice(number * rank, (number + 1) * rank),
                        self._tensors["up", kind][:, place],
                        None if up_bias is None else up_bias[:, place],
                        None if source is None else source.replace("*", str(block), 1),
                        self.shape.reads_output,
                    )


def _same_blocks(
    groups: list[tuple[Kind, ...]], blocks: Mapping[Kind, tuple[int, ...]]
) -> list[tuple[Kind, ...]]:
    """Divide groups whose kinds don't stand in the same blocks."""
    result: list[tuple[Kind, ...]] = []
    for group in groups:
        alike: dict[tuple[int, ...], list[Kind]] = {}
        for kind in group:
            alike.setdefault(blocks[kind], []).append(kind)
        result.extend(tuple(kinds) for kinds in alike.values())
    return result
