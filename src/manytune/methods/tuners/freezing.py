"""Freezing a base while adapters are attached to it, and letting it train again afterwards."""

from __future__ import annotations

from torch import nn

from manytune.methods.tuners.attached import ATTACHED
from manytune.methods.tuners.walk import every_module


class FrozenBase:
    """Which of a model's parameters trained before an adapter was attached.

    They are kept by module and name: a reference to a parameter would keep the whole weight in memory that FSDP2 has
    sharded since.

    Args:
        model: The model; nothing in it is changed yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trained = [
            (module, name)
            for module in every_module(model)
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]

    def freeze(self) -> None:
        """Let none of them train."""
        self._let_train(trains=False)

    def thaw(self) -> None:
        """Let those that trained before train again; nothing is attached any more."""
        self._model.__dict__.pop(ATTACHED, None)
        self._let_train(trains=True)

    def _let_train(self, *, trains: bool) -> None:
        for module, name in self._trained:
            parameter = module._parameters.get(name)
            if parameter is not None:
                parameter.requires_grad_(trains)
