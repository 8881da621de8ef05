"""The base's biases, of which there is one copy: an adapter with `bias="all"` or `"lora_only"` trains them in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.token_rows import TokenRows


def trained_biases(
    model: nn.Module, layers: Mapping[str, AdapterLayer], adapter_name: str, which: str
) -> dict[str, nn.Parameter]:
    """The biases that an adapter trains, by their name in the model.

    Args:
        model: The model with the adapter.
        layers: Its adapter layers, by path.
        adapter_name: The adapter.
        which: `"none"`, `"all"`, or `"lora_only"` for those of the layers that carry it.
    """
    if which == "none":
        return {}
    if which == "lora_only":
        adapted = {p: layer for p, layer in layers.items() if not isinstance(layer, TokenRows)}
        carrying = {path: layer for path, layer in adapted.items() if layer.has_adapter(adapter_name)}
        return {
            f"{path}.base_layer.bias": layer.base_layer.bias  # type: ignore[misc]
            for path, layer in carrying.items()
            if isinstance(getattr(layer.base_layer, "bias", None), nn.Parameter)
        }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith("bias") and ".lora_" not in name and ".modules_to_save." not in name
    }


@contextmanager
def with_the_bases(kept: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Within this context biases have the values that they had before they were trained.

    Args:
        kept: The biases, and these values.
    """
    trained = [bias.data for bias, _ in kept]
    for bias, value in kept:
        bias.data = value
    try:
        yield
    finally:
        for (bias, _), value in zip(kept, trained, strict=True):
            bias.data = value
