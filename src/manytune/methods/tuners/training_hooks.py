"""What a method may do in the course of a training; the trainer calls it, whatever the method is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class TrainingHooks(Protocol):
    """A method's part in one training. Steps count from 1."""

    def plan_steps(self, steps: int) -> None:
        """Take in how many steps the training has; called before the first.

        Raises:
            ConfigError: The method can't train for so many; says which option to change.
        """

    def penalty(self) -> Tensor | None:
        """What is added to the loss, a scalar; called once a step, before its first forward pass. None for nothing."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step, while the gradients are there."""

    def state(self) -> Mapping[nn.Parameter, Mapping[str, Tensor]]:
        """What `after_step` has to remember; checkpoints keep it with the optimizer's state of the same parameter."""

    def load_state(self, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Continue from what `state` gave, among the optimizer's entries."""
