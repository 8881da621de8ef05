"""LoRA on `torch.nn.MultiheadAttention`, which multiplies by its weights without calling the layers that hold them.

So the update is added to the weights for each call, and gradients reach A and B through the sum. The projection
of queries, keys and values together has its adapters here; the output projection, which is a linear layer of its
own, has them in `base_layer.out_proj`.

Each update is added once. HF PEFT 0.21.2 adds that of the output projection twice; to use a checkpoint trained there,
double its `out_proj.lora_B`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.init import initialise, refuse_beyond_linear
from manytune.methods.lora.layer import LoraLayer
from manytune.methods.lora.linear import Linear
from manytune.methods.tuners.base_layers import AsksBase
from manytune.methods.tuners.targets import base_of

#: Where the output projection is, seen from the attention layer with adapters.
OUTPUT = "base_layer.out_proj"


class MultiheadAttention(AsksBase, LoraLayer):
    """Attention with W_in + Σ s·BA and W_out + Σ s·BA over the active adapters.

    Shapes: W_in is (3 · dim, dim), so B is (3 · dim, r) and A is (r, dim); W_out is (dim, dim).

    Args:
        base_layer: The attention; keys and values must have the queries' size.

    Raises:
        ConfigError: They haven't.
    """

    weight_name: ClassVar[str] = "in_proj_weight"
    base_layer: nn.MultiheadAttention

    def __init__(self, base_layer: nn.MultiheadAttention) -> None:
        super().__init__(base_layer)
        if not base_layer._qkv_same_embed_dim:
            raise ConfigError(
                "LoRA next to torch.nn.MultiheadAttention needs kdim and vdim to be the embed_dim "
                f"{base_layer.embed_dim}, found {base_layer.kdim} and {base_layer.vdim}."
            )
        self.in_features = base_layer.embed_dim
        self.out_features = 3 * base_layer.embed_dim

    @property
    def weight(self) -> Tensor:
        """The joint weight of queries, keys and values."""
        return self.base_layer.in_proj_weight

    @property
    def bias(self) -> Tensor | None:
        """Its bias."""
        return self.base_layer.in_proj_bias

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # In inference, torch's transformer layers skip their attention's forward and take its weights if this holds.
        return not self.live_adapters()

    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """A (r × dim) and B (3·dim × r) as linear modules without bias."""
        for option in ("lora_dropout", "lora_bias", "use_dora"):
            if getattr(config, option):
                raise ConfigError(
                    f"{option}={getattr(config, option)!r} is not supported for torch.nn.MultiheadAttention: the "
                    f"update is added to its weight. Leave {option} at its default, or the layer out of target_modules."
                )
        refuse_beyond_linear(config.init_lora_weights, "MultiheadAttention")
        r = self.r[adapter_name]
        self.lora_A[adapter_name] = nn.Linear(self.in_features, r, bias=False)
        self.lora_B[adapter_name] = nn.Linear(r, self.out_features, bias=False)
        initialise(self.lora_A[adapter_name], self.lora_B[adapter_name], r=r, init=config.init_lora_weights)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW_in = s · BA: (3 · dim, dim)."""
        a = self.lora_A[adapter_name].get_parameter("weight")
        b = self.lora_B[adapter_name].get_parameter("weight")
        wide = torch.promote_types(a.dtype, torch.float32)
        return (b.to(wide) @ a.to(wide)) * self.scaling[adapter_name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attention with the active adapters; exactly the base layer if there are none.

        Args:
            *args: Passed to the base layer: query, key and value.
            **kwargs: Passed to the base layer.

        Returns:
            What the base layer gives: the output, and the attention's weights or None.
        """
        weights: dict[str, Tensor] = {}
        output = self.base_layer.out_proj
        carriers: list[tuple[str, LoraLayer]] = [("in_proj_weight", self)]
        if isinstance(output, Linear):
            carriers.append(("out_proj.base_layer.weight", output))
        for key, layer in carriers:
            deltas = [layer.get_delta_weight(name) for name in layer.live_adapters()]
            if deltas:
                weight = layer.get_base_layer().get_parameter(layer.weight_name)
                weights[key] = weight + sum(deltas[1:], deltas[0]).to(weight.dtype)
        if not weights:
            return self.base_layer(*args, **kwargs)
        return functional_call(self.base_layer, weights, args, kwargs)


def with_output_projections(
    model: nn.Module, chosen: list[tuple[str, nn.Module]]
) -> list[tuple[str, nn.Module]]:
    """Attention that is adapted has its output projection adapted too, which alone it never calls.

    Args:
        model: The model.
        chosen: The targeted modules, by path.

    Raises:
        ConfigError: An output projection is targeted by itself.
    """
    parents = {path.rpartition(".")[0] for path, _ in chosen}
    concerned = [*(base_of(module) for _, module in chosen), *map(model.get_submodule, parents)]
    if not any(isinstance(module, nn.MultiheadAttention) for module in concerned):
        return chosen
    result = []
    for path, module in chosen:
        parent = model.get_submodule(path.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise ConfigError(
                f"Target module {path}: torch.nn.MultiheadAttention never calls it, so an adapter there would do "
                f"nothing. Target the attention itself, {path.rpartition('.')[0]}; its out_proj comes along."
            )
        result.append((path, module))
        attention = base_of(module)
        if isinstance(attention, nn.MultiheadAttention):
            result.append((f"{path}.{OUTPUT}", attention.out_proj))
    return result
