"""P-tuning's sizes; see `PromptEncoderConfig`."""

from __future__ import annotations

from typing import Literal

from manytune.methods.tuners.sizes import Count, MethodSizes, ModelSizes, Trained, register_sizes


class PTuningSizes(MethodSizes):
    """An embedding for each virtual token, and the MLP that trains with them and isn't kept."""

    name: Literal["p-tuning"] = "p-tuning"
    """The method."""
    num_virtual_tokens: Count = 20
    """How many virtual tokens are trained."""
    encoder_hidden_size: Count | None = None
    """Hidden size of the MLP; null for that of an embedding."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        tokens, width = self.num_virtual_tokens, model.hidden
        inner = self.encoder_hidden_size or width
        network = (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
        return Trained(
            label=f"P-tuning, {tokens} tokens",
            parameters=tokens * width + network,
            kept=tokens * width,
            other_numbers=tokens * width,
            input_tokens=tokens,
        )


register_sizes(PTuningSizes)
