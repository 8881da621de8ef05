"""Another adapter for each sample, layer by layer: each layer runs once for every adapter, on the rows that name it.

This takes any layer, and gradients flow through it; the mixed forward (`mixed_samples.py`) is faster by far, and takes
what can be written in terms. Semantics of both: the separate runs, stacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from manytune.errors import AdapterError
from manytune.layer_forwards import replaced_forwards
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import BASE
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper


@contextmanager
def row_by_row(layers: Sequence[AdapterLayer | ModulesToSaveWrapper], names: Sequence[str]) -> Iterator[None]:
    """Within this context each layer applies to each of its rows the adapter that the sample names.

    Args:
        layers: The layers that carry adapters.
        names: The adapter of each sample, `"__base__"` for none.
    """
    with replaced_forwards({layer: _divided(layer, names) for layer in layers}):
        yield


def _divided(layer: AdapterLayer | ModulesToSaveWrapper, names: Sequence[str]) -> Any:
    """The layer's forward, called once for each adapter with the rows that name it."""
    plain = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = for_each_sample(x, len(names))
        # Beam search repeats each sample, and some models lay a sample's tokens out as rows.
        times, left = divmod(x.shape[0], len(names))
        if left:
            raise wrong_length(len(names), x.shape[0])
        result: Tensor | None = None
        for name in dict.fromkeys(names):
            mine = torch.tensor([name == other for other in names], device=x.device)
            rows = mine.repeat_interleave(times).nonzero().flatten()
            with layer.temporarily([] if name == BASE else [name]):
                part: Tensor = plain(x[rows], *args, **kwargs)
            if result is None:
                result = part.new_empty((x.shape[0], *part.shape[1:]))
            result[rows] = part
        assert result is not None
        return result

    return forward


def for_each_sample(x: Tensor, samples: int) -> Tensor:
    """One row for all samples, such as position ids, as a row for each: from here on the samples differ."""
    return x.expand(samples, *x.shape[1:]) if x.shape[0] == 1 < samples else x


def wrong_length(names: int, inputs: int) -> AdapterError:
    """The number of names isn't that of the samples."""
    return AdapterError(
        "Length of `adapter_names` should be the same as the number of inputs, but got "
        f"{names} and {inputs} respectively."
    )
