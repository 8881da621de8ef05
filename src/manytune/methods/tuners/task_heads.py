"""Heads that a task's model classes put on a base: new for each task, so they train in full and are saved."""

from __future__ import annotations

from torch import nn

from manytune.methods.config import TaskType
from manytune.methods.tuners.names import ends_in
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper

#: Names that HF PEFT trains and saves for a task.
TASK_HEADS: dict[str, tuple[str, ...]] = {
    TaskType.SEQ_CLS: ("classifier", "score"),
    TaskType.TOKEN_CLS: ("classifier", "score"),
    TaskType.QUESTION_ANS: ("qa_outputs",),
}


def head_names(model: nn.Module, task_type: str | None) -> list[str]:
    """What has to be trained in full for a task: the usual names, and all parts of the model that aren't its base's.

    transformers' classes hold the pretrained base under `base_model_prefix`, and next to it what is new: BART's and
    T5's `classification_head`, XLNet's `logits_proj`. The usual `classifier` names DistilBERT's `pre_classifier` as
    well; see `saved_targets.py`.

    Args:
        model: The model, with or without adapters.
        task_type: The task; tasks without a head of their own have none.
    """
    usual = TASK_HEADS.get(task_type or "", ())
    return [*usual, *(part for part in new_parts(model) if not ends_in(part, usual))] if usual else []


def new_parts(model: nn.Module) -> list[str]:
    """Names of a model's own parts next to its pretrained base; none if it doesn't say where the base is."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or prefix not in model._modules:
        return []
    return [
        name
        for name, module in model.named_children()
        if name != prefix and next(module.parameters(), None) is not None
    ]


def untrained_parts(model: nn.Module, saved: list[str]) -> list[str]:
    """Parts next to the base that its checkpoint had no values for, and that an adapter doesn't bring.

    Args:
        model: The model as `from_pretrained` gave it.
        saved: Names of the modules that the adapter brings.
    """
    loaded = {name for name, parameter in model.named_parameters() if _from_checkpoint(parameter)}
    if not loaded:
        return []  # made from a configuration: nothing says which values were trained
    return [
        name
        for name in new_parts(model)
        if not ends_in(name, saved)
        and not isinstance(model._modules[name], ModulesToSaveWrapper)
        and not any(one.startswith(f"{name}.") for one in loaded)
    ]


def _from_checkpoint(parameter: nn.Parameter) -> bool:
    # transformers' own mark of values that a checkpoint brought.
    return bool(getattr(parameter, "_is_hf_initialized", False))
