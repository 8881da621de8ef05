"""IA3: activations rescaled by learned vectors (Liu et al., arXiv 2205.05638).

    y = l ⊙ (W x + b)        attention's keys and values: one factor for each output
    y = W (l ⊙ x) + b        the way out of the feed-forward block: one factor for each input

With l = 1 at the start nothing changes. Merging multiplies: rows of W and b by l, or columns of W.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import ConfigError, PeftWarning
from manytune.methods.arithmetic.combination import Combination
from manytune.methods.arithmetic.pruning import weighted_sum
from manytune.methods.config import PeftConfig, PeftType, as_name_set
from manytune.methods.ia3.sizes import USUAL_MODULES
from manytune.methods.registry import Method, register
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayer
from manytune.methods.tuners.left_frozen import warn_of_left_frozen
from manytune.methods.tuners.sums import SummedTuner
from manytune.methods.tuners.targets import (
    Selection,
    base_of,
    default_targets,
    expand_targets,
    is_all_linear,
    matches,
    present,
    select,
)
from manytune.methods.tuners.terms import Factors, Terms
from manytune.methods.tuners.unmatched import nearest, report


@dataclass
class IA3Config(PeftConfig):
    """IA3: one trained factor for each output (or, in feed-forward modules, each input) of a layer. arXiv 2205.05638.

    Args:
        target_modules: A regular expression for whole module paths, a list of paths or path endings,
            `"all-linear"`, or None for the architecture's usual modules.
        exclude_modules: Modules to leave out, written in the same way.
        feedforward_modules: Those of the targets whose inputs are scaled rather than their outputs.
        fan_in_fan_out: The weight is stored as (in, out). Known for transformers' `Conv1D`, whatever is set
            here.
        modules_to_save: Modules trained in full next to the adapter, such as a new head.
        init_ia3_weights: True starts with factors of one, which changes nothing; False with random ones,
            meant for tests.

    Raises:
        ConfigError: `feedforward_modules` names a module that `target_modules` doesn't.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    feedforward_modules: list[str] | set[str] | str | None = None
    fan_in_fan_out: bool = False
    modules_to_save: list[str] | None = None
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.IA3
        self.target_modules = as_name_set(self.target_modules)
        self.exclude_modules = as_name_set(self.exclude_modules)
        self.feedforward_modules = as_name_set(self.feedforward_modules)
        targets, feedforward = self.target_modules, self.feedforward_modules
        if isinstance(targets, set) and isinstance(feedforward, set) and not feedforward <= targets:
            raise ConfigError(
                "`feedforward_modules` should be a subset of `target_modules`; "
                f"{sorted(feedforward - targets)} aren't in it."
            )


