"""Whether a server can run an adapter next to others over one base: one verdict for `add`, `verify` and the server."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.atomic import atomic_write
from manytune.errors import ConfigError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import PeftConfig, TaskType
from manytune.methods.registry import terms_of
from manytune.methods.tuners.position_layers import check_positions
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.memory_estimate import AdapterLimit, bytes_for_one
from manytune.mixed.stacks import dtype_for
from manytune.store.classifier_parts import Classifiers, classifier_parts, trunk_terms
from manytune.store.manifest import MANIFEST_NAME, Manifest
from manytune.store.tensors_in_memory import TensorsInMemory

_log = logging.getLogger(__name__)

_OF_HEADS: dict[str, str] = {
    TaskType.QUESTION_ANS: "AutoPeftModelForQuestionAnswering",
}


@dataclass(frozen=True)
class _OnDisk:
    digest: str
    config: PeftConfig
    tensors: Mapping[str, Tensor]


def is_for_a_head(config: PeftConfig) -> bool:
    """Whether an adapter is for a model that classifies or extracts, which neither writes text nor gives embeddings."""
    return is_for_classes(config) or config.task_type in _OF_HEADS


def is_for_classes(config: PeftConfig) -> bool:
    """Whether an adapter is a classifier's, of whole texts or of words, with a head of its own."""
    return config.task_type in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)


def check_task(config: PeftConfig) -> None:
    """Refuse an adapter whose answers aren't text, embeddings or labels.

    Raises:
        ConfigError: It is for a model with another head.
    """
    loader = _OF_HEADS.get(config.task_type or "")
    if loader is not None:
        raise ConfigError(
            f"its task is {config.task_type}, and a server gives text, embeddings or labels. Use it "
            f"with {loader}."
        )


def served_terms(
    adapter: Adapter, model: nn.Module, *, encodes: bool = False, limit: AdapterLimit | None = None
) -> Terms:
    """The terms with which a server runs an adapter; a classifier's are those of what it does in the base's layers.

    Args:
        adapter: The adapter.
        model: Its base; adapters may be attached to it.
        encodes: Whether the base gives vectors and writes no text.
        limit: What one adapter may take; None for half of the memory that is free now.

    Raises:
        ConfigError: A server can't run it, and what to do instead; see `terms_of`.
        OversizedAdapterError: It would take more than it may.
    """
    check_task(adapter.config)
    base = cast(PreTrainedModel, model)
    limit = AdapterLimit(nbytes=bytes_for_one(base.device)) if limit is None else limit
    if is_for_classes(adapter.config):
        classifiers = Classifiers(base)
        terms = trunk_terms(classifier_parts(adapter, classifiers), classifiers)
        limit.check(terms, dtype_for(base.dtype))
        return terms
    with torch.no_grad():
        terms = terms_of(adapter, model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        check_positions(terms)
    limit.check(terms, dtype_for(base.dtype))
    if encodes and terms.virtual_tokens:
        raise ConfigError(
            f"{adapter.config.peft_type} adapters put virtual tokens before a text, which embeddings don't support. "
            "Use an adapter in the encoder's layers, such as LoRA."
        )
    return terms


def why_not_served(directory: Path, model: nn.Module, *, encodes: bool = False) -> str | None:
    """Why a server can't run an adapter on disk, and what to do instead; None if it can.

    Args:
        directory: The adapter's directory, its files checked.
        model: Its base; adapters may be attached to it.
        encodes: Whether the base gives vectors and writes no text.
    """
    config = PeftConfig.from_pretrained(directory)
    try:
        served_terms(
            _OnDisk(str(directory), config, TensorsInMemory(directory / TENSORS_NAME)), model, encodes=encodes
        )
    except ConfigError as error:
        return str(error)
    return None


def note_verdict(directory: Path, model: nn.Module) -> str | None:
    """Note in the manifest of an adapter that was just saved why a server can't run it; returns that, or None."""
    try:
        reason = why_not_served(directory, model)
    except Exception:  # the training is done: whatever this is, it must not cost the adapter
        _log.warning("%s: whether a server can run it couldn't be tried", directory, exc_info=True)
        return None
    if reason is not None:
        manifest = dataclasses.replace(Manifest.read(directory / MANIFEST_NAME), unservable=reason)
        atomic_write(directory / MANIFEST_NAME, manifest.to_json())
    return reason
