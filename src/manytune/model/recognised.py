"""How trainers recognise a model with adapters: they ask whether it is an object of HF PEFT's class.

transformers' Trainer, accelerate and TRL ask `isinstance(model, peft.PeftModel)` wherever adapters need other treatment
than whole models: to save and to load checkpoints, to find the base behind the adapters, to compute a reference. They
ask only where `peft` is installed.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Self

from torch import nn

from manytune.methods.tuners.adapter_layer import AdapterLayer


class RecognisedByTrainers(nn.Module):
    """A model that `isinstance(model, peft.PeftModel)` holds for, where a program has imported `peft`.

    `isinstance` asks an object for its `__class__` (as mock objects and proxies use, too), and here that is a subclass
    of the model's own class and of HF PEFT's of the same name. `type(model)` stays the model's own, so no method comes
    from HF PEFT. Nothing is imported for it, and HF PEFT may be imported before the model is made or afterwards.
    """

    @property
    def __class__(self) -> type[Self]:
        kind: Any = type(self)
        theirs = getattr(sys.modules.get("peft"), "PeftModel", None)
        found: type[Self] = kind if theirs is None else _both(kind, theirs)
        return found

    @__class__.setter
    def __class__(self, kind: type[Self]) -> None:
        # FSDP2 makes a subclass of what it reads here, and sets it.
        vars(object)["__class__"].__set__(self, kind)

    @property
    def _hf_peft_config_loaded(self) -> bool:
        """Whether a quantized base may be trained through its adapters; transformers' Trainer asks for it by this name.

        Where a program has imported `peft`, the Trainer goes by the class.
        """
        return getattr(sys.modules.get("peft"), "PeftModel", None) is None

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Picklers refuse what the standard function would make, an object whose `__class__` isn't its type.
        made: Any = object.__reduce_ex__(self, max(int(protocol), 2))
        return _blank, *made[1:]


def _blank(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


@cache
def _both(kind: Any, theirs: type) -> Any:
    """A class of both libraries, whose methods are those of `kind`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # TRL refuses to train an adapter in the output embeddings, which its losses would pass over.
    BaseTunerLayer.register(AdapterLayer)  # type: ignore[type-abstract]
    if issubclass(kind, theirs):
        return kind
    named_alike = getattr(sys.modules["peft"], kind.__name__, theirs)
    base = named_alike if issubclass(named_alike, theirs) else theirs
    return type(kind.__name__, (kind, base), {"__module__": kind.__module__, "__doc__": kind.__doc__})
