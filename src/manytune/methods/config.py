"""What every method's configuration has in common, and how it is read from and written to `adapter_config.json`."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self

from manytune.atomic import atomic_write
from manytune.errors import CheckpointError, ConfigError, PeftWarning
from manytune.methods import load_methods
from manytune.methods.checkpoint.files import HUB_OPTIONS, find_adapter_file
from manytune.methods.checkpoint.option_types import check_option_types

CONFIG_NAME = "adapter_config.json"

#: The release of HF PEFT whose files manytune reads and writes; stored in every `adapter_config.json`.
PEFT_FORMAT = "0.21.2"


class TaskType(StrEnum):
    """What a model is used for; decides which `PeftModelFor…` class wraps it."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"  # noqa: S105  # a task
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(StrEnum):
    """The method that a configuration belongs to. A method of your own may use any other string."""

    LORA = "LORA"
    ADALORA = "ADALORA"
    IA3 = "IA3"
    VERA = "VERA"
    TRAINABLE_TOKENS = "TRAINABLE_TOKENS"
    PROMPT_TUNING = "PROMPT_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    P_TUNING = "P_TUNING"
    COMBINED = "COMBINED"
    FULL = "FULL"
    SELECTIVE = "SELECTIVE"
    BOTTLENECK = "BOTTLENECK"


@dataclass
class PeftConfig:
    """The options that all methods share.

    Args:
        task_type: What the model is used for, one of `TaskType`.
        peft_type: The method; set by each method's own class.
        auto_mapping: For models without a task type: `base_model_class` and `parent_library` of the base.
        peft_version: The release of HF PEFT whose format the file has.
        base_model_name_or_path: The base that the adapter belongs to.
        revision: The base's revision on a hub.
        inference_mode: Whether the adapter is for inference only; its parameters are then frozen.

    Raises:
        ConfigError: An option's value can't be used.
    """

    task_type: str | None = None
    peft_type: str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    #: Fields that live in memory only.
    _transient: ClassVar[frozenset[str]] = frozenset()
    #: Fields that the method compares with their annotation itself, in words of its own.
    _self_checked: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_option_types(self, besides=self._self_checked)
        if self.peft_version is None:
            self.peft_version = PEFT_FORMAT
        if self.task_type is not None and self.task_type not in list(TaskType):
            known = ", ".join(TaskType)
            raise ConfigError(
                f"Invalid task type: '{self.task_type}'. Must be one of the following task types: {known}."
            )

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method trains virtual tokens rather than weights."""
        return False

    @property
    def was_saved(self) -> bool:
        """Whether these are a saved adapter's options: what matches nothing in them is left over and no mistake."""
        return bool(self.__dict__.get("_was_saved", False))

    def as_saved(self) -> Self:
        """The same object, as a saved adapter's options."""
        self.__dict__["_was_saved"] = True
        return self

    @property
    def is_adaption_prompt(self) -> bool:
        """Whether the method is HF PEFT's adaption prompts, which isn't implemented: never."""
        return False

    # -- what a method's options may say, with defaults

    @property
    def texts(self) -> frozenset[str]:
        """The options that hold names or prose; a server takes any other string for a pattern of module names."""
        return frozenset({"auto_mapping", "base_model_name_or_path", "revision"})

    @property
    def loading_note(self) -> str | None:
        """What someone who loads the adapter from a file ought to know, as a sentence; None for nothing."""
        return None

    @property
    def adapts_parameters(self) -> bool:
        """Whether it adapts parameters of layers that aren't adapted as such, whose names a file doesn't hold."""
        return False

    @property
    def trains_tokens(self) -> bool:
        """Whether it trains single rows of an embedding, so that its file needn't hold the whole table."""
        return False

    def borrow_accelerator(self, wanted: bool) -> None:
        """Take in whether what is computed on the CPU at attachment may be computed on an accelerator.

        Warns:
            PeftWarning: It is wanted, and the method computes nothing large then.
        """
        if wanted:
            warnings.warn(
                f"ephemeral_gpu_offload=True has no effect: {self.peft_type} computes nothing large at attachment.",
                PeftWarning,
                stacklevel=4,
            )

    def for_loading(self) -> Self:
        """The options with which to attach a saved adapter and detach it again: nothing that only a training needs."""
        return self

    @classmethod
    def unplanned(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options for a training whose length isn't known yet; `TrainingHooks.plan_steps` brings it later.

        Args:
            options: What the recipe says, which stays.
        """
        return dict(options)

    def check_trains(self) -> None:
        """Refuse options with which nothing would be learned; an adapter that is loaded may have them.

        Raises:
            ConfigError: They are such.
        """

    # -- files

    def to_dict(self) -> dict[str, Any]:
        """The options as they are in memory, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def to_json(self) -> str:
        """The options as `adapter_config.json` holds them: sets as lists, enums as strings, keys sorted."""
        options = {k: _plain(v) for k, v in self.to_dict().items() if k not in self._transient}
        return json.dumps(options, indent=2, sort_keys=True)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `adapter_config.json` into a directory, which is created if need be."""
        directory = Path(save_directory)
        if directory.is_file():
            raise ConfigError(f"Provided path ({directory}) should be a directory, not a file.")
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / CONFIG_NAME, self.to_json())

    @classmethod
    def from_json_file(cls, path_json_file: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The content of a configuration file.

        Raises:
            CheckpointError: The file isn't a JSON object.
        """
        path = Path(path_json_file)
        try:
            options = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: expected a JSON object with the adapter's options: {error}"
            ) from None
        if not isinstance(options, dict):
            raise CheckpointError(f"{path}: expected a JSON object, found {type(options).__name__}.")
        return options

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """Read the configuration of an adapter.

        Args:
            pretrained_model_name_or_path: The adapter's directory, or its id on a hub.
            subfolder: A directory within it.
            **kwargs: `revision`, `cache_dir`, `token` and the like for a hub; the rest overrides options.

        Returns:
            An object of the class that the file's `peft_type` names, whichever class this is called on.

        Raises:
            CheckpointError: There is no such file, or it can't be read.
            OptionTypeError: The file names no `peft_type`, and this class doesn't either.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        path = find_adapter_file(pretrained_model_name_or_path, CONFIG_NAME, subfolder=subfolder, **hub)
        return cls.from_peft_type(**{**cls.from_json_file(path), **kwargs}).as_saved()

    @classmethod
    def from_peft_type(cls, **options: Any) -> PeftConfig:
        """Build the configuration class that `peft_type` names; options that it lacks are named and ignored."""
        peft_type = options.get("peft_type")
        if peft_type is None and cls is PeftConfig:
            raise OptionTypeError(
                "The configuration has no `peft_type`, so its method is unknown. Write the one that it was trained "
                'with into it, such as "LORA".'
            )
        kind = config_class(peft_type)
        return (kind or cls)._from_options(options)

    @classmethod
    def _from_options(cls, options: dict[str, Any]) -> Self:
        known = {f.name for f in dataclasses.fields(cls)} - cls._transient
        unknown = sorted(set(options) - known - cls._transient)
        if unknown:
            warnings.warn(
                f"Unexpected keyword arguments {unknown} for class {cls.__name__}, these are ignored. "
                "The file was probably written by a newer version of PEFT.",
                PeftWarning,
                stacklevel=4,
            )
        return cls(**{key: value for key, value in options.items() if key in known})


#: Configuration classes by `peft_type`; `registry.register` adds to them.
_CLASSES: dict[str, type[PeftConfig]] = {}


def register_config(peft_type: str, kind: type[PeftConfig]) -> None:
    """Let `PeftConfig.from_pretrained` make configurations of a `peft_type`."""
    _CLASSES[peft_type] = kind


def config_class(peft_type: str | None) -> type[PeftConfig] | None:
    """The configuration class of a `peft_type`; None if it isn't known."""
    load_methods()
    return None if peft_type is None else _CLASSES.get(peft_type)


