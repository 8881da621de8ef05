"""`AutoPeftModelFor…`: an adapter's directory in, its base with the adapter attached out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import transformers

from manytune.errors import CheckpointError, StoreError
from manytune.methods.checkpoint.files import HUB_OPTIONS, find_adapter_file
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import PeftConfig, TaskType
from manytune.methods.tuners.embeddings import base_tables, plain_name
from manytune.methods.tuners.terms import FILE_PREFIX
from manytune.model.peft_model import PeftModel, class_for

#: Options that a base's `from_pretrained` doesn't know, and those that mean something to both.
_ADAPTERS_OWN = ("autocast_adapter_dtype", "ephemeral_gpu_offload", "torch_device", "strict")
_OF_BOTH = ("low_cpu_mem_usage", "ignore_mismatched_sizes", "key_mapping")


class _AutoPeftModel:
    """Loads the base that an adapter names, and attaches the adapter."""

    task_type: ClassVar[str | None] = None
    base_class: ClassVar[Any]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Load an adapter together with its base.

        Args:
            pretrained_model_name_or_path: The adapter's directory, or its id on a hub.
            adapter_name: What to call it.
            is_trainable: Whether to train it further.
            config: Options to use instead of the saved ones.
            **kwargs: Passed on to the base's `from_pretrained`, such as `dtype`; those of `PeftModel.from_pretrained`
                that concern the adapter alone, such as `autocast_adapter_dtype`, go there. What concerns both, such as
                `low_cpu_mem_usage`, goes to both.

        Raises:
            CheckpointError: The adapter is for another task, or names no base.
            StoreError: Its base can't be loaded.
        """
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs and key != "revision"}
        source = str(pretrained_model_name_or_path)
        config = config or PeftConfig.from_pretrained(source, **hub)
        if cls.task_type is not None and config.task_type not in (None, cls.task_type):
            raise CheckpointError(
                f"Expected target PEFT class: {class_for(config.task_type).__name__}, but you have asked "
                f"for: {cls.__name__}. Make sure that you are loading the correct model for your task type."
            )
        if config.base_model_name_or_path is None:
            raise CheckpointError(
                f"{source}: adapter_config.json names no base model. Load the base yourself and use "
                "PeftModel.from_pretrained(base, adapter)."
            )
        revision = {"revision": config.revision} if config.revision else {}
        own = {name: kwargs.pop(name) for name in _ADAPTERS_OWN if name in kwargs}
        shared = {name: kwargs[name] for name in _OF_BOTH if name in kwargs}
        try:
            base = cls.base_class.from_pretrained(config.base_model_name_or_path, **{**kwargs, **revision})
        except OSError as error:
            first = str(error).strip().partition("\n")[0]
            raise StoreError(
                f"{source}: its base {config.base_model_name_or_path!r} can't be loaded: {first} If the base is "
                "somewhere else here, load it and use PeftModel.from_pretrained(base, adapter); a manytune base such "
                'as "embedded" is manytune.load_base("embedded").model.'
            ) from error
        _make_room(base, source, **hub)
        return class_for(config.task_type).from_pretrained(
            base, source, adapter_name, is_trainable, config, **{**own, **shared, **hub}
        )


def _make_room(base: Any, source: str, **hub: Any) -> None:
    """Lengthen the embeddings to the adapter's own, or to its tokenizer's number of tokens; never shorten them."""
    present = base.get_input_embeddings().weight.shape[0]
    wanted = _rows_in_file(base, source, **hub) or _tokens(source, **hub)
    if wanted > present:
        base.resize_token_embeddings(wanted)


