"""LoRA next to an embedding table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.layer import LoraLayer


class Embedding(LoraLayer):
    """y = E[i] + Σ s · A[:, i]ᵀ Bᵀ over the active adapters, with A (r × rows) and B (dim × r).

    Ways of starting that are made for linear layers (`"pissa"`, ...) have no meaning here; A starts at zero then.

    Args:
        base_layer: `torch.nn.Embedding` or a class derived from it. One with an `embed_scale` of its own,
            which multiplies what it looks up, has the update multiplied alike.
    """

    base_layer: nn.Embedding
    output_dim = 1

    def __init__(self, base_layer: nn.Embedding) -> None:
        super().__init__(base_layer)
        self.in_features = base_layer.num_embeddings
        self.out_features = base_layer.embedding_dim

    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """A zero and B from N(0, 1), so that BA = 0; both random with `init_lora_weights=False`."""
        if config.freeze_a:
            raise ConfigError(
                "freeze_a=True is not supported for Embedding: its A starts at zero, so nothing could be learned. "
                "Leave embeddings out of target_modules."
            )
        if config.lora_bias:
            raise ConfigError("lora_bias=True is not supported for Embedding: a look-up has no bias.")
        r = self.r[adapter_name]
        a, b = torch.randn(r, self.in_features), torch.randn(self.out_features, r)
        if config.init_lora_weights is not False:
            nn.init.zeros_(a)
            nn.init.normal_(b)
        self.lora_embedding_A[adapter_name] = nn.Parameter(a)
        self.lora_embedding_B[adapter_name] = nn.Parameter(b)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔE = s · (BA)ᵀ: (rows, dim)."""
        a, b = self.lora_embedding_A[adapter_name], self.lora_embedding_B[adapter_name]
        wide = torch.promote_types(a.dtype, torch.float32)
        delta: Tensor = (b.to(wide) @ a.to(wide)).t() * self.scaling[adapter_name]
        return delta

    def forward(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The embeddings of some ids with the active adapters' updates.

        Args:
            ids: (...), integers.
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            (..., dim), in the base layer's dtype.
        """
        base: Tensor = self.base_layer(ids, *args, **kwargs)
        result = base
        scale = getattr(self.base_layer, "embed_scale", None)
        for name in self.live_adapters():
            rows = functional.embedding(
                ids,
                self.lora_embedding_A[name].t(),
                padding_idx=self.base_layer.padding_idx,
                max_norm=self.base_layer.max_norm,
                norm_type=self.base_layer.norm_type,
                scale_grad_by_freq=self.base_layer.scale_grad_by_freq,
                sparse=self.base_layer.sparse,
            )  # (..., r)
            update = (rows @ self.lora_embedding_B[name].t()) * self.scaling[name]
            if scale is not None:
                update = update * scale
            if self.use_dora[name]:
                gains = self.gains(name, self.base_layer.weight)
                update = (gains - 1) * base + gains * update
            result = result + update
        return result.to(base.dtype)
