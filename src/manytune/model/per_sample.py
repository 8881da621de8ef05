"""One batch, another adapter for each sample: `model(..., adapter_names=["a", "__base__", "b"])`.

Each layer divides its rows among the adapters that they name, runs itself once for each, and puts the rows back in
order. The base's share of the work is that of one plain batch. Semantics: the separate runs, stacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import BASE, Tuner
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper, ModuleTypeError

_ROW_WISE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def each_with_its_own(
    tuner: Tuner, adapter_names: Sequence[str] | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Within this context the model's layers apply to each sample the adapter that it names.

    Args:
        tuner: What attaches the adapters.
        adapter_names: One name for each sample, `"__base__"` for none; None leaves everything as it is.
        args: The call's positional arguments, to count its samples.
        kwargs: The call's other arguments.

    Raises:
        AdapterError: The model trains; a name is unknown; an adapter is merged; the number of names isn't that
            of the samples; or the method can't tell the samples of a batch apart.
        ModuleTypeError: A module trained in full is of a kind that may look across samples.
    """
    if adapter_names is None or tuner.enabled is False:
        yield
        return
    names = list(adapter_names)
    # The tuner's own index: looking through the model's modules would take longer with every adapter.
    layers: list[AdapterLayer | ModulesToSaveWrapper] = []
    if isinstance(tuner, LayerTuner):
        layers = [*tuner._layers.values(), *tuner._saved.values()]
    _check(tuner, layers, names)
    size = _batch_size([*args, *kwargs.values()])
    if size is not None and size != len(names):
        raise _wrong_length(len(names), size)
    for layer in layers:
        layer.__dict__["forward"] = _divided(layer, names)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _check(tuner: Tuner, layers: Sequence[nn.Module], names: Sequence[str]) -> None:
    adapters = [layer for layer in layers if isinstance(layer, AdapterLayer)]
    if not adapters:
        kinds = ", ".join(sorted({str(config.peft_type) for config in tuner.peft_config.values()}))
        raise AdapterError(f"Cannot pass `adapter_names` with {kinds}: its adapters act on whole batches.")
    if tuner.model.training:
        raise AdapterError(
            "Cannot pass `adapter_names` when the model is in training mode. Call eval() first."
        )
    unknown = sorted(set(names) - set(tuner.peft_config) - {BASE})
    if unknown:
        raise AdapterError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
    if any(layer.merged for layer in adapters):
        raise AdapterError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    for layer in layers:
        if isinstance(layer, ModulesToSaveWrapper) and not isinstance(layer.original_module, _ROW_WISE):
            raise ModuleTypeError(
                "Mixed batching is only supported for the following modules: "
                f"{', '.join(kind.__name__ for kind in _ROW_WISE)}; modules_to_save has a "
                f"{type(layer.original_module).__name__}."
            )
        inner = layer.base_layer.modules() if isinstance(layer, AdapterLayer) else ()
        if any(isinstance(module, AdapterLayer) for module in inner):
            # torch.nn.MultiheadAttention with its projection: which dimension counts samples isn't known here.
            raise AdapterError(
                f"Cannot pass `adapter_names` with adapters on a {type(layer.base_layer).__name__}: adapters within it "
                "have theirs, too."
            )


def _batch_size(values: Sequence[Any]) -> int | None:
    sizes = (value.shape[0] for value in values if isinstance(value, Tensor) and value.dim())
    return next(sizes, None)


def _wrong_length(names: int, inputs: int) -> AdapterError:
    return AdapterError(
        "Length of `adapter_names` should be the same as the number of inputs, but got "
        f"{names} and {inputs} respectively."
    )


def _divided(layer: AdapterLayer | ModulesToSaveWrapper, names: Sequence[str]) -> Any:
    """The layer's forward, called once for each adapter with the rows that name it."""
    plain = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[0] == 1 < len(names):
            # One row for all samples, such as position ids: from here on the samples differ.
            x = x.expand(len(names), *x.shape[1:])
        # Beam search repeats each sample, and some models lay a sample's tokens out as rows.
        times, left = divmod(x.shape[0], len(names))
        if left:
            raise _wrong_length(len(names), x.shape[0])
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
