"""A method's part in the training loop, if it has one: a penalty on the loss, and what it does after every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.training_hooks import TrainingHooks


def method_callbacks(model: nn.Module, *, total_steps: int) -> list[TrainerCallback]:
    """The callbacks of the methods attached to a model, which learn here how many steps the training has.

    Raises:
        ConfigError: A method's options don't go with so many steps.
    """
    tuners = [module for module in model.modules() if isinstance(module, Tuner)]
    found = [hooks for tuner in tuners if (hooks := tuner.training_hooks()) is not None]
    for hooks in found:
        hooks.begin_training(total_steps)
    return [MethodCallback(hooks) for hooks in found]


class MethodCallback(TrainerCallback):
    """Makes a method's calls at every optimizer step.

    What the method keeps from step to step is kept with the optimizer's state of the same parameters, so checkpoints
    hold it with that.

    Args:
        hooks: The method's, attached to the model that is trained.
    """

    def __init__(self, hooks: TrainingHooks) -> None:
        self._hooks = hooks

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Give the method of a resumed run what it kept."""
        if state.global_step:
            self._hooks.load_step_state(optimizer.state)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin the step's gradient with the penalty's; the reported loss stays the model's alone."""
        penalty = self._hooks.penalty()
        if penalty is not None:
            torch.autograd.backward(penalty)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, optimizer: Any = None, **__: Any
    ) -> None:
        """Let the method act on the step, and keep what it needs for the next."""
        self._hooks.after_step(state.global_step + 1)
        for parameter, tensors in self._hooks.step_state().items():
            # A state of our own making alone would keep the optimizer from beginning its own.
            if optimizer.state.get(parameter):
                optimizer.state[parameter].update(tensors)
