"""Every error a user can cause, in one tree.

    ManytuneError
    ├── PeftError                        methods and adapters
    │   ├── ConfigError                  an option is wrong, or belongs to HF PEFT and isn't implemented here
    │   ├── NoMatchingPeftModuleError    a target names no module of the model
    │   ├── AdapterError                 an adapter's name is unknown, taken, or in the wrong state
    │   └── CheckpointError              a file, a key or a shape doesn't fit the model
    │       └── BaseMismatchError        the adapter was trained on another base
    ├── DataError                        rows and files
    │   └── TemplateError                a prompt template
    ├── RecipeError                      a recipe's keys and values
    ├── RunError                         a training run
    │   └── DivergedError                its loss or its gradient isn't finite
    ├── RequestError                     a request to generate
    ├── ServeError                       a server can't start as asked
    └── StoreError                       adapters on disk
        ├── CacheFullError               an adapter finds no room in memory now
        └── HeldError                    another process is writing there

    PeftWarning, DataWarning             warnings of the same origin

A message says what was expected, what was found, where, and what to do. The command line prints it without a traceback;
anything that isn't a `ManytuneError` is a defect of manytune and keeps its traceback. The names `PeftError`,
`PeftWarning` and `NoMatchingPeftModuleError` are HF PEFT's, and each class also derives from the built-in error that
HF PEFT raises at that place, so that existing `except` clauses keep working.
"""

from __future__ import annotations

from pathlib import Path


class ManytuneError(Exception):
    """Base of all errors that a user can cause and can mend."""


class PeftError(ManytuneError):
    """A method or an adapter can't do what was asked."""


class ConfigError(PeftError, ValueError):
    """An option of a method's configuration is wrong, or isn't implemented."""


class NoMatchingPeftModuleError(PeftError, ValueError):
    """A target names no module of the model."""


class AdapterError(PeftError, ValueError):
    """An adapter's name is unknown or taken, or the adapter is in the wrong state for the call."""


class CheckpointError(PeftError, ValueError):
    """A checkpoint's file, key or shape doesn't fit."""


class BaseMismatchError(CheckpointError):
    """An adapter was trained on a base other than the one it is being attached to."""


class DataError(ManytuneError, ValueError):
    """A file or a row can't be used.

    Args:
        message: What was expected, what was found, what to do.
        where: The place, such as `train.jsonl:17`; put before the message.
    """

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class TemplateError(DataError):
    """A prompt template can't be read or doesn't fit a row."""


class RecipeError(ManytuneError, ValueError):
    """A recipe has an unknown key or an unusable value."""


class RunError(ManytuneError, RuntimeError):
    """A training run can't start, continue or finish."""


class DivergedError(RunError):
    """A training's loss or gradient became NaN or Inf.

    Args:
        message: What was found, in which rows, what to do.
        step: The optimizer step, counted from 1.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step


class RequestError(ManytuneError, ValueError):
    """A request to the engine has an unusable value, or can never be run."""


class ServeError(ManytuneError, RuntimeError):
    """A server can't start as it was asked to, or its file of keys can't be used."""


class StoreError(ManytuneError, OSError):
    """An adapter or a base on disk can't be read or written."""


class CacheFullError(StoreError):
    """An adapter finds no room next to those in use; it may later."""


class HeldError(StoreError):
    """Another process holds a directory and is writing in it.

    Args:
        directory: The directory.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory}: another process is writing here. Wait for it, or stop it.")
        self.directory = directory


class PeftWarning(UserWarning):
    """Something about a method or an adapter that the user should know and may ignore."""


class DataWarning(UserWarning):
    """Something about the data that the user should know and may ignore."""
