"""Running layers of a model differently for the length of a block: the one place that does it.

torch calls a `forward` in a module's own `__dict__` in place of its class's. So another one is put there, and what was
there before comes back at the end of the block, whatever that was. Blocks may be nested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

_FORWARD = "forward"
_COMPILED = "_compiled_call_impl"  # what `Module.compile` leaves; called before `forward`
_KEYS = (_FORWARD, _COMPILED)


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules run these functions in place of their own forward, and without a compiled form of it.

    Layers that are compiled around such a module share one compiled form only if all of these modules got the same
    function, bound to each: `MethodType(function, module)`.

    Args:
        forwards: What each module calls with the arguments that it is called with.

    Mutates: the modules, until the block ends.
    """
    with _restored(forwards):
        for module, forward in forwards.items():
            attributes = module.__dict__
            attributes[_FORWARD] = forward
            if _COMPILED in attributes:
                attributes[_COMPILED] = None
        yield


@contextmanager
def own_forwards(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules run their class's forward, whatever was put in its place."""
    modules = list(modules)
    with _restored(modules):
        for module in modules:
            module.__dict__.pop(_FORWARD, None)
        yield


@contextmanager
def uncompiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules run without their compiled form; one that they get inside the block is gone at its end."""
    modules = list(modules)
    with _restored(modules):
        for module in modules:
            if _COMPILED in module.__dict__:
                module.__dict__[_COMPILED] = None
        yield


@contextmanager
def _restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back, at the end of the block, what decides how these modules run."""
    before = [
        (attributes := module.__dict__, {key: attributes[key] for key in _KEYS if key in attributes})
        for module in modules
    ]
    try:
        yield
    finally:
        for attributes, found in before:
            for key in _KEYS:
                attributes.pop(key, None)
            attributes.update(found)
