"""A method's own part in the training loop: a penalty, and what it does after every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from manytune.errors import ConfigError, RunError
from manytune.methods.tuners.training_hooks import TrainingHooks
from manytune.model.state_dicts import find_tuner


def method_callbacks(model: nn.Module, *, steps: int) -> list[TrainerCallback]:
    """The callbacks of a model whose method has a part of its own in the loop; none for any other.

    Args:
        model: With its method attached.
        steps: How many optimizer steps the training has, which the method learns here.

    Raises:
        RunError: The method can't train for so many steps.
    """
    tuner = find_tuner(model)
    found = () if tuner is None else tuner.training_hooks()
    try:
        for hooks in found:
            hooks.plan_steps(steps)
    except ConfigError as error:
        raise RunError(str(error)) from None
    return [MethodCallback(hooks) for hooks in found]


class MethodCallback(TrainerCallback):
    """Calls a method's hooks.

    Their state is kept with the optimizer's of the same parameters; checkpoints hold it with that.

    Args:
        hooks: Of the method that is attached to the model that is trained.
    """

    def __init__(self, hooks: TrainingHooks) -> None:
        self._hooks = hooks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, optimizer: Any = None, **__: Any
    ) -> None:
        """Give the method of a resumed run the state that it had."""
        if state.global_step:
            self._hooks.load_state(optimizer.state)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin the step's gradient with the penalty's; the reported loss stays the model's alone."""
        penalty = self._hooks.penalty()
        if penalty is not None:
            torch.autograd.backward(penalty)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, optimizer: Any = None, **__: Any
    ) -> None:
        """Let the method act on the step that was just taken."""
        self._hooks.after_step(state.global_step + 1)
        for parameter, tensors in self._hooks.state().items():
            # A state of our own making alone would keep the optimizer from initialising its own.
            if optimizer.state.get(parameter):
                optimizer.state[parameter].update(tensors)