class Layer(AdapterLayer):
    """A linear or convolutional layer with rescaled outputs or inputs.

    Shapes of the factors: (out, 1); (1, in) in a feed-forward module; (1, channels, 1, ...) for convolutions.

    Attributes:
        ia3_l: The factors, by adapter.
        is_feedforward: Whether the inputs are scaled.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("ia3_l",)
    kind: ClassVar[str] = "ia3"
    additive: ClassVar[bool] = False

    def __init__(self, base_layer: nn.Module, *, is_feedforward: bool) -> None:
        super().__init__(base_layer)
        self.is_feedforward = is_feedforward
        self.ia3_l = nn.ParameterDict()
        self._transposed = isinstance(base_layer, Conv1D)
        self._spatial = base_layer.weight.dim() - 2 if isinstance(base_layer, (nn.Conv2d, nn.Conv3d)) else 0
        if self._transposed:
            self.in_features, self.out_features = base_layer.get_parameter("weight").shape
        else:
            sizes = ("in_channels", "out_channels") if self._spatial else ("in_features", "out_features")
            self.in_features = getattr(base_layer, sizes[0])
            self.out_features = getattr(base_layer, sizes[1])

    def add_adapter(self, adapter_name: str, config: IA3Config) -> None:
        """Add one adapter: factors of one, or from N(0, 1)."""
        size = self.in_features if self.is_feedforward else self.out_features
        shape = (1, size) if self.is_feedforward else (size, 1)
        if self._spatial:
            shape = (1, size, *(1,) * self._spatial)  # type: ignore[assignment]
        factors = torch.ones(shape) if config.init_ia3_weights else torch.randn(shape)
        self.ia3_l[adapter_name] = nn.Parameter(factors)

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`."""
        return {"ia3_l": self.ia3_l[adapter_name]} if adapter_name in self.ia3_l else {}

    @classmethod
    def terms(cls, base: BaseLayer, tensors: Mapping[str, Tensor], config: Any, scaling: float) -> Terms:
        """See `AdapterLayer.terms`: a = l in feed-forward modules, c = l elsewhere, as the stored shape says."""
        base.require_linear()
        base.require_tensors(tensors, cls.adapter_layer_names)
        factors = tensors["ia3_l"]
        if factors.dim() == 2 and factors.shape[0] == 1 and base.outputs > 1:
            base.require_shape("ia3_l", factors, (1, base.inputs))
            return Terms(factors={base.path: Factors(inputs=factors.flatten())})
        base.require_shape("ia3_l", factors, (base.outputs, 1))
        return Terms(factors={base.path: Factors(outputs=factors.flatten())})

    def _factors(self, adapter_names: Sequence[str]) -> Tensor:
        product: Tensor = self.ia3_l[adapter_names[0]]
        for name in adapter_names[1:]:
            product = product * self.ia3_l[name]
        return product if self._spatial else product.flatten()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its active adapters; exactly the base layer if there are none.

        Args:
            x: (..., in), or (batch, channels, ...) for a convolution.
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            What the base layer gives, rescaled, in its dtype.
        """
        names = self.live_adapters()
        if not names:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        factors = self._factors(names)
        if self.is_feedforward:
            return self.base_layer((x * factors).to(x.dtype), *args, **kwargs)  # type: ignore[no-any-return]
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return (result * factors).to(result.dtype)

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """W with its rows (and b) or its columns multiplied by the factors, rounded once."""
        weight = self.base_layer.get_parameter("weight")
        factors = self._factors(adapter_names).flatten()
        wide = torch.promote_types(torch.promote_types(weight.dtype, torch.float32), factors.dtype)
        factors = factors.to(wide)
        across = (-1,) + (1,) * (weight.dim() - 1)  # a factor for each row
        if self._transposed:
            shaped = factors.view(-1, 1) if self.is_feedforward else factors
        elif not self.is_feedforward:
            shaped = factors.view(across)
        elif self._spatial:
            # The outputs of group g read the inputs of group g only.
            groups: int = self.base_layer.groups  # type: ignore[assignment]
            by_group = factors.view(groups, -1).repeat_interleave(self.out_features // groups, dim=0)
            shaped = by_group.view(*by_group.shape, *(1,) * self._spatial)
        else:
            shaped = factors
        result = {"weight": (weight.to(wide) * shaped).to(weight.dtype)}
        bias = self.bias
        if bias is not None and not self.is_feedforward:
            result["bias"] = (bias.to(wide) * factors).to(bias.dtype)
        return result


class Linear(Layer):
    """IA3 on `torch.nn.Linear` or transformers' `Conv1D`."""


class Conv2d(Layer):
    """IA3 on `torch.nn.Conv2d`."""


class Conv3d(Layer):
    """IA3 on `torch.nn.Conv3d`."""


#: The layers that IA3 is attached to.
_KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    Conv1D: Linear,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}