@dataclass
class PromptLearningConfig(PeftConfig):
    """The options that all soft prompts share.

    Args:
        num_virtual_tokens: How many virtual tokens are trained.
        token_dim: Their size; by default the model's embedding size.
        num_transformer_submodules: 1 for a decoder or an encoder, 2 for an encoder-decoder.
        num_attention_heads: Heads of keys and values; by default the model's.
        num_layers: Layers; by default the model's.
        modules_to_save: Modules trained in full next to the prompt, such as a new head.
    """

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = field(default=None)

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method trains virtual tokens rather than weights."""
        return True

    def check_trains(self) -> None:
        """See `PeftConfig.check_trains`: no base has to be loaded to see that a length is missing."""
        tokens = self.num_virtual_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            found = "nothing" if tokens is None else repr(tokens)
            raise ConfigError(f"num_virtual_tokens should be a positive integer, such as 20; found {found}")


class OptionTypeError(ConfigError, TypeError):
    """An option is missing or of another type, where HF PEFT raises a `TypeError`."""


def as_name_set(names: str | Iterable[str] | None) -> str | set[str] | None:
    """A pattern stays a string; a list of module names becomes a set.

    Raises:
        ConfigError: It is neither.
    """
    if names is None or isinstance(names, str):
        return names
    try:
        return set(names)
    except TypeError:
        raise ConfigError(f"Expected a list of module names, or a pattern; found {names!r:.100}.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, PeftConfig):
        return json.loads(value.to_json())
    return value
