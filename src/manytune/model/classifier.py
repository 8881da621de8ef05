"""A base with a new head for classes: a classifier of transformers around the base's layers, which are not copied."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from manytune.errors import ConfigError
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.methods.tuners.task_heads import new_parts
from manytune.model.image_models import reads_images

POOLER = "pooler"
"""What encoders call the layer between the first token's vector and the head."""


_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")


def is_classifier(model: Any) -> bool:
    """Whether a model, without what is attached to it, is one of transformers' classifiers."""
    return type(model).__name__.endswith(_CLASSIFIERS)


def classifies_words(model: Any) -> bool:
    """Whether it is one of tokens."""
    return type(model).__name__.endswith("ForTokenClassification")


def with_head(
    model: PreTrainedModel, names: Sequence[str], *, pad_id: int | None, of_words: bool = False
) -> PreTrainedModel:
    """Make a classifier of transformers around a base, with a head for these classes, or for a single number.

    The base's layers become the classifier's and stay where they are in memory; a causal language model's own output
    head isn't used. The head's values are zero until `renew_head`. So are a pooler's, if the classifier reads one that
    the base lacks; see `new_modules`. One that it doesn't read isn't part of it.

    Args:
        model: An encoder of text or images without a head, or a causal language model; nothing is attached to it.
        names: The classes; a single name for a regression's number.
        pad_id: The pad token: decoders find a text's last token by it.
        of_words: Whether each token gets a class, rather than the whole text.

    Raises:
        ConfigError: transformers has no classifier of this kind, or the base is an encoder-decoder.
    """
    kind = type(model.config).__name__
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"a head for labels goes on encoders and decoders; this base is an encoder-decoder ({kind}). Use "
            "AutoModelForSequenceClassification with get_peft_model for it."
        )
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: place for place, name in enumerate(names)}
    if not of_words:
        config.problem_type = "single_label_classification" if len(names) > 1 else "regression"
    if pad_id is not None:
        config.pad_token_id = pad_id
    backbone: Any = model.base_model
    images = reads_images(config)
    text_class: Any = AutoModelForTokenClassification if of_words else AutoModelForSequenceClassification
    auto_class: Any = AutoModelForImageClassification if images else text_class
    try:
        with torch.device("meta"):
            classifier: Any = auto_class.from_config(config)
    except ValueError as error:
        what = "words" if of_words else "texts"
        raise ConfigError(
            f"a head for labels: transformers has no classifier of {what} for this base ({kind})."
        ) from error
    prefix = classifier.base_model_prefix
    mine, theirs = getattr(backbone, POOLER, None), getattr(getattr(classifier, prefix), POOLER, None)
    if (mine is None) != (theirs is None):
        backbone = copy.copy(backbone)  # the base keeps what it has; the layers are the same objects
        backbone._modules = dict(backbone._modules)
        backbone._modules[POOLER] = None if theirs is None else _zeros(theirs, model)
        classifier.has_new_pooler = theirs is not None
    setattr(classifier, prefix, backbone)
    for part in new_parts(classifier):
        classifier._modules[part] = _zeros(classifier._modules[part], model)
    if getattr(model, "name_or_path", None):
        classifier.name_or_path = model.name_or_path
    made: PreTrainedModel = classifier.eval()
    return made


def _zeros(module: Any, like: PreTrainedModel) -> Any:
    made = module.to_empty(device=like.device).to(like.dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made


def new_modules(classifier: Any) -> tuple[str, ...]:
    """Names of the modules that no checkpoint has values for: the head's, and perhaps the pooler."""
    pooler = [POOLER] if getattr(classifier, "has_new_pooler", False) else []
    return (*new_parts(classifier), *pooler)


def renew_head(classifier: Any) -> None:
    """Draw the values of new modules from torch's generator, as transformers initialises them.

    Mutates: these modules of the classifier.
    """
    for name in new_modules(classifier):
        owner = classifier if name in classifier._modules else classifier.base_model
        with torch.no_grad():
            for module in owner._modules[name].modules():
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False
                classifier._init_weights(module)


def train_new_modules(classifier: Any, config: PeftConfig) -> None:
    """Let a method also train a new pooler in full; what is next to the base trains for the task anyway.

    Mutates: the configuration.

    Raises:
        ConfigError: The method can't.
    """
    if not getattr(classifier, "has_new_pooler", False):
        return
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = [*(config.modules_to_save or ()), POOLER]
    elif method_of(config).on_packed:  # a method that trains the base's own weights trains these, too
        raise ConfigError(
            f"the base's checkpoint has no pooler, which a classifier of its kind reads, and {config.peft_type} trains "
            "no module in full. Use another method, such as lora."
        )
