"""Prefix tuning's sizes; see `PrefixTuningConfig`."""

from __future__ import annotations

from typing import ClassVar, Literal

from manytune.methods.tuners.sizes import Count, MethodSizes, ModelSizes, Trained, register_sizes


class PrefixTuningSizes(MethodSizes):
    """Keys and values of each virtual token in every layer, and the network that may compute them in training."""

    no_checkpointing: ClassVar[str | None] = (
        "recomputed layers run without the cache that holds a prefix; train prefix-tuning without it."
    )

    name: Literal["prefix-tuning"] = "prefix-tuning"
    """The method."""
    num_virtual_tokens: Count = 20
    """How many virtual tokens are trained."""
    prefix_projection: bool = False
    """Whether the prefix comes from a network while it trains."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        tokens, size = self.num_virtual_tokens, model.key_width
        width = 2 * model.layers * size
        network = tokens * size + (size + 1) * size + (size + 1) * width
        return Trained(
            label=f"prefix tuning, {tokens} tokens",
            parameters=network if self.prefix_projection else tokens * width,
            kept=tokens * width,
            other_numbers=tokens * width,
            prefix_tokens=tokens,
        )


register_sizes(PrefixTuningSizes)
