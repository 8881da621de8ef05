"""Prompt tuning's sizes; see `PromptTuningConfig`."""

from __future__ import annotations

from typing import Literal

from manytune.methods.tuners.sizes import Count, MethodSizes, ModelSizes, Trained, register_sizes


class PromptTuningSizes(MethodSizes):
    """An embedding for each virtual token."""

    name: Literal["prompt-tuning"] = "prompt-tuning"
    """The method."""
    num_virtual_tokens: Count = 20
    """How many virtual tokens are trained."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        parameters = self.num_virtual_tokens * model.hidden
        return Trained(
            label=f"prompt tuning, {self.num_virtual_tokens} tokens",
            parameters=parameters,
            kept=parameters,
            other_numbers=parameters,
            input_tokens=self.num_virtual_tokens,
        )


register_sizes(PromptTuningSizes)
