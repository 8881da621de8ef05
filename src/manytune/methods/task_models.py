"""`PeftModelFor…`: a model with adapters, with the call signature of its task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from manytune.methods.config import TaskType
from manytune.methods.model import PeftModel


class PeftModelForCausalLM(PeftModel):
    """A decoder-only language model with adapters."""

    # The parameters are spelled out because trainers read a model's signature to see which columns it takes.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base with the adapters in use.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for tokens and 0 for padding.
            inputs_embeds: (batch, length, dim), instead of ids.
            labels: (batch, length); -100 marks positions without loss.
            **kwargs: Passed to the base.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
        }
        return super().forward(**{key: value for key, value in given.items() if value is not None}, **kwargs)


_CLASSES: dict[str, type[PeftModel]] = {TaskType.CAUSAL_LM: PeftModelForCausalLM}


def class_for(task_type: str | None) -> type[PeftModel]:
    """The class that wraps a model for a task; `PeftModel` itself for none, or for one without a class of its own."""
    return _CLASSES.get(task_type or "", PeftModel)
