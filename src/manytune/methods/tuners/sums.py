"""A new adapter as the weighted sum of others: what is the same for every method whose adapters add up."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from manytune.errors import AdapterError
from manytune.methods.arithmetic.combination import Combination
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.unsupported import NotInLayersError


class SummedTuner(LayerTuner):
    """A method whose adapters have weighted sums.

    A subclass defines `sum_options` and `write_sum`; one that has no sums after all says why in `no_sum`.
    """

    no_sum: ClassVar[str | None] = None

    @abstractmethod
    def sum_options(self, adapters: Sequence[str], how: Combination) -> dict[str, Any]:
        """Options of a weighted sum of adapters, other than what it targets.

        Raises:
            ConfigError: One of these adapters has no sum of this kind.
        """

    @abstractmethod
    def write_sum(
        self,
        layer: Any,
        path: str,
        adapter_name: str,
        adapters: Sequence[str],
        weights: Sequence[float],
        how: Combination,
    ) -> None:
        """Set an adapter's tensors at one layer to those of the weighted sum of others, which the layer carries."""


@torch.no_grad()
def add_weighted_adapter(
    tuner: Tuner, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, how: Combination
) -> None:
    """Add the weighted combination of adapters as a new one, frozen and not in use.

    Raises:
        AdapterError: An adapter isn't loaded; the name is taken; the numbers of adapters and weights differ; or
            several adapters have a copy of the same module.
        ConfigError: An adapter has no sum of this kind.
        NotInLayersError: The method's adapters have no sum.
    """
    if not isinstance(tuner, SummedTuner) or tuner.no_sum is not None:
        raise NotInLayersError(
            f"add_weighted_adapter: {type(tuner).__name__} has no arithmetic of adapters: {tuner.no_sum}."
        )
    for name in adapters:
        tuner._require(name)
    if not adapters or len(adapters) != len(weights):
        raise AdapterError(
            f"Expected one weight for each adapter, found {len(adapters)} adapters and {len(weights)} weights."
        )
    donors = _donors(tuner, adapters)
    tables = [brought for name in dict.fromkeys(adapters) if (brought := tuner.own_tables.of(name))]
    if len(tables) > 1:
        raise AdapterError(
            "Cannot add weighted adapters if several of them bring embedding tables of their own, which don't add up."
        )
    options = {**_targets(tuner, adapters), **tuner.sum_options(adapters, how)}
    config = dataclasses.replace(tuner.peft_config[adapters[0]], **options)
    tuner.add_adapter(adapter_name, config)
    for path, layer in tuner._layers.items():
        pairs = [(n, w) for n, w in zip(adapters, weights, strict=True) if layer.has_adapter(n)]
        if pairs and layer.has_adapter(adapter_name):
            names, own = zip(*pairs, strict=True)
            tuner.write_sum(layer, path, adapter_name, names, own, how)
    for brought in tables:
        tuner.bring_tables(adapter_name, brought)
    for path, donor in donors.items():
        target = tuner._saved[path].tensors(adapter_name)
        for key, value in tuner._saved[path].tensors(donor).items():
            target[key].copy_(value)


def _donors(tuner: LayerTuner, adapters: Sequence[str]) -> dict[str, str]:
    """For each module trained in full by one of the adapters, by which."""
    donors = {}
    for path, keeper in tuner._saved.items():
        owners = [name for name in dict.fromkeys(adapters) if name in keeper.modules_to_save]
        if len(owners) > 1:
            raise AdapterError(
                "Cannot add weighted adapters if they target the same module with modules_to_save: "
                f"{path} is trained in full by {owners}, and whole modules don't add up."
            )
        if owners:
            donors[path] = owners[0]
    return donors


def _targets(tuner: LayerTuner, adapters: Sequence[str]) -> dict[str, Any]:
    """Options with which a sum is at every layer that has one of the adapters."""
    configs: list[Any] = [tuner.peft_config[name] for name in adapters]
    carrying = {p: layer for p, layer in tuner._layers.items() if any(map(layer.has_adapter, adapters))}
    targets = {path for path, layer in carrying.items() if layer.parameter_name is None}
    narrowed = any(
        getattr(config, "exclude_modules", None) or getattr(config, "layers_to_transform", None) is not None
        for config in configs
    )
    if not narrowed and all(isinstance(config.target_modules, set) for config in configs):
        targets = set().union(*(config.target_modules for config in configs))
    saved = sorted({name for config in configs for name in config.modules_to_save or ()})
    return {"target_modules": targets, "exclude_modules": None, "modules_to_save": saved or None}
