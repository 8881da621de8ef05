"""VeRA: one pair of frozen random matrices for all layers, and a pair of trained vectors for each.

    y = W x + b ⊙ B (d ⊙ A x)            (Kopiczko et al., arXiv 2310.11454)

A (r × largest input) and B (largest output × r) are drawn once from a seed; a layer uses the first of their columns and
rows. d (r,) starts at a small constant and b (out,) at zero, so nothing changes at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import ConfigError, OversizedAdapterError
from manytune.free_memory import free_memory
from manytune.methods.config import PeftConfig, PeftType, as_name_set
from manytune.methods.registry import Method, register
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayer, BaseLayers, linear_sizes, require_shape
from manytune.methods.tuners.filling import fill_state
from manytune.methods.tuners.layer_terms import by_layer, saved_terms
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.left_frozen import warn_of_left_frozen
from manytune.methods.tuners.merging import added
from manytune.methods.tuners.targets import (
    Selection,
    base_of,
    expand_targets,
    is_all_linear,
    select,
)
from manytune.methods.tuners.terms import Terms, TermsError, Update, joined
from manytune.methods.tuners.usual_targets import ATTENTION_PROJECTIONS


@dataclass
class VeraConfig(PeftConfig):
    """VeRA; arXiv 2310.11454.

    Args:
        r: The rank; far larger than LoRA's, since it costs one trained number a layer.
        target_modules: A regular expression for whole module paths, a list of paths or path endings,
            `"all-linear"`, or None for the architecture's attention projections.
        projection_prng_key: The seed of A and B.
        save_projection: Write A and B into checkpoints; without them a checkpoint is tiny and relies on the
            seed giving the same numbers on every machine.
        vera_dropout: Dropout on the way into A.
        d_initial: What d starts at.
        fan_in_fan_out: Known for transformers' `Conv1D`, whatever is set here.
        bias: Must be `"none"`; HF PEFT's other values aren't implemented.
        modules_to_save: Modules trained in full next to the adapter, such as a new head.
        init_weights: False starts d and b at random, which changes the model's output at once and is meant for
            tests.
        layers_to_transform: Indices of the layers to adapt.
        layers_pattern: Name of the module list that those indices count, such as `layers`.

    Raises:
        ConfigError: An option's value can't be used, or isn't implemented.
    """

    r: int = 256
    target_modules: list[str] | set[str] | str | None = None
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.VERA
        self.target_modules = as_name_set(self.target_modules)
        if not isinstance(self.r, int) or self.r <= 0:
            raise ConfigError(f"`r` should be a positive integer value but the value passed is {self.r!r}.")
        if self.bias != "none":
            raise ConfigError(
                f"VeraConfig(bias={self.bias!r}): manytune doesn't implement this option of HF PEFT. "
                "Leave it at its default, 'none'."
            )
        if not 0.0 <= self.vera_dropout < 1.0:
            raise ConfigError(f"`vera_dropout` is a probability below 1, found {self.vera_dropout!r}.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                "When `layers_pattern` is specified, `layers_to_transform` must also be specified."
            )


#: What files call A and B.
SHARED = ("vera_A", "vera_B")


class Projections(nn.Module):
    """One adapter's frozen A and B.

    Args:
        r: The rank.
        in_features: The largest input of any layer.
        out_features: The largest output of any layer.
        seed: Gives the same numbers as in HF PEFT.
    """

    def __init__(self, r: int, in_features: int, out_features: int, seed: int) -> None:
        super().__init__()
        _require_room(r, in_features + out_features)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        a = torch.empty(r, in_features, device="cpu")
        b = torch.empty(out_features, r, device="cpu")
        for matrix in (a, b):
            nn.init.kaiming_uniform_(matrix, generator=generator)
        self.vera_A: Tensor
        self.vera_B: Tensor
        self.register_buffer("vera_A", a, persistent=False)
        self.register_buffer("vera_B", b, persistent=False)


class Linear(AdapterLayer):
    """A linear layer with VeRA next to it.

    Attributes:
        vera_lambda_b, vera_lambda_d: b (out,) and d (r,) by adapter.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("vera_lambda_b", "vera_lambda_d")
    other_param_names: ClassVar[tuple[str, ...]] = ("vera_dropout", "projections")
    kind: ClassVar[str] = "vera"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self._transposed = isinstance(base_layer, Conv1D)
        self.in_features, self.out_features = linear_sizes(base_layer)
        self.vera_lambda_b = nn.ParameterDict()
        self.vera_lambda_d = nn.ParameterDict()
        self.vera_dropout = nn.ModuleDict()
        # Not children: one pair belongs to all layers, and to the tuner.
        self.__dict__["projections"] = {}

    projections: dict[str, Projections]

    def add_adapter(self, adapter_name: str, config: VeraConfig, projections: Projections) -> None:
        """Add one adapter: d constant and b zero, or both from N(0, 1)."""
        start = torch.full((config.r,), config.d_initial) if config.init_weights else torch.randn(config.r)
        end = torch.zeros(self.out_features) if config.init_weights else torch.randn(self.out_features)
        self.vera_lambda_d[adapter_name] = nn.Parameter(start)
        self.vera_lambda_b[adapter_name] = nn.Parameter(end)
        dropout = nn.Dropout(config.vera_dropout) if config.vera_dropout else nn.Identity()
        self.vera_dropout[adapter_name] = dropout
        self.projections[adapter_name] = projections

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`."""
        if adapter_name not in self.vera_lambda_b:
            return {}
        return {name: getattr(self, name)[adapter_name] for name in self.adapter_layer_names}

    def _parts(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        d, b = self.vera_lambda_d[adapter_name], self.vera_lambda_b[adapter_name]
        shared = self.projections[adapter_name]
        a = shared.vera_A[:, : self.in_features].to(d.device, d.dtype)
        return a, d, shared.vera_B[: self.out_features].to(d.device, d.dtype), b

    @classmethod
    def terms(
        cls, base: BaseLayer, tensors: Mapping[str, Tensor], config: VeraConfig, scaling: float
    ) -> Terms:
        """See `AdapterLayer.terms`: D = A and U = diag(b) B diag(d), so that all layers share one A.

        `tensors` holds A and B, too.
        """
        base.require_linear()
        base.require_tensors(tensors, (*cls.adapter_layer_names, *SHARED))
        b, d, a, b_matrix = (tensors[name] for name in (*cls.adapter_layer_names, *SHARED))
        base.require_shape("vera_lambda_b", b, (base.outputs,))
        base.require_shape("vera_lambda_d", d, (len(a),))
        down = a[:, : base.inputs].to(d.device, d.dtype)
        up = b[:, None] * b_matrix[: base.outputs].to(d.device, d.dtype) * d
        return Terms(updates={base.path: Update(down, up)})

    def live_terms(self, base: BaseLayer, adapter_name: str, config: VeraConfig) -> Terms:
        """See `AdapterLayer.live_terms`."""
        shared = dict(self.projections[adapter_name].named_buffers())
        tensors = {name: parameter.detach() for name, parameter in self.tensors(adapter_name).items()}
        return self.terms(base, {**tensors, **shared}, config, 1.0)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW = diag(b) B diag(d) A: (out, in), or (in, out) for `Conv1D`."""
        a, d, b_matrix, b = self._parts(adapter_name)
        delta: Tensor = (b.unsqueeze(1) * b_matrix) @ (d.unsqueeze(1) * a)
        return delta.t() if self._transposed else delta

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """W + Σ ΔW, summed in float32 at least and rounded once."""
        weight = self.base_layer.get_parameter("weight")
        return {"weight": added(weight, map(self.get_delta_weight, adapter_names), weight.dtype)}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its active adapters; exactly the base layer if there are none.

        Args:
            x: (..., in).
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            (..., out), in the base layer's dtype.
        """
        result: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in self.live_adapters():
            a, d, b_matrix, b = self._parts(name)
            low = self.vera_dropout[name](x.to(d.dtype)) @ a.t()  # (..., r)
            result = result + b * ((d * low) @ b_matrix.t())
        return result.to(dtype)


class VeraModel(LayerTuner):
    """VeRA attached to a model; see `VeraConfig`."""

    prefix: ClassVar[str] = "vera_lambda_"
    # A and B are next to the model, not in it.
    file_prefix: ClassVar[str] = "base_model."
    parameter_prefix = "model."
    no_sum: ClassVar[str | None] = (
        "the vectors of two adapters don't add up to those of one that does what both do"
    )
    layer_class = Linear

    def select(self, config: VeraConfig) -> list[tuple[str, nn.Module]]:
        """See `LayerTuner.select`."""
        every_linear = is_all_linear(config.target_modules)
        given = expand_targets(self.model, config, ATTENTION_PROJECTIONS)
        chosen = select(self.model, Selection.of(config, config.target_modules or (), given=given))
        if every_linear:
            warn_of_left_frozen(self.model, config)
        for path, module in chosen:
            if not isinstance(base_of(module), (nn.Linear, Conv1D)):
                raise ConfigError(
                    f"Target module {path} ({type(base_of(module)).__name__}) is not supported. VeRA goes next to "
                    "torch.nn.Linear and transformers' Conv1D. Name layers of these kinds in target_modules."
                )
        config.fan_in_fan_out = any(isinstance(base_of(module), Conv1D) for _, module in chosen)
        widths = [linear_sizes(base_of(module)) for _, module in chosen]
        self.__dict__["_largest"] = (max(w[0] for w in widths), max(w[1] for w in widths))
        return chosen

    def wrap(self, path: str, module: nn.Module, config: VeraConfig) -> AdapterLayer:
        """See `LayerTuner.wrap`."""
        return Linear(module)

    def add_to_layer(self, layer: AdapterLayer, path: str, adapter_name: str, config: VeraConfig) -> None:
        """See `LayerTuner.add_to_layer`."""
        assert isinstance(layer, Linear)
        if "vera_projections" not in self._modules:
            self.vera_projections = nn.ModuleDict()
        if adapter_name not in self.vera_projections:
            pair = Projections(config.r, *self._largest, config.projection_prng_key)
            self.vera_projections[adapter_name] = pair.to(layer.weight.device)
        shared = self.vera_projections[adapter_name]
        assert isinstance(shared, Projections)
        layer.add_adapter(adapter_name, config, shared)

    _largest: tuple[int, int]

    def add_adapter(self, adapter_name: str, config: Any, **options: Any) -> None:
        """See `Tuner.add_adapter`."""
        try:
            super().add_adapter(adapter_name, config, **options)
        except BaseException:
            if adapter_name not in self.peft_config:
                self._forget(adapter_name)
            raise

    def delete_adapter(self, adapter_name: str) -> None:
        """See `Tuner.delete_adapter`."""
        super().delete_adapter(adapter_name)
        self._forget(adapter_name)

    def _forget(self, adapter_name: str) -> None:
        if "vera_projections" in self._modules and adapter_name in self.vera_projections:
            del self.vera_projections[adapter_name]

    def _shared(self, adapter_name: str) -> dict[str, Tensor]:
        return dict(self.vera_projections[adapter_name].named_buffers())

    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """See `Tuner.state`; A and B are part of it with `save_projection`."""
        own = {f"model.{key}": tensor for key, tensor in super().state(adapter_name).items()}
        saves = getattr(self.peft_config[adapter_name], "save_projection", True)
        return {**own, **(self._shared(adapter_name) if saves else {})}

    @classmethod
    def terms_over(cls, base: BaseLayers, config: VeraConfig, tensors: Mapping[str, Tensor]) -> Terms:
        """See `LayerTuner.terms_over`; A and B are the file's, or drawn once more from the seed if it has none."""
        shared = {name: tensor for key, tensor in tensors.items() if (name := _shared_name(key))}
        layers, others = by_layer(
            {n: t for n, t in tensors.items() if not _shared_name(n)}, Linear.adapter_layer_names
        )
        found = {path: base.at(path) for path in layers}
        for layer in found.values():
            layer.require_linear()
        inputs = max((layer.inputs for layer in found.values()), default=1)
        outputs = max((layer.outputs for layer in found.values()), default=1)
        _require_room(config.r, sum(layer.outputs for layer in found.values()))
        if not shared:
            shared = dict(Projections(config.r, inputs, outputs, config.projection_prng_key).named_buffers())
        for name, shape in zip(SHARED, ((config.r, inputs), (outputs, config.r)), strict=True):
            if name not in shared:
                raise TermsError(
                    f"expected {' and '.join(SHARED)} in the file, or neither; {name} is missing."
                )
            require_shape("the projections that all layers share", name, shared[name], shape)
        parts = [Linear.terms(found[path], {**layers[path], **shared}, config, 1.0) for path in layers]
        return joined([*parts, saved_terms(base, config, others)])

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `Tuner.memory_name`."""
        if key in SHARED:
            return f"vera_projections.{adapter_name}.{key}"
        return f"model.{super().memory_name(adapter_name, key.removeprefix('model.'))}"

    def state_within(self, adapter_name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Tuner.state_within`; A and B never train, and are in no state dict."""
        shared = {self.memory_name(adapter_name, key): t for key, t in self._shared(adapter_name).items()}
        return super().state_within(adapter_name, {**shared, **state_dict})

    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """See `Tuner.load_state`; A and B are read wherever a checkpoint has them."""
        saves = getattr(self.peft_config[adapter_name], "save_projection", True)
        return fill_state(
            adapter_name,
            {**self.state(adapter_name), **self._shared(adapter_name)},
            tensors,
            optional=() if saves else SHARED,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )


def _shared_name(key: str) -> str:
    """`vera_A` or `vera_B` if a name in a file is theirs, else nothing."""
    name = key.removeprefix(VeraModel.file_prefix)
    return name if name in SHARED else ""


def _require_room(rank: int, numbers: int) -> None:
    """Refuse a rank of which an adapter's file says little: it has a number where the matrices have a row.

    Raises:
        OversizedAdapterError: So many float32 numbers of each rank would take more than half of the free memory.
    """
    free, needed = free_memory(), rank * numbers * 4
    if free is not None and needed > free // 2:
        raise OversizedAdapterError(
            f"r={rank:,}: its matrices would take {needed / 2**20:,.0f} MiB; one adapter may take half of the free "
            f"memory, {free / 2**21:,.0f} MiB. Train one of a smaller r."
        )


register(Method("vera", PeftType.VERA, VeraConfig, VeraModel, in_peft=True, learning_rate=1e-2))
