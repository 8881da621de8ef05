"""What a method may want of the loop that trains it. Most want nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class TrainingHooks(Protocol):
    """Calls that a training loop makes to a method whose `Tuner.training_hooks` gives an object of this kind.

    Each mutates what trains, and nothing else.
    """

    def begin_training(self, total_steps: int) -> None:
        """Take in how many optimizer steps the training has, before the first of them.

        Raises:
            ConfigError: The method's options don't go with so many steps.
        """

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the loss of every optimizer step; None for none. Called before its gradients."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer moved the parameters, while the step's gradients are still there.

        Args:
            step: The number of the step, from 1.
        """

    def step_state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What the next step depends on, for a checkpoint: tensors of each parameter's shape, by any names."""

    def load_step_state(self, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Go on from what `step_state` gave; entries of other names belong to the optimizer."""
