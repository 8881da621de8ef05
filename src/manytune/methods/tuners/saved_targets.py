"""Which modules `modules_to_save` names: all whose path ends in an entry, within a word, too, as in HF PEFT.

`"classifier"` names DistilBERT's `pre_classifier` as well, `"norm"` every `input_layernorm`: what HF PEFT trained is in
its files, and must find its place.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from manytune.methods.config import PeftConfig
from manytune.methods.tuners.names import ends_in
from manytune.methods.tuners.targets import candidates
from manytune.methods.tuners.task_heads import TASK_HEADS
from manytune.methods.tuners.unmatched import nearest, report


def saved_targets(model: nn.Module, config: Any) -> list[tuple[str, nn.Module]]:
    """The modules that a configuration trains in full, in the model's order, as (path, module).

    A module within another one that is named, too, is a part of that one's copy.

    Raises:
        UnmatchedError: An entry of `modules_to_save` matches nothing, and the options aren't a saved adapter's.
    """
    names = list(getattr(config, "modules_to_save", None) or ())
    refuse_unsaved(model, config)
    found: list[tuple[str, nn.Module]] = []
    for path, module in candidates(model) if names else ():
        inside = found and path.startswith(f"{found[-1][0]}.")
        if ends_in(path, names) and not inside:
            found.append((path, module))
    return found


def refuse_unsaved(model: nn.Module, config: PeftConfig, *, known: Collection[str] = ()) -> None:
    """Refuse entries of `modules_to_save` that match nothing; a task's usual heads needn't all be there.

    Args:
        model: The model.
        config: The options.
        known: Those entries that aren't modules of the model and do match something.

    Raises:
        UnmatchedError: An entry matches nothing, and the options aren't a saved adapter's.
    """
    names = list(getattr(config, "modules_to_save", None) or ())
    paths = [path for path, _ in candidates(model)] if names else []
    fine = {*TASK_HEADS.get(config.task_type or "", ()), *known}
    unmatched = [name for name in names if name not in fine and not any(ends_in(p, [name]) for p in paths)]
    if unmatched:
        report(
            f"modules_to_save names {unmatched}, which match no module of the model, so nothing would be trained or "
            f"saved for them. {nearest(unmatched, paths)}",
            saved=config.was_saved,
        )


def lies_in(name: str, modules: Collection[str]) -> bool:
    """Whether a parameter, by its name, belongs to a module that `modules_to_save` names."""
    parts = name.split(".")[:-1]
    return any(ends_in(".".join(parts[: i + 1]), modules) for i in range(len(parts)))