class IA3Model(SummedTuner):
    """IA3 attached to a model; see `IA3Config`."""

    prefix: ClassVar[str] = "ia3_"
    layer_class = Layer

    def select(self, config: IA3Config) -> list[tuple[str, nn.Module]]:
        """See `LayerTuner.select`."""
        if config.target_modules is None:
            attention, feedforward = default_targets(self.model, USUAL_MODULES)
            config.target_modules = present(self.model, [*attention, *feedforward])
            if config.feedforward_modules is None:
                config.feedforward_modules = config.target_modules & set(feedforward)
            if feedforward and not config.feedforward_modules:
                warnings.warn(
                    f"IA3 scales the inputs of {', '.join(feedforward)} in models of this type, and this one has none: "
                    "its feed-forward blocks stay as they are. Name linear layers in feedforward_modules, if it has "
                    "any there.",
                    PeftWarning,
                    stacklevel=4,
                )
        every_linear = is_all_linear(config.target_modules)
        expand_targets(self.model, config, {})
        if config.feedforward_modules is None:
            config.feedforward_modules = set()
        chosen = select(self.model, Selection.of(config, config.target_modules or ()))
        if every_linear:
            warn_of_left_frozen(self.model, config)
        config.fan_in_fan_out = any(isinstance(base_of(module), Conv1D) for _, module in chosen)
        feedforward = config.feedforward_modules
        for entry in [feedforward] if isinstance(feedforward, str) else sorted(feedforward):
            names = entry if isinstance(feedforward, str) else [entry]
            if not any(matches(path, names) for path, _ in chosen):
                report(
                    f"feedforward_modules: {entry!r} names none of the targeted modules, so nothing is scaled at its "
                    f"input for it. {nearest([entry], [path for path, _ in chosen], 'The targeted modules')}",
                    saved=config.was_saved,
                )
        return chosen

    def wrap(self, path: str, module: nn.Module, config: IA3Config) -> AdapterLayer:
        """See `LayerTuner.wrap`."""
        kind = next((kind for base, kind in _KINDS.items() if isinstance(module, base)), None)
        if kind is None:
            raise ConfigError(
                f"Target module {path} ({type(module).__name__}) is not supported. IA3 is for torch.nn.Linear, "
                "Conv2d, Conv3d and transformers' Conv1D. Name layers of these kinds in target_modules."
            )
        return kind(module, is_feedforward=self._is_feedforward(path, config))

    def add_to_layer(self, layer: AdapterLayer, path: str, adapter_name: str, config: IA3Config) -> None:
        """See `LayerTuner.add_to_layer`."""
        assert isinstance(layer, Layer)
        if layer.is_feedforward != self._is_feedforward(path, config):
            raise ConfigError(
                f"{path} is {'' if layer.is_feedforward else 'not '}a feed-forward module for the adapters already "
                f"there, and must be so for '{adapter_name}' too: make feedforward_modules agree."
            )
        layer.add_adapter(adapter_name, config)

    def sum_options(self, adapters: Sequence[str], how: Combination) -> dict[str, Any]:
        """See `SummedTuner.sum_options`; HF PEFT adds up the factors, whichever way is asked for."""
        feedforward: set[str] = set()
        for name in adapters:
            named = getattr(self.peft_config[name], "feedforward_modules", None)
            feedforward |= set() if not named else {named} if isinstance(named, str) else named
        return {"feedforward_modules": feedforward}

    def write_sum(
        self,
        layer: AdapterLayer,
        path: str,
        adapter_name: str,
        adapters: Sequence[str],
        weights: Sequence[float],
        how: Combination,
    ) -> None:
        """See `SummedTuner.write_sum`."""
        layer.tensors(adapter_name)["ia3_l"].copy_(
            weighted_sum([layer.tensors(name)["ia3_l"] for name in adapters], weights)
        )

    @staticmethod
    def _is_feedforward(path: str, config: IA3Config) -> bool:
        return matches(path, config.feedforward_modules or set())


register(Method("ia3", PeftType.IA3, IA3Config, IA3Model, in_peft=True, learning_rate=1e-2, decays=False))
