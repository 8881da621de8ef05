"""What can be trained: one file or folder a method, the registry, and the options that all methods share.

`tuners/` is what methods are made of, `checkpoint/` their files, `arithmetic/` sums of adapters.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

#: Modules and rooms of this folder that aren't methods.
_NOT_METHODS = {"config", "outline", "registry", "tuners", "checkpoint", "arithmetic"}


@cache
def load_methods() -> None:
    """Import every method of this folder, each of which registers itself."""
    for module in method_modules():
        import_module(module)


def method_modules() -> list[str]:
    """The modules of this folder in which methods register themselves; a folder's method is in its `model.py`."""
    return [
        f"{__name__}.{module.name}.model" if module.ispkg else f"{__name__}.{module.name}"
        for module in iter_modules(__path__)
        if module.name not in _NOT_METHODS
    ]
