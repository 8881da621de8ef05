"""One batch, another adapter for each sample: `model(..., adapter_names=["a", "__base__", "b"])`.

Adapters that can be written in terms run in the mixed forward (`mixed_samples.py`), all others layer by layer
(`row_by_row.py`). Semantics: the separate runs, stacked.
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
from manytune.methods.tuners.base_layers import is_routed
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper, ModuleTypeError
from manytune.methods.tuners.terms import Terms, TermsError
from manytune.model.mixed_samples import mixed_samples, reordered_weights
from manytune.model.row_by_row import row_by_row, wrong_length
from manytune.sharded import refuse_sharded

_ROW_WISE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def each_with_its_own(
    tuner: Tuner,
    adapter_names: Sequence[str] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    many_steps: bool = False,
) -> Iterator[None]:
    """Within this context the model's layers apply to each sample the adapter that it names.

    Args:
        tuner: What attaches the adapters.
        adapter_names: One name for each sample, `"__base__"` for none; None leaves everything as it is.
        args: The call's positional arguments, to count its samples.
        kwargs: The call's other arguments.
        many_steps: Whether the model runs many times inside, as in generation.

    Raises:
        AdapterError: The model trains; a name is unknown; an adapter is merged; the number of names isn't that of
            the samples; the method can't tell the samples of a batch apart; or weights are sharded.
        ModuleTypeError: A module trained in full is of a kind that may look across samples.
    """
    if adapter_names is None or tuner.enabled is False:
        yield
        return
    refuse_sharded(
        tuner.model, "use an adapter for each sample", "Use one at a time with set_adapter() or using()"
    )
    names = list(adapter_names)
    # The tuner's own index: looking through the model's modules would take longer with every adapter.
    layers: list[AdapterLayer | ModulesToSaveWrapper] = []
    if isinstance(tuner, LayerTuner):
        layers = [*tuner._layers.values(), *tuner._saved.values()]
    _check(tuner, layers, names)
    size = _batch_size([*args, *kwargs.values()])
    if size is not None and size != len(names):
        raise wrong_length(len(names), size)
    terms = None if _needs_gradients(tuner, names) else _terms(tuner, names)
    if terms is None:
        _check_layers(tuner, layers, names)
    elif any(own.virtual_tokens for own in terms.values()):
        raise _whole_batches(tuner)
    reordered = reordered_weights(tuner) if many_steps else None
    with row_by_row(layers, names) if terms is None else mixed_samples(tuner, terms, names, reordered):
        yield


def _needs_gradients(tuner: Tuner, names: Sequence[str]) -> bool:
    """Whether gradients are to reach the adapters themselves, which the mixed forward has copies of."""
    if not torch.is_grad_enabled():
        return False
    return any(tensor.requires_grad for name in set(names) - {BASE} for tensor in tuner.state(name).values())


def _terms(tuner: Tuner, names: Sequence[str]) -> dict[str, Terms] | None:
    """The terms of all adapters that are named; None if one of them can't be written so."""
    try:
        return {name: tuner.live_terms(name) for name in dict.fromkeys(names) if name != BASE}
    except TermsError:
        return None


def _check(tuner: Tuner, layers: Sequence[nn.Module], names: Sequence[str]) -> None:
    if tuner.model.training:
        raise AdapterError(
            "Cannot pass `adapter_names` when the model is in training mode. Call eval() first."
        )
    unknown = sorted(set(names) - set(tuner.peft_config) - {BASE})
    if unknown:
        raise AdapterError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
    if any(layer.merged for layer in layers if isinstance(layer, AdapterLayer)):
        raise AdapterError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )


def _check_layers(tuner: Tuner, layers: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Refuse what layers can't do row by row."""
    owners = [name for name in {*names, *tuner.active_adapters} if tuner.own_tables.of(name)]
    if owners:
        raise AdapterError(
            f"Cannot pass `adapter_names` with {owners[0]!r} here: it brings an embedding table of its own, which "
            "works in the mixed forward alone: without gradients for the adapters, and where all of them have terms. "
            "Use one adapter at a time with set_adapter()."
        )
    if not any(isinstance(layer, AdapterLayer) for layer in layers):
        raise _whole_batches(tuner)
    routed = next(filter(is_routed, tuner.targeted_module_names), None)
    if routed is not None:
        raise AdapterError(
            f"Cannot pass `adapter_names` with adapters on {routed}: it sees only the tokens that are routed to its "
            "expert, so samples can't be distinguished there. Use one adapter at a time with set_adapter()."
        )
    for layer in layers:
        if isinstance(layer, ModulesToSaveWrapper) and not isinstance(layer.original_module, _ROW_WISE):
            raise ModuleTypeError(
                "Mixed batching is only supported for the following modules: "
                f"{', '.join(kind.__name__ for kind in _ROW_WISE)}; modules_to_save has a "
                f"{type(layer.original_module).__name__}."
            )
        if not isinstance(layer, AdapterLayer):
            continue
        if not layer.row_wise:
            raise AdapterError(
                f"Cannot pass `adapter_names` with adapters on parameters of a {type(layer.get_base_layer()).__name__} "
                "(target_parameters) here: such a layer shares a batch in the mixed forward alone, without gradients "
                "for the adapters. Call it under torch.no_grad(), or use one adapter at a time with set_adapter()."
            )
        apart = [name for name in names if name != BASE and layer.reads_another_layer(name)]
        if apart:
            raise AdapterError(
                f"Cannot pass `adapter_names` with {apart[0]!r} here: it reads the input of another layer, which works "
                "in the mixed forward alone: without gradients for the adapters, and without modules_to_save. Use one "
                "adapter at a time with set_adapter()."
            )
        if any(isinstance(module, AdapterLayer) for module in layer.base_layer.modules()):
            # torch.nn.MultiheadAttention with its projection: which dimension counts samples isn't known here.
            raise AdapterError(
                f"Cannot pass `adapter_names` with adapters on a {type(layer.base_layer).__name__}: adapters within it "
                "have theirs, too."
            )


def _whole_batches(tuner: Tuner) -> AdapterError:
    kinds = ", ".join(sorted({str(config.peft_type) for config in tuner.peft_config.values()}))
    return AdapterError(f"Cannot pass `adapter_names` with {kinds}: its adapters act on whole batches.")


def _batch_size(values: Sequence[Any]) -> int | None:
    sizes = (value.shape[0] for value in values if isinstance(value, Tensor) and value.dim())
    return next(sizes, None)
