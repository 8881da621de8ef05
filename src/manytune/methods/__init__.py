"""What can be trained: one file or folder a method, the registry, and the options that all methods share.

`tuners/` is what methods are made of, `checkpoint/` their files, `arithmetic/` sums of adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import ModuleInfo, iter_modules

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
        for module in _methods()
    ]


@cache
def load_sizes() -> None:
    """Import the `sizes.py` of every method that has one, each of which registers itself; no torch is imported."""
    for module in _methods():
        if module.ispkg and Path(__file__).with_name(module.name).joinpath("sizes.py").is_file():
            import_module(f"{__name__}.{module.name}.sizes")


def _methods() -> Iterator[ModuleInfo]:
    return (module for module in iter_modules(__path__) if module.name not in _NOT_METHODS)
