"""Every error a user can cause, in one tree.

    ManytuneError
    ├── PeftError                        methods and adapters
    │   ├── ConfigError                  an option is wrong, or belongs to HF PEFT and isn't implemented here
    │   │   └── OversizedAdapterError    an adapter would take more memory while it runs than one may
    │   ├── NoMatchingPeftModuleError    a target names no module of the model
    │   ├── AdapterError                 an adapter's name is unknown, taken, or in the wrong state
    │   └── CheckpointError              a file, a key or a shape doesn't fit the model
    │       └── BaseMismatchError        the adapter was trained on another base
    ├── DataError                        rows and files
    │   └── TemplateError                a prompt template
    ├── RecipeError                      a recipe's keys and values
    ├── RunError                         a training run
    │   └── DivergedError                its loss or its gradients became NaN or Inf
    ├── RequestError                     a request to generate
    │   ├── ContextLengthError           it exceeds the model's positions, or the engine's memory
    │   └── GrammarError                 what its answer must look like isn't valid, isn't supported, or is too complex
    ├── ServeError                       a server can't start as asked
    ├── ShortMemoryError                 there isn't enough memory for something now
    └── StoreError                       adapters and bases on disk
        ├── UnknownAdapterError          a store has no adapter of this name or digest
        ├── NameTakenError               a name belongs to another adapter of the store
        ├── DamagedError                 a file isn't what was written, or can't be trusted
        ├── TargetExistsError            what is to be written exists already
        ├── WriteError                   the disk is full, read-only, or not the user's
        ├── LockedError                  another process is using a directory
        ├── UnreachableError             a store can't be reached now: its directory, disk, network or storage
        └── CacheFullError               an adapter exceeds the memory that is free now

    PeftWarning, DataWarning             warnings of the same origin

A message says what was expected, what was found, where, and what to do; what a program must distinguish has a
class of its own, so that no program has to read messages. The command line prints an error without a traceback;
anything that isn't a `ManytuneError` is a defect of manytune and keeps its traceback. The names `PeftError`,
`PeftWarning` and `NoMatchingPeftModuleError` are HF PEFT's, and each class also derives from the built-in error that
HF PEFT raises at that place, so that existing `except` clauses keep working.
"""

from __future__ import annotations


def reason_of(error: Exception) -> str:
    """Why something can't be read, without the system's number for it and without the path, which the message has."""
    return str(getattr(error, "strerror", None) or error)


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


class OversizedAdapterError(ConfigError):
    """Running an adapter would take more memory than one adapter may, whatever else runs."""


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
    """A training's loss or gradients became NaN or Inf; the same recipe would diverge again."""


class RequestError(ManytuneError, ValueError):
    """A request to the engine has an unusable value, or can never be run."""


class ContextLengthError(RequestError):
    """A prompt, with the tokens to generate, exceeds the model's positions or the engine's memory."""


class GrammarError(RequestError):
    """A JSON schema, regular expression or grammar for an answer isn't valid, isn't supported, or is too complex.

    Args:
        message: What was expected, what was found, what to do.
        where: The place, such as `schema.properties.name`; put before the message.
    """

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class ServeError(ManytuneError, RuntimeError):
    """A server can't start as it was asked to, or its file of keys can't be used."""


class ShortMemoryError(ManytuneError, MemoryError):
    """The free memory isn't enough for what was asked; it may be later, or with more memory."""


class StoreError(ManytuneError, OSError):
    """An adapter or a base on disk can't be read or written."""


class UnknownAdapterError(StoreError):
    """A store has no adapter of this name or digest, or several whose digests begin like this."""


class NameTakenError(StoreError):
    """A name belongs to another adapter of the store."""


class DamagedError(StoreError):
    """A file of an adapter is missing, changed, cut off, of a newer format, or a pickle: it must not be used."""


class TargetExistsError(StoreError, FileExistsError):
    """What is to be written exists already, and isn't replaced without being asked to."""


class WriteError(StoreError):
    """A file can't be written: the disk is full or read-only, or permission is missing; nothing of it remains."""


class LockedError(StoreError):
    """Another process is writing in a directory; it may be free later."""


class UnreachableError(StoreError):
    """A store can't be reached now: its directory has gone, or its disk, its network or the shared storage fails."""


class CacheFullError(StoreError):
    """An adapter exceeds the memory that adapters in use leave free; it may fit later."""


class PeftWarning(UserWarning):
    """Something about a method or an adapter that the user should know and may ignore."""


class DataWarning(UserWarning):
    """Something about the data that the user should know and may ignore."""
