"""What an adapter must be before it reaches the engine, whoever has made it.

Its files are looked at before anything reads them, its tensors by name, shape and dtype before their values.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manytune.errors import ConfigError, StoreError
from manytune.methods.checkpoint.format import get_state
from manytune.methods.config import PeftConfig
from manytune.methods.prompt_tuning import PromptTuningConfig, PromptTuningInit
from manytune.methods.registry import method_of
from manytune.store.resident import ResidentAdapter

_MOST_FILES = 1000
_MOST_TEXT = 16 << 20  # bytes of a file that isn't tensors
_PIECE = 16384
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST_PATTERN = 1000
#: A repeated group or many repetitions can keep a regular expression busy for years.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPETITION = re.compile(r"[*+{]")
_MOST_REPETITIONS = 5
#: Options that hold texts, not expressions.
_TEXTS = {
    "auto_mapping",
    "base_model_name_or_path",
    "prompt_tuning_init_text",
    "revision",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}


def check_files(root: Path, directory: Path, *, most_bytes: int) -> None:
    """An adapter is what lies in its directory, the directory lies in the store, and nothing in it is out of measure.

    Args:
        root: The store.
        directory: The adapter's.
        most_bytes: That its tensors may have.

    Raises:
        StoreError: A link leads out, something is no plain file, or a file is too large to be read.
    """
    if not directory.resolve().is_relative_to(root.resolve()):
        raise StoreError(f"{directory}: this leads out of the store.")
    for count, path in enumerate((directory, *_below(directory))):
        kind = path.lstat()
        if stat.S_ISLNK(kind.st_mode):
            raise StoreError(f"{path}: a symbolic link can't be part of an adapter that is served.")
        if not stat.S_ISREG(kind.st_mode) and not stat.S_ISDIR(kind.st_mode):
            raise StoreError(f"{path}: expected a plain file.")
        most = most_bytes + _MOST_TEXT if path.suffix == ".safetensors" else _MOST_TEXT
        if stat.S_ISREG(kind.st_mode) and kind.st_size > most:
            raise StoreError(f"{path}: {kind.st_size:,} bytes; this server reads up to {most:,}.")
        if count > _MOST_FILES:
            raise StoreError(f"{directory}: an adapter has a few files; here are more than {_MOST_FILES:,}.")


class Skeleton:
    """A base without its values, on which an adapter's options say what its tensors must be.

    Args:
        model: The base.
    """

    def __init__(self, model: nn.Module) -> None:
        empty: dict[int, Any] = {}
        for tensor in chain(model.parameters(), model.buffers()):
            bare = tensor.detach().to("meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            empty[id(tensor)] = nn.Parameter(bare, requires_grad=False) if is_parameter else bare
        self._model = copy.deepcopy(model, empty)
        self._known: dict[str, Mapping[str, tuple[int, ...]]] = {}

    def check(self, adapter: ResidentAdapter) -> None:
        """See that an adapter has the tensors that its options ask for, all of them and no others, and finite.

        Not for several threads at once.

        Raises:
            ConfigError: An option isn't usable.
            StoreError: A tensor is missing, left over, or not what the base needs.
        """
        check_options(adapter.config)
        who = f"adapter {adapter.digest[:12]}"
        expected = self._shapes(adapter.config)
        found = adapter.tensors
        for word, names in (("lacks", set(expected) - set(found)), ("has also", set(found) - set(expected))):
            if names:
                raise StoreError(
                    f"{who}: by its options it {word} {min(names)}"
                    + (f" and {len(names) - 1} more tensors." if len(names) > 1 else ".")
                    + " Was adapter_config.json changed, or was it trained on another base?"
                )
        for name, tensor in found.items():
            if tuple(tensor.shape) != expected[name]:
                raise StoreError(
                    f"{who}: {name} has shape {tuple(tensor.shape)}; expected {expected[name]}, by its "
                    "options and the base."
                )
            if tensor.dtype not in _FLOATS:
                raise StoreError(f"{who}: {name} holds {tensor.dtype}; expected a floating-point type.")
        for name, tensor in found.items():
            # Pieces below torch's threshold for helpers, which the engine's thread needs for itself.
            if not all(part.float().isfinite().all() for part in tensor.flatten().split(_PIECE)):
                raise StoreError(f"{who}: {name} has values that aren't finite.")

    def _shapes(self, config: PeftConfig) -> Mapping[str, tuple[int, ...]]:
        key = config.to_json()
        if key not in self._known:
            if len(self._known) >= 32:
                self._known.clear()
            self._known[key] = self._ask(copy.deepcopy(config))
        return self._known[key]

    def _ask(self, config: PeftConfig) -> Mapping[str, tuple[int, ...]]:
        if isinstance(config, PromptTuningConfig):
            # How it began is past, and would load a tokenizer.
            config = dataclasses.replace(
                config,
                prompt_tuning_init=PromptTuningInit.RANDOM,
                prompt_tuning_init_text=None,
                tokenizer_kwargs=None,
            )
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner = method_of(config).tuner(self._model, config, "default", low_cpu_mem_usage=True)
            try:
                return {name: tuple(tensor.shape) for name, tensor in get_state(tuner, "default").items()}
            finally:
                if tuner.in_layers:
                    tuner.unload()


def check_options(config: PeftConfig) -> None:
    """Refuse modules trained in full, numbers that aren't finite, and regular expressions that could run forever.

    Raises:
        ConfigError: There is one.
    """
    saved = getattr(config, "modules_to_save", None)
    if saved:
        raise ConfigError(
            f"modules_to_save={saved!r}: modules trained in full can't run in a mixed batch. Merge the adapter into a "
            "model of its own."
        )
    for where, value in _values(json.loads(config.to_json())):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}={value}: expected a finite number.")
        if (
            isinstance(value, str)
            and _TEXTS.isdisjoint(where.split("."))
            and (
                len(value) > _LONGEST_PATTERN
                or _REPEATED_GROUP.search(value)
                or len(_REPETITION.findall(value)) > _MOST_REPETITIONS
            )
        ):
            raise ConfigError(
                f"{where}={value[:60]!r}: a server takes expressions of up to {_LONGEST_PATTERN:,} characters with up "
                f"to {_MOST_REPETITIONS} repetitions, and none of a group. Save the adapter with a list of modules."
            )


def _values(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All texts and numbers in the options, keys included: those of patterns are expressions, too."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield where or key, key
            yield from _values(value, f"{where}.{key}" if where else key)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, where)
    else:
        yield where, content


def _below(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        yield from (Path(folder, name) for name in chain(folders, names))
