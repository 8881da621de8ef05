"""A classifier's adapter in its two parts: what it does in the base's layers, which has terms, and its head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.errors import ConfigError
from manytune.methods.config import PeftConfig, TaskType
from manytune.methods.registry import terms_of
from manytune.methods.tuners.task_heads import new_parts
from manytune.methods.tuners.terms import FILE_PREFIX, Adapter, Terms
from manytune.model.classifier import with_head

_MOST_CLASSES = 10_000


class Classifiers:
    """Classifiers around one base, one for each kind and number of classes; they share its layers. Not thread-safe.

    Args:
        model: The base, or a classifier around it.
        pad_id: The pad token; None for the base's own.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int | None = None) -> None:
        self._model = model
        self._pad_id = pad_id
        self._made: dict[tuple[int, bool], PreTrainedModel] = {}

    def of(self, classes: int, *, of_words: bool = False) -> PreTrainedModel:
        """The one with so many classes; its head's values are zero.

        Args:
            classes: How many.
            of_words: Whether each token gets a class, rather than the whole text.

        Raises:
            ConfigError: transformers has no classifier of the base's kind.
        """
        key = (classes, of_words)
        if key not in self._made:
            if len(self._made) >= 8:
                self._made.clear()
            names = list(map(str, range(classes)))
            self._made[key] = with_head(self._model, names, pad_id=self._pad_id, of_words=of_words)
        return self._made[key]


@dataclass(frozen=True)
class Trunk:
    """What an adapter does in the base's layers, as an adapter of its own."""

    digest: str
    config: PeftConfig
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class ClassifierParts:
    """The two parts.

    Attributes:
        classes: How many there are.
        trunk: What it does in the layers.
        head: The head's values, by their names in the classifier.
        of_words: Whether each token gets a class, rather than the whole text.
    """

    classes: int
    trunk: Trunk
    head: Mapping[str, Tensor]
    of_words: bool = False


def classifier_parts(adapter: Adapter, classifiers: Classifiers) -> ClassifierParts:
    """Divide a classifier's adapter.

    Raises:
        ConfigError: It has no head, or not one of the base's kind, or it puts virtual tokens before a text.
    """
    if adapter.config.is_prompt_learning:
        raise ConfigError(
            f"{adapter.config.peft_type} adapters put virtual tokens before a text, which /v1/classify doesn't "
            "support. Use an adapter in the layers, such as LoRA."
        )
    of_words = adapter.config.task_type == TaskType.TOKEN_CLS
    smallest = classifiers.of(2, of_words=of_words)
    parts = tuple(f"{FILE_PREFIX}{part}." for part in new_parts(smallest))
    head = {n.removeprefix(FILE_PREFIX): t for n, t in adapter.tensors.items() if n.startswith(parts)}
    rest = {n: t for n, t in adapter.tensors.items() if not n.startswith(parts)}
    expected = {
        name: parameter.shape
        for name, parameter in smallest.named_parameters()
        if f"{FILE_PREFIX}{name}".startswith(parts)
    }
    if set(head) != set(expected):
        odd = min(set(head) ^ set(expected))
        raise ConfigError(
            f"the adapter's head {'lacks' if odd in expected else 'also has'} {odd!r}; expected that of a "
            f"{type(smallest).__name__}. Was it trained on a base of this kind, with task_type "
            f"{adapter.config.task_type}?"
        )
    sizes = {
        head[name].shape[0] for name, shape in expected.items() if len(shape) and head[name].shape != shape
    }
    classes = sizes.pop() if sizes else 2
    if sizes or not 1 <= classes <= _MOST_CLASSES:
        raise ConfigError(
            "the adapter's head doesn't fit the base: its layers differ in more than the classes"
        )
    return ClassifierParts(classes, Trunk(adapter.digest, adapter.config, rest), head, of_words)


def trunk_terms(parts: ClassifierParts, classifiers: Classifiers) -> Terms:
    """The terms of what an adapter does in the base's layers.

    Raises:
        ConfigError: They can't run in a mixed batch.
    """
    if not parts.trunk.tensors:
        return Terms()
    with torch.no_grad():
        return terms_of(parts.trunk, classifiers.of(parts.classes, of_words=parts.of_words))


def head_of(parts: ClassifierParts, classifiers: Classifiers, given: torch.nn.Module) -> Any:
    """The classifier with an adapter's head, and with another module in the place of the base's layers.

    Args:
        parts: The adapter.
        classifiers: Of its base.
        given: What is called as the base's layers would be.

    Raises:
        ConfigError: A value doesn't fit.
    """
    template: Any = classifiers.of(parts.classes, of_words=parts.of_words)
    head = copy.copy(template)
    head._modules = dict(template._modules)
    head._modules[template.base_model_prefix] = given
    for part in new_parts(template):
        own = copy.deepcopy(template._modules[part])
        values = {
            n.removeprefix(f"{part}."): t.float() for n, t in parts.head.items() if n.startswith(f"{part}.")
        }
        try:
            own.float().load_state_dict(values)
        except RuntimeError as error:
            raise ConfigError(f"the adapter's head doesn't fit the base: {str(error)[:300]}") from error
        head._modules[part] = own
    return head
