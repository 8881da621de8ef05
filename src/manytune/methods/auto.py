"""`AutoPeftModelFor…`: an adapter's directory in, its base with the adapter attached out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import transformers

from manytune.errors import CheckpointError
from manytune.methods.config import PeftConfig, TaskType
from manytune.methods.files import HUB_OPTIONS
from manytune.methods.model import PeftModel
from manytune.methods.task_models import class_for


class _AutoPeftModel:
    """Loads the base that an adapter names, and attaches the adapter."""

    task_type: ClassVar[str]
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
            **kwargs: Passed on to the base's `from_pretrained`, such as `dtype`.

        Raises:
            CheckpointError: The adapter is for another task, or names no base.
        """
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs and key != "revision"}
        source = str(pretrained_model_name_or_path)
        config = config or PeftConfig.from_pretrained(source, **hub)
        if config.task_type is not None and config.task_type != cls.task_type:
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
        base = cls.base_class.from_pretrained(config.base_model_name_or_path, **{**kwargs, **revision})
        return class_for(cls.task_type).from_pretrained(
            base, source, adapter_name, is_trainable, config, **hub
        )


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
