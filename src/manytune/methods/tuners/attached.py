"""Whether a model has adapters already."""

from __future__ import annotations

from torch import nn

from manytune.errors import AdapterError

#: The attribute of a model that says that a method is attached to it, with the name of its first adapter.
ATTACHED = "_manytune_attached"


def refuse_attached(model: nn.Module) -> None:
    """Refuse a base that has adapters: a second model around it would run both.

    Raises:
        AdapterError: It has.
    """
    if ATTACHED in model.__dict__:
        raise AdapterError(
            f"The base has adapters already ({model.__dict__[ATTACHED]!r}), and a second model "
            "around it would run both at once. Add this one with add_adapter() or load_adapter() to the model that has "
            "them, call its unload() first, or load the base again."
        )
