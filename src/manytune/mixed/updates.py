"""Updates of many adapters: U φ(D z + e) + f for each token's own D and U.

Adapters of one shape share a stack: for each group of layers one tensor with the adapters first, then the blocks.
D is kept as (rank, in) and U as (rank, out), which is the fastest order for few tokens. Layers that read the same
tensor have their D one below the other, so that one product serves them. Ranks are rounded up to
powers of two and filled with zeros, which add nothing.

Semantics (`tests/reference/mixed_batch.py`): for each token, its own adapter's formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manytune.methods.tuners.terms import NONLINEARITIES, Update
from manytune.mixed.layer_groups import LayerGroup, path_of, with_same_input
from manytune.mixed.selection import Grid, Selection, Span
from manytune.mixed.shapes import Shape

# With a CPU the system gives memory to those slots only that are written to, so that many cost no more than few.
_FIRST_SLOTS, _FIRST_SLOTS_ON_CPU = 8, 32
# But what isn't used has to be promised, so large slots are few: they take no more than this, or are one.
_MOST_FIRST_BYTES = 512 << 20
# Whole weights, such as a trained head, are large: no room is kept for more than there are.
_FIRST_WHOLE_SLOTS = 1


@dataclass
class _Low:
    """Layers of one block that read the same tensor: their D one below the other.

    `seen` and `found` are the last input and what D made of it, while a forward runs.
    """

    down: Tensor | None  # (slots, in, ranks) of one block; None for the identity
    down_bias: Tensor | None  # (slots, ranks)
    seen: Tensor | None = None
    found: list[Tensor] | None = None


@dataclass
class Product:
    """One layer of a stack.

    Attributes:
        source: Path of the layer whose input is z; None for this one.
        reads_output: Whether z is this layer's output.
    """

    stack: UpdateStack
    low: _Low
    columns: slice
    up: Tensor  # (slots, rank, out)
    up_bias: Tensor | None  # (slots, out)
    source: str | None
    reads_output: bool

    def add(self, z: Tensor, y: Tensor) -> None:
        """Add the adapters' terms to y in place.

        Args:
            z: What they read, (..., in), or ids (...).
            y: The layer's result as rows, (tokens, out).
        """
        selection = self.stack.selection(y.shape[0])
        if selection is None:
            return
        low = self.low
        if low.seen is not z or low.found is None:
            low.found = self.stack.low(selection, low, z)
            low.seen = z
        if y.dtype == self.up.dtype:
            self._add(selection, low.found, y)
        else:
            # Adapters in float32 on a half-precision base: summed in float32 and rounded once.
            wide = y.to(torch.promote_types(y.dtype, self.up.dtype))
            self._add(selection, low.found, wide)
            y.copy_(wide)

    def _add(self, selection: Selection, low: list[Tensor], out: Tensor) -> None:
        place = 0
        if selection.grid is not None:
            self._add_grid(selection.grid, low[0], out[: selection.single])
            place = 1
        for span, found in zip(selection.spans, low[place:], strict=True):
            if isinstance(span.rows, slice):
                self._add_span(span, found, out[span.rows])
            else:
                out[span.rows] = self._add_span(span, found, out.index_select(0, span.rows))

    def _add_grid(self, grid: Grid, low: Tensor, rows: Tensor) -> None:
        found = self._grown(low, grid)  # (slots, width, out)
        bias = None if self.up_bias is None else self.up_bias[: grid.slots, None]
        if grid.scatter is None:
            # Added in a second step: torch adds in the first only if the rows are contiguous, and else makes one
            # product after another.
            rows.add_(found.flatten(0, 1))
            if bias is not None:
                rows.add_(bias.expand(-1, grid.width, -1).flatten(0, 1))
            return
        if bias is not None:
            found = found + bias
        found = found.flatten(0, 1).index_select(0, grid.scatter)
        if grid.bare is not None:
            # Not a product with 0: another adapter's result may be infinite.
            found.masked_fill_(grid.bare, 0)
        rows.add_(found)

    def _grown(self, low: Tensor, grid: Grid) -> Tensor:
        up = self.up[: grid.slots]
        if low.is_floating_point():
            return torch.bmm(low[:, :, self.columns], up)
        # Whole tables: what D gave are ids still.
        return up[torch.arange(grid.slots, device=up.device)[:, None], low]

    def _add_span(self, span: Span, low: Tensor, part: Tensor) -> Tensor:
        up = self.up[span.slot]
        if low.is_floating_point():
            part.addmm_(low[:, self.columns], up)
        else:
            part += up.index_select(0, low)
        if self.up_bias is not None:
            part += self.up_bias[span.slot]
        return part


class UpdateStack:
    """The updates of adapters of one shape.

    Args:
        shape: What they have in common.
        device: Where they are.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        #: The selection for a number of rows in the present forward; None if none of them is the stack's.
        self.selection: Callable[[int], Selection | None] = lambda rows: None
        self._device = device
        self._members: list[str] = []
        self._unwritten: dict[str, Mapping[str, Update]] = {}
        self._activation: Callable[[Tensor], Tensor] | None = (
            None if shape.activation is None else NONLINEARITIES[shape.activation]()
        )
        self._blocks = dict(shape.groups)
        groups = list(self._blocks)
        self._families = (
            _same_blocks(with_same_input(groups), self._blocks) if shape.shared else [(g,) for g in groups]
        )
        self._tensors: dict[tuple[str, LayerGroup], Tensor] = {}
        self.products: dict[str, Product] = {}
        self._capacity = 0
        self._grow(_first_slots(shape, device))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._members

    def slot(self, adapter: str) -> int:
        """The place of an adapter."""
        return self._members.index(adapter)

    def add(self, adapter: str, updates: Mapping[str, Update]) -> None:
        """Give an adapter a slot behind the others.

        On a CPU its weights are copied there by `complete`, before a forward: where another runtime computes the
        adapter's rows, none reads them here. Elsewhere they are copied now, while a lack of memory is this adapter's.

        Mutates: the tensors are made again if there is no room; `products` then changes.
        """
        if len(self._members) == self._capacity:
            self._grow(2 * self._capacity)
        if self._device.type == "cpu":
            self._unwritten[adapter] = updates
        else:
            self._write(len(self._members), updates)
        self._members.append(adapter)

    def complete(self) -> None:
        """Copy what adapters' slots don't have yet; products read all slots."""
        for adapter in list(self._unwritten):
            self._write(self.slot(adapter), self._unwritten[adapter])
            del self._unwritten[adapter]

    def _write(self, slot: int, updates: Mapping[str, Update]) -> None:
        if (
            self.shape.down_bias
            or self.shape.up_bias
            or any(update.rank < self.shape.rank for update in updates.values())
        ):
            for tensor in self._tensors.values():
                tensor[slot] = 0
        for family in self._families:
            for number, group in enumerate(family):
                self._fill(slot, family[0], number, group, updates)

    def remove(self, adapter: str) -> None:
        """Forget an adapter; the last takes its place."""
        slot, last = self.slot(adapter), len(self._members) - 1
        if slot != last:
            if self._members[last] not in self._unwritten:
                for tensor in self._tensors.values():
                    tensor[slot] = tensor[last]
            self._members[slot] = self._members[last]
        self._members.pop()
        self._unwritten.pop(adapter, None)

    def end_forward(self) -> None:
        """Let go of activations."""
        for product in self.products.values():
            product.low.seen = product.low.found = None

    def clear(self) -> None:
        """Forget all adapters; the memory stays."""
        self._members = []
        self._unwritten = {}

    @property
    def next_bytes(self) -> int:
        """Memory that adding an adapter takes: its slot, and the others' in new memory if there is no room."""
        moved = len(self._members) if len(self._members) == self._capacity else 0
        return (moved + 1) * self.shape.slot_bytes

    @property
    def nbytes(self) -> int:
        """Size of the weights, free room included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def low(self, selection: Selection, low: _Low, z: Tensor) -> list[Tensor]:
        """φ(D z + e) for the grid and for each span: (slots, width, ranks) and (tokens, ranks).

        Of whole tables these are ids.

        Args:
            selection: The tokens.
            low: The layers.
            z: (..., in), or ids (...).
        """
        z = z.reshape(-1) if self.shape.lookup else z.reshape(-1, z.shape[-1])
        if not self.shape.lookup and z.dtype != self.shape.dtype:
            z = z.to(self.shape.dtype)
        found, grid = [], selection.grid
        if grid is not None:
            rows = z[: selection.single] if grid.gather is None else z.index_select(0, grid.gather)
            rows = rows.view(grid.slots, grid.width, *rows.shape[1:])
            found.append(self._lowered(rows, low, slice(0, grid.slots)))
        for span in selection.spans:
            rows = z[span.rows] if isinstance(span.rows, slice) else z.index_select(0, span.rows)
            found.append(self._lowered(rows, low, span.slot))
        return found if self._activation is None else [self._activation(small) for small in found]

    def _lowered(self, rows: Tensor, low: _Low, slots: slice | int) -> Tensor:
        if low.down is None:
            return rows
        down = low.down[slots]
        if self.shape.lookup:
            of_each = torch.arange(len(down), device=down.device)[:, None]
            small = down[of_each, rows] if isinstance(slots, slice) else down.index_select(0, rows)
        else:
            small = torch.bmm(rows, down) if isinstance(slots, slice) else rows @ down
        if low.down_bias is not None:
            bias = low.down_bias[slots]
            small += bias[:, None] if isinstance(slots, slice) else bias
        return small

    # -- the tensors

    def _fill(
        self, slot: int, first: LayerGroup, number: int, group: LayerGroup, updates: Mapping[str, Update]
    ) -> None:
        mine = [updates[path_of(group, block)] for block in self._blocks[group]]
        start = number * self.shape.rank
        for rank in {update.rank for update in mine}:
            chosen = [place for place, update in enumerate(mine) if update.rank == rank]
            where: slice | list[int] = slice(None) if len(chosen) == len(mine) else chosen
            some = [mine[place] for place in chosen]
            columns = slice(start, start + rank)
            downs = [update.down.detach() for update in some if update.down is not None]
            if downs:
                down = torch.stack(downs).to(self._device, self.shape.dtype)  # (blocks, rank, in)
                self._tensors["down", first][slot][where, columns] = down
            up = torch.stack([update.up.detach() for update in some])
            up = up.to(self._device, self.shape.dtype).transpose(1, 2)  # (blocks, rank, out)
            scaling = torch.tensor(
                [update.scaling for update in some], dtype=self.shape.dtype, device=self._device
            )[:, None, None]
            target = self._tensors["up", group][slot]
            if isinstance(where, slice):
                torch.mul(up, scaling, out=target[:, :rank])
            else:
                target[where, :rank] = up * scaling
            for place, update in zip(chosen, some, strict=True):
                if update.down_bias is not None:
                    self._tensors["down_bias", first][slot, place, columns] = update.down_bias.detach()
                if update.up_bias is not None:
                    self._tensors["up_bias", group][slot, place] = update.up_bias.detach() * update.scaling

    def _grow(self, capacity: int) -> None:
        """Make room for so many. If there is no memory for it, what is there stays as it was."""
        rank = self.shape.rank
        tensors: dict[tuple[str, LayerGroup], Tensor] = {}

        def empty(*shape: int) -> Tensor:
            # A slot is written whole before it is read, and the system gives memory to those that are written.
            return torch.empty((capacity, *shape), dtype=self.shape.dtype, device=self._device)

        for family in self._families:
            first, blocks = family[0], len(self._blocks[family[0]])
            if not self.shape.whole:
                tensors["down", first] = empty(blocks, rank * len(family), first.inputs)
            if self.shape.down_bias:
                tensors["down_bias", first] = empty(blocks, rank * len(family))
            for group in family:
                tensors["up", group] = empty(blocks, rank, group.outputs)
                if self.shape.up_bias:
                    tensors["up_bias", group] = empty(blocks, group.outputs)
        for key, tensor in self._tensors.items():
            tensors[key][: len(self._members)] = tensor[: len(self._members)]
        self._capacity, self._tensors = capacity, tensors
        self._make_products()

    def _make_products(self) -> None:
        rank = self.shape.rank
        sources = dict(zip((group for group, _ in self.shape.groups), self.shape.sources, strict=True))
        self.products = {}
        for family in self._families:
            for place, block in enumerate(self._blocks[family[0]]):
                down, bias = (
                    self._tensors.get(("down", family[0])),
                    self._tensors.get(("down_bias", family[0])),
                )
                low = _Low(
                    None if down is None else down[:, place].mT, None if bias is None else bias[:, place]
                )
                for number, group in enumerate(family):
                    up_bias = self._tensors.get(("up_bias", group))
                    source = sources[group]
                    self.products[path_of(group, block)] = Product(
                        self,
                        low,
                        slice(number * rank, (number + 1) * rank),
                        self._tensors["up", group][:, place],
                        None if up_bias is None else up_bias[:, place],
                        None if source is None else source.replace("*", str(block), 1),
                        self.shape.reads_output,
                    )


def _first_slots(shape: Shape, device: torch.device) -> int:
    """Adapters that a new stack has room for."""
    if shape.whole:
        return _FIRST_WHOLE_SLOTS
    slots = _FIRST_SLOTS_ON_CPU if device.type == "cpu" else _FIRST_SLOTS
    while slots > 1 and slots * shape.slot_bytes > _MOST_FIRST_BYTES:
        slots //= 2
    return slots


def _same_blocks(
    families: list[tuple[LayerGroup, ...]], blocks: Mapping[LayerGroup, tuple[int, ...]]
) -> list[tuple[LayerGroup, ...]]:
    """Divide families whose groups aren't in the same blocks."""
    result: list[tuple[LayerGroup, ...]] = []
    for family in families:
        alike: dict[tuple[int, ...], list[LayerGroup]] = {}
        for group in family:
            alike.setdefault(blocks[group], []).append(group)
        result.extend(tuple(groups) for groups in alike.values())
    return result
