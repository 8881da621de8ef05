"""AdaLoRA next to a linear layer, and next to a convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.methods.adalora.config import AdaLoraConfig, svd_scaling
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayer, linear_sizes
from manytune.methods.tuners.merging import added
from manytune.methods.tuners.terms import Terms, Update

#: Standard deviation of A and B at first.
_SPREAD = 0.02


class SVDLinear(AdapterLayer):
    """y = W x + s · B diag(E) A D(x), with s = alpha / (init_r + 1e-5).

    s stays what it was at first when ranks are cut, so that cutting a triplet whose E is zero changes nothing.

    Args:
        base_layer: `torch.nn.Linear`, or transformers' `Conv1D`, whose weight is stored transposed.

    Attributes:
        lora_A, lora_E, lora_B: A (r, in), E (r, 1) and B (out, r) by adapter.
        lora_dropout: D by adapter.
        r, ranknum, lora_alpha, scaling: The rank, the rank at first, and twice alpha, as in HF PEFT; by adapter.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B", "lora_E")
    other_param_names: ClassVar[tuple[str, ...]] = ("r", "lora_alpha", "scaling", "lora_dropout", "ranknum")
    kind: ClassVar[str] = "adalora"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self._transposed = isinstance(base_layer, Conv1D)
        self.in_features, self.out_features = widths(base_layer)
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.ranknum: dict[str, float] = {}
        self.lora_dropout = nn.ModuleDict()
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.lora_E = nn.ParameterDict()

    def add_adapter(self, adapter_name: str, config: AdaLoraConfig, *, rank: int) -> None:
        """Add one adapter: E zero, A and B from N(0, 0.02²), or all three from N(0, 1).

        Args:
            adapter_name: Its name.
            config: Its options.
            rank: Its present rank at this layer: `init_r`, or what is left of it in a file. May be 0.
        """
        self.r[adapter_name] = rank
        self.ranknum[adapter_name] = float(config.init_r)
        self.lora_alpha[adapter_name] = config.lora_alpha
        self.scaling[adapter_name] = config.alpha
        self.lora_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        )
        # HF PEFT draws every number twice, and one for ranknum: with the same draws, a seed gives the same start.
        a, e, b, _ = (
            torch.randn(*shape)
            for shape in ((rank, self.in_features), (rank, 1), (self.out_features, rank), (1,))
        )
        if config.init_lora_weights:
            e.zero_()
            a.normal_(0.0, _SPREAD)
            b.normal_(0.0, _SPREAD)
        self.lora_A[adapter_name], self.lora_E[adapter_name] = nn.Parameter(a), nn.Parameter(e)
        self.lora_B[adapter_name] = nn.Parameter(b)

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`."""
        if adapter_name not in self.lora_A:
            return {}
        return {name: getattr(self, name)[adapter_name] for name in self.adapter_layer_names}

    @classmethod
    def terms(
        cls, base: BaseLayer, tensors: Mapping[str, Tensor], config: AdaLoraConfig, scaling: float
    ) -> Terms:
        """See `AdapterLayer.terms`: D = E ⊙ A and U = s · B, of the triplets whose E isn't zero."""
        base.require_linear()
        base.require_tensors(tensors, cls.adapter_layer_names)
        a, b, e = (tensors[name] for name in cls.adapter_layer_names)
        rank = len(e)
        base.require_shape("lora_A", a, (rank, base.inputs))
        base.require_shape("lora_B", b, (base.outputs, rank))
        base.require_shape("lora_E", e, (rank, 1))
        kept = e.flatten().nonzero().flatten()
        if not len(kept):
            return Terms()
        down, up = (a * e).index_select(0, kept), b if len(kept) == rank else b.index_select(1, kept)
        return Terms(updates={base.path: Update(down, up, scaling)})

    @torch.no_grad()
    def keep(self, adapter_name: str, kept: Sequence[bool]) -> None:
        """Forget the triplets that aren't kept; their parameters shrink."""
        for name, parameter in self.tensors(adapter_name).items():
            getattr(self, name)[adapter_name] = nn.Parameter(
                cut(name, parameter, kept), requires_grad=parameter.requires_grad
            )
        self.r[adapter_name] = sum(kept)

    def present_scaling(self, adapter_name: str) -> float:
        """See `AdapterLayer.present_scaling`."""
        return svd_scaling(self.scaling[adapter_name], self.ranknum[adapter_name])

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW = s · B diag(E) A, in the shape of the base layer's weight."""
        parts = self.tensors(adapter_name)
        wide = torch.promote_types(parts["lora_A"].dtype, torch.float32)
        a, e, b = (parts[name].to(wide) for name in ("lora_A", "lora_E", "lora_B"))
        delta: Tensor = b @ (a * e) * self.present_scaling(adapter_name)
        return self.as_weight(delta)

    def as_weight(self, delta: Tensor) -> Tensor:
        """ΔW (out, in) in the shape of the base layer's weight."""
        return delta.t() if self._transposed else delta

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """W + Σ ΔW, summed in float32 at least and rounded once."""
        weight = self.base_layer.get_parameter("weight")
        return {"weight": added(weight, map(self.get_delta_weight, adapter_names), weight.dtype)}

    def low(self, x: Tensor, a: Tensor) -> Tensor:
        """diag(E) A x: (..., r)."""
        return x @ a.t()

    def high(self, low: Tensor, b: Tensor) -> Tensor:
        """B on what `low` gives: (..., out)."""
        return low @ b.t()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its active adapters; exactly the base layer if there are none.

        Args:
            x: The base layer's input.
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            What the base layer returns, in its dtype.
        """
        result: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in self.live_adapters():
            a, e, b = self.lora_A[name], self.lora_E[name], self.lora_B[name]
            low = self.low(self.lora_dropout[name](x.to(a.dtype)), a * e)
            result = result + self.high(low, b) * self.present_scaling(name)
        return result.to(dtype)


class SVDConv2d(SVDLinear):
    """The same next to `torch.nn.Conv2d`: A (r, in · k · k) is a convolution to r channels, B (out, r) adds them up.

    Args:
        base_layer: A convolution without groups.
    """

    base_layer: nn.Conv2d

    def as_weight(self, delta: Tensor) -> Tensor:
        """ΔW, (out, in, k, k)."""
        return delta.view(self.base_layer.weight.shape)

    def low(self, x: Tensor, a: Tensor) -> Tensor:
        """diag(E) A * x: (batch, r, height, width)."""
        base = self.base_layer
        # A layer may have lost all of its rank, and a convolution to no channels is an error.
        if not len(a):
            return x.new_zeros(())
        result: Tensor = base._conv_forward(x, a.view(len(a), *base.weight.shape[1:]), None)
        return result

    def high(self, low: Tensor, b: Tensor) -> Tensor:
        """B on what `low` gives: (batch, out, height, width)."""
        return nn.functional.conv2d(low, b[:, :, None, None]) if b.shape[1] else low


def widths(layer: nn.Module) -> tuple[int, int]:
    """Columns of A and rows of B next to a layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.weight[0].numel(), layer.out_channels
    return linear_sizes(layer)


def cut(container: str, tensor: Tensor, kept: Sequence[bool]) -> Tensor:
    """The part of `lora_A`, `lora_E` or `lora_B` that belongs to the triplets kept; the tensor itself if it is cut."""
    dimension = 1 if container == "lora_B" else 0
    if tensor.shape[dimension] != len(kept):
        return tensor
    index = torch.tensor(kept, device=tensor.device).nonzero().flatten()
    return tensor.index_select(dimension, index)
