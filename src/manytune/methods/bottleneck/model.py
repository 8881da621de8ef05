"""Bottleneck adapters: a small network next to or behind a transformer's sublayers.

    houlsby    y' = y + s · U φ(D y)    behind attention and MLP   (Houlsby et al., arXiv 1902.00751)
    pfeiffer   the same                 behind the MLP only        (Pfeiffer et al., arXiv 2005.00247)
    parallel   y' = y + s · U φ(D x)    next to the MLP             (He et al., arXiv 2110.04366)

x is what the sublayer reads and y what its output projection gives, before both are added. D is (bottleneck × hidden)
and U (hidden × bottleneck), each with a bias; U starts at zero, so nothing changes at first. Between them is a
nonlinearity φ, so an adapter can't be merged into a weight.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import AdapterError, ConfigError, NoMatchingPeftModuleError
from manytune.methods.config import PeftConfig, PeftType
from manytune.methods.registry import Method, register
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayer, linear_sizes
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.sublayers import SUBLAYERS, Sublayers
from manytune.methods.tuners.targets import Selection, base_of, candidates, select
from manytune.methods.tuners.terms import NONLINEARITIES, Terms, Update

STYLES = ("houlsby", "pfeiffer", "parallel")


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters; arXiv 1902.00751, 2005.00247, 2110.04366.

    Args:
        style: `"houlsby"`, `"pfeiffer"` or `"parallel"`.
        bottleneck_size: The size between D and U.
        non_linearity: `"relu"`, `"gelu"`, `"silu"` or `"tanh"`.
        scaling: s; the paper on parallel adapters uses 4 for translation and summarisation.
        dropout: Dropout on the way into D.
        layers_to_transform: Indices of the layers that get adapters; all by default.
        attention_modules: A regular expression for the attention's output projections, for architectures
            that aren't known.
        mlp_modules: The same for the MLP's output projections.
        mlp_input_modules: The same for a layer that reads what the MLP reads, which `"parallel"` needs.
        modules_to_save: Modules trained in full next to the adapters, such as a new head.

    Raises:
        ConfigError: An option's value can't be used.
    """

    style: str = "houlsby"
    bottleneck_size: int = 64
    non_linearity: str = "relu"
    scaling: float = 1.0
    dropout: float = 0.0
    layers_to_transform: list[int] | int | None = None
    attention_modules: str | None = None
    mlp_modules: str | None = None
    mlp_input_modules: str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK
        for option, known in (("style", STYLES), ("non_linearity", tuple(NONLINEARITIES))):
            if getattr(self, option) not in known:
                raise ConfigError(
                    f"BottleneckConfig({option}={getattr(self, option)!r}): expected one of {', '.join(known)}."
                )
        if not isinstance(self.bottleneck_size, int) or self.bottleneck_size <= 0:
            raise ConfigError(f"`bottleneck_size` is a positive integer, found {self.bottleneck_size!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"`dropout` is a probability below 1, found {self.dropout!r}.")


class Source(AdapterLayer):
    """A layer whose input parallel adapters read too. It has no parameters of its own and changes nothing.

    Attributes:
        readers: The adapters that read it.
        seen: The input of a forward pass under way.
    """

    other_param_names: ClassVar[tuple[str, ...]] = ("readers",)
    kind: ClassVar[str] = "bottleneck"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.readers: dict[str, bool] = {}
        self.seen: Tensor | None = None

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """None: nothing is trained here."""
        return {}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The base layer; its input is kept until the adapter has read it."""
        if not self._disable_adapters and any(name in self.readers for name in self._active_adapters):
            self.seen = x
        return self.base_layer(x, *args, **kwargs)


class Layer(AdapterLayer):
    """A sublayer's output projection with adapters behind it, or next to its sublayer.

    Attributes:
        bottleneck_down, bottleneck_up: D and U by adapter.
        bottleneck_between: Dropout and the nonlinearity by adapter.
        scaling: s by adapter.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("bottleneck_down", "bottleneck_up")
    other_param_names: ClassVar[tuple[str, ...]] = (
        *("bottleneck_dropout", "bottleneck_between", "scaling", "sources"),
    )
    kind: ClassVar[str] = "bottleneck"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.hidden_size = linear_sizes(base_layer)[1]
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_between = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        # Not a child: the source has a place of its own in the model.
        self.__dict__["sources"] = {}

    sources: dict[str, Source]

    def add_adapter(self, adapter_name: str, config: BottleneckConfig, source: Source | None) -> None:
        """Add one adapter: D Kaiming-uniform, U and the biases zero.

        Args:
            adapter_name: Its name.
            config: Its options.
            source: Where to read x; None reads y.
        """
        down = nn.Linear(self.hidden_size, config.bottleneck_size)
        up = nn.Linear(config.bottleneck_size, self.hidden_size)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_dropout[adapter_name] = (
            nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        )
        self.bottleneck_between[adapter_name] = NONLINEARITIES[config.non_linearity]()
        self.scaling[adapter_name] = config.scaling
        if source is not None:
            self.sources[adapter_name] = source
            source.readers[adapter_name] = True

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`."""
        return {
            f"{container}.{name}": parameter
            for container in self.adapter_layer_names
            if adapter_name in getattr(self, container)
            for name, parameter in getattr(self, container)[adapter_name].named_parameters()
        }

    @classmethod
    def terms(
        cls, base: BaseLayer, tensors: Mapping[str, Tensor], config: BottleneckConfig, scaling: float
    ) -> Terms:
        """See `AdapterLayer.terms`; a parallel adapter's source is for `BottleneckModel` to say."""
        base.require_linear()
        names = [f"{side}.{kind}" for side in cls.adapter_layer_names for kind in ("weight", "bias")]
        base.require_tensors(tensors, names)
        down, e, up, f = (tensors[name] for name in names)
        size, hidden = config.bottleneck_size, base.outputs
        for name, shape in zip(names, ((size, hidden), (size,), (hidden, size), (hidden,)), strict=True):
            base.require_shape(name, tensors[name], shape)
        update = Update(down, up, scaling, e, f)
        return Terms({base.path: update}, config.non_linearity, reads_output=config.style != "parallel")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The projection with its active adapters; exactly the base layer if there are none.

        Args:
            x: (..., in).
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            (..., hidden), in the base layer's dtype.
        """
        y: Tensor = self.base_layer(x, *args, **kwargs)
        result = y
        sources = set()
        for name in self.live_adapters():
            read = y
            if name in self.sources:
                source = self.sources[name]
                sources.add(source)
                assert source.seen is not None, "the layer that a parallel adapter reads next to wasn't run"
                read = source.seen
            down = self.bottleneck_down[name]
            low = self.bottleneck_dropout[name](read.to(down.get_parameter("weight").dtype))
            small = self.bottleneck_between[name](down(low))
            result = result + self.bottleneck_up[name](small).view_as(y) * self.scaling[name]
        for source in sources:
            source.seen = None
        return result.to(y.dtype)

    def reads_another_layer(self, adapter_name: str) -> bool:
        """See `AdapterLayer.reads_another_layer`: parallel adapters read what the MLP reads."""
        return adapter_name in self.sources

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """There are none.

        Raises:
            AdapterError: Always.
        """
        raise AdapterError(
            f"Can't merge {list(adapter_names)}: a bottleneck adapter has a nonlinearity in it, so no weight of the "
            "base does what it does. Use it unmerged."
        )


class BottleneckModel(LayerTuner):
    """Bottleneck adapters attached to a model; see `BottleneckConfig`."""

    prefix: ClassVar[str] = "bottleneck_"
    no_sum: ClassVar[str | None] = "each has a nonlinearity in it"
    layer_class = Layer

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **options: Any) -> None:
        self.__dict__["_sources"] = {}
        self.__dict__["_beside"] = {}
        super().__init__(model, config, adapter_name, **options)

    _sources: dict[str, Source]
    _beside: dict[str, str]

    def select(self, config: BottleneckConfig) -> list[tuple[str, nn.Module]]:
        """See `LayerTuner.select`."""
        places = _places(self.model, config)
        wanted = {"mlp_modules": places.mlp}
        if config.style == "houlsby":
            wanted = {"attention_modules": places.attention, **wanted}
        named = {
            p for option, pattern in wanted.items() for p, _ in _find(self.model, pattern, config, option)
        }
        found = [(path, module) for path, module in candidates(self.model) if path in named]
        for path, module in found:
            if not isinstance(base_of(module), (nn.Linear, Conv1D)):
                raise ConfigError(
                    f"Target module {path} ({type(base_of(module)).__name__}) is not a linear layer: a bottleneck "
                    "adapter goes behind an output projection. Name those in attention_modules and mlp_modules."
                )
        if config.style != "parallel":
            return found
        sources = _find(self.model, places.mlp_input, config, "mlp_input_modules")
        self.__dict__["_beside"] = _paired(sources, found)
        # The source of each comes first: its layer must be there when the adapter is made.
        return [*sources, *found]

    def wrap(self, path: str, module: nn.Module, config: BottleneckConfig) -> AdapterLayer:
        """See `LayerTuner.wrap`."""
        if config.style == "parallel" and path in self._beside.values():
            layer: AdapterLayer = Source(module)
            self._sources[path] = layer  # type: ignore[assignment]
            return layer
        return Layer(module)

    def add_to_layer(
        self, layer: AdapterLayer, path: str, adapter_name: str, config: BottleneckConfig
    ) -> None:
        """See `LayerTuner.add_to_layer`."""
        if isinstance(layer, Layer):
            parallel = config.style == "parallel"
            layer.add_adapter(adapter_name, config, self._sources[self._beside[path]] if parallel else None)

    @classmethod
    def scaling_at(cls, config: BottleneckConfig, path: str) -> float:
        """See `LayerTuner.scaling_at`."""
        return config.scaling

    @classmethod
    def terms(cls, config: BottleneckConfig, tensors: Mapping[str, Tensor], model: nn.Module) -> Terms:
        """See `Tuner.terms`."""
        found = super().terms(config, tensors, model)
        if config.style != "parallel":
            return found
        config = copy.copy(config)  # the places that it leaves open are filled in
        places = _places(model, config)
        sources = _find(model, places.mlp_input, config, "mlp_input_modules")
        return _reading(found, _paired(sources, _find(model, places.mlp, config, "mlp_modules")))

    def live_terms(self, adapter_name: str) -> Terms:
        """See `Tuner.live_terms`."""
        paths = {source: path for path, source in self._sources.items()}
        sources = {
            path: paths[layer.sources[adapter_name]]
            for path, layer in self._layers.items()
            if isinstance(layer, Layer) and adapter_name in layer.sources
        }
        return _reading(super().live_terms(adapter_name), sources)


def _places(model: nn.Module, config: BottleneckConfig) -> Sublayers:
    """Where the sublayers of a model are; fills in what the configuration leaves open."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = SUBLAYERS.get(model_type) if isinstance(model_type, str) else None
    given = (config.attention_modules, config.mlp_modules, config.mlp_input_modules)
    usual = (known.attention, known.mlp, known.mlp_input) if known else (None, None, None)
    needed = {
        "houlsby": ("attention_modules", "mlp_modules"),
        "pfeiffer": ("mlp_modules",),
        "parallel": ("mlp_modules", "mlp_input_modules"),
    }[config.style]
    options = ("attention_modules", "mlp_modules", "mlp_input_modules")
    unused = [o for o, own in zip(options, given, strict=True) if own is not None and o not in needed]
    if unused and not config.was_saved:
        raise ConfigError(
            f"{' and '.join(unused)}: style={config.style!r} puts nothing there, so it would have no effect. "
            "Leave it out, or choose another style."
        )
    for option, own, default in zip(options, given, usual, strict=True):
        if option in needed:
            setattr(config, option, own or default)
    missing = [option for option in needed if getattr(config, option) is None]
    if missing:
        raise ConfigError(
            f"It isn't known where the sublayers of model type {model_type!r} are. Give {' and '.join(missing)}: "
            "regular expressions for whole module paths."
        )
    return Sublayers(config.attention_modules or "", config.mlp_modules or "", config.mlp_input_modules or "")


def _find(
    model: nn.Module, pattern: str, config: BottleneckConfig, option: str
) -> list[tuple[str, nn.Module]]:
    return select(model, Selection.of(config, pattern, option=option))


def _paired(sources: list[tuple[str, nn.Module]], ends: list[tuple[str, nn.Module]]) -> dict[str, str]:
    """For the path of each MLP's end, that of the layer which reads what the MLP reads."""
    if len(sources) != len(ends):
        raise NoMatchingPeftModuleError(
            f"A parallel adapter needs one input for each MLP: mlp_modules names {len(ends)} modules and "
            f"mlp_input_modules {len(sources)}."
        )
    return {end: source for (source, _), (end, _) in zip(sources, ends, strict=True)}


def _reading(terms: Terms, sources: Mapping[str, str]) -> Terms:
    """Terms whose updates read the inputs of other layers; each update and its source by path."""
    updates = {p: dataclasses.replace(u, source=sources.get(p)) for p, u in terms.updates.items()}
    return dataclasses.replace(terms, updates=updates)


register(Method("bottleneck", PeftType.BOTTLENECK, BottleneckConfig, BottleneckModel))
