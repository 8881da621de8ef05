"""AdaLoRA's part in the training loop: its penalty, and sharing out the ranks after every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from manytune.errors import RunError
from manytune.methods.adalora.model import AdaLoraModel


def rank_allocation(model: nn.Module) -> list[TrainerCallback]:
    """The callback that a model with AdaLoRA attached trains with; none for any other."""
    tuner = next((module for module in model.modules() if isinstance(module, AdaLoraModel)), None)
    return [] if tuner is None else [RankAllocation(tuner)]


class RankAllocation(TrainerCallback):
    """Calls `update_and_allocate` after every optimizer step.

    Steps count from 1, so that with `tfinal` 0 the last cut is at the last step. The averages that the choice rests on
    are kept with the optimizer's of the same parameters; checkpoints hold them with these.

    Args:
        tuner: AdaLoRA, attached to the model that is trained.
    """

    def __init__(self, tuner: AdaLoraModel) -> None:
        self._tuner = tuner

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Compare the schedule with the run's steps; take up a resumed run's averages.

        Raises:
            RunError: The training ends before the last cut.
        """
        if self._tuner.last_cut > state.max_steps:
            raise RunError(
                f"AdaLoRA's last cut is at step {self._tuner.last_cut} (total_step less tfinal) and the training has "
                f"{state.max_steps} steps, so the ranks would never come down to target_r. Set method.total_step to "
                f"{state.max_steps}."
            )
        if state.global_step:
            self._tuner.load_allocation_state(optimizer.state)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin the step's gradient with the penalty's; the reported loss stays the model's alone."""
        penalty = self._tuner.orthogonality_penalty()
        if penalty is not None:
            torch.autograd.backward(penalty)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Share out the ranks anew."""
        self._tuner.update_and_allocate(state.global_step + 1)
        for parameter, tensors in self._tuner.allocation_state().items():
            # A state of our own making alone would keep the optimizer from beginning its own.
            if optimizer.state.get(parameter):
                optimizer.state[parameter].update(tensors)
