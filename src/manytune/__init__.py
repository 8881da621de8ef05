"""One frozen base model, many small fine-tunes.

The names in `__all__` are the public ones. Those that need a model library are imported from their modules
when they are first used, so that `import manytune` itself stays light. Names that HF PEFT has too mean the
same here.
"""

from __future__ import annotations

from importlib import import_module

from manytune.errors import (
    AdapterError,
    BaseMismatchError,
    CheckpointError,
    ConfigError,
    DataError,
    DataWarning,
    ManytuneError,
    NoMatchingPeftModuleError,
    PeftError,
    PeftWarning,
    RecipeError,
    RunError,
    StoreError,
    TemplateError,
)

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "BaseMismatchError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "ManytuneError",
    "NoMatchingPeftModuleError",
    "PeftError",
    "PeftWarning",
    "RecipeError",
    "RunError",
    "StoreError",
    "TemplateError",
]

# Where each name that isn't imported above comes from.
_LAZY: dict[str, str] = {}


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first used (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