def _rows_in_file(base: Any, source: str, **hub: Any) -> int:
    """The rows of the embedding table that an adapter brings, which may be padded; 0 if it brings none."""
    from safetensors import SafetensorError, safe_open

    known = base_tables(base)
    try:
        with safe_open(find_adapter_file(source, TENSORS_NAME, **hub), "pt") as file:
            names = [name for name in file.keys() if plain_name(name.removeprefix(FILE_PREFIX)) in known]  # noqa: SIM118
            return max((int(file.get_slice(name).get_shape()[0]) for name in names), default=0)
    except (SafetensorError, CheckpointError, OSError):
        return 0  # whoever reads the file for its tensors says what is wrong with it


def _tokens(source: str, **hub: Any) -> int:
    """How many tokens the tokenizer next to an adapter has; 0 if there is none."""
    try:
        find_adapter_file(source, "tokenizer_config.json", **hub)
    except CheckpointError:
        return 0
    return len(transformers.AutoTokenizer.from_pretrained(source, **hub))


class AutoPeftModelForCausalLM(_AutoPeftModel):
    """Loads a decoder-only language model and attaches the adapter that names it."""

    task_type = TaskType.CAUSAL_LM
    base_class = transformers.AutoModelForCausalLM


class AutoPeftModelForSeq2SeqLM(_AutoPeftModel):
    """Loads an encoder-decoder and attaches the adapter that names it."""

    task_type = TaskType.SEQ_2_SEQ_LM
    base_class = transformers.AutoModelForSeq2SeqLM


class AutoPeftModelForSequenceClassification(_AutoPeftModel):
    """Loads a classifier of sequences and attaches the adapter that names it."""

    task_type = TaskType.SEQ_CLS
    base_class = transformers.AutoModelForSequenceClassification


class AutoPeftModelForTokenClassification(_AutoPeftModel):
    """Loads a classifier of tokens and attaches the adapter that names it."""

    task_type = TaskType.TOKEN_CLS
    base_class = transformers.AutoModelForTokenClassification


class AutoPeftModelForQuestionAnswering(_AutoPeftModel):
    """Loads a model that marks answers and attaches the adapter that names it."""

    task_type = TaskType.QUESTION_ANS
    base_class = transformers.AutoModelForQuestionAnswering


class AutoPeftModelForFeatureExtraction(_AutoPeftModel):
    """Loads a model without a head and attaches the adapter that names it."""

    task_type = TaskType.FEATURE_EXTRACTION
    base_class = transformers.AutoModel


class AutoPeftModel(_AutoPeftModel):
    """Loads whatever base an adapter names, by its task or else by the base's class, and attaches the adapter."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Load an adapter together with its base; arguments as for `AutoPeftModelForCausalLM`.

        Raises:
            CheckpointError: The adapter names neither a task nor a class of transformers.
        """
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs and key != "revision"}
        config = config or PeftConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        kind = _BY_TASK.get(config.task_type or "") or _of_class(config, pretrained_model_name_or_path)
        return kind.from_pretrained(
            pretrained_model_name_or_path, adapter_name, is_trainable, config, **kwargs
        )


_BY_TASK: dict[str, type[_AutoPeftModel]] = {
    str(kind.task_type): kind
    for kind in (
        AutoPeftModelForCausalLM,
        AutoPeftModelForSeq2SeqLM,
        AutoPeftModelForSequenceClassification,
        AutoPeftModelForTokenClassification,
        AutoPeftModelForQuestionAnswering,
        AutoPeftModelForFeatureExtraction,
    )
}


def _of_class(config: PeftConfig, source: str | Path) -> type[_AutoPeftModel]:
    """A loader for the class that `auto_mapping` names; from transformers only, for a file must not import at will."""
    mapping = config.auto_mapping or {}
    library, name = str(mapping.get("parent_library", "")), str(mapping.get("base_model_class", ""))
    found = getattr(transformers, name, None) if library.split(".")[0] == "transformers" else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"{source}: adapter_config.json has no task_type, and its auto_mapping {mapping} names no model of "
            "transformers. Load the base yourself and use PeftModel.from_pretrained(base, adapter)."
        )
    return type(name, (_AutoPeftModel,), {"base_class": found})
