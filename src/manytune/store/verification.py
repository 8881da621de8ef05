"""Whether an adapter on disk is intact, fits its base, and changes the base's output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manytune.errors import StoreError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import PeftConfig
from manytune.store.adapters import open_adapter
from manytune.store.attaching import attached
from manytune.store.base import Base
from manytune.store.servability import is_for_a_head, why_not_served
from manytune.store.tensors_in_memory import TensorsInMemory

_PROBE_TOKENS = 16


@dataclass(frozen=True)
class Verification:
    """What was checked of an adapter and found right.

    Attributes:
        path: Its directory.
        files: Files whose hashes are those in the manifest.
        tensors: Tensors that are finite.
        effect: With a base, the largest difference that the adapter makes to a logit of the probe tokens; None without.
        note: What couldn't be checked, in a sentence; None if everything that was asked for was.
        unservable: Why a server can't run it, and what to do instead; None if it can, or, without a base, if its
            manifest doesn't say.
    """

    path: Path
    files: int
    tensors: int
    effect: float | None
    note: str | None
    unservable: str | None = None

    @property
    def base_checked(self) -> bool:
        """Whether the adapter was compared with the base that it names, and tried on it."""
        return self.effect is not None and self.files > 0


def verify_adapter(directory: str | Path, *, base: Base | None = None) -> Verification:
    """Check an adapter's hashes and values; with a base also that it fits this base and changes its output.

    Args:
        directory: The adapter's directory.
        base: The base that it is to run on; left as it was.

    Raises:
        DamagedError: A file is missing, damaged or a pickle.
        StoreError: A value is NaN or Inf, or the adapter changes nothing.
        BaseMismatchError: It was trained on another base.
        CheckpointError: A tensor is missing, left over or of another shape than the base needs.
    """
    stored = open_adapter(directory, base=base)
    tensors = TensorsInMemory(stored.path / TENSORS_NAME)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise StoreError(
                f"{stored.path / TENSORS_NAME}: {name} has values that are NaN or Inf. Its training has diverged; "
                "train it again, with a lower learning rate."
            )
    note = stored.note
    effect = None
    if base is not None and is_for_a_head(PeftConfig.from_pretrained(stored.path)):
        note = "; ".join(
            [*([note] if note else []), "it is for a model with another head, so it wasn't tried"]
        )
    elif base is not None:
        effect = _effect(stored.path, base)
    if base is not None:
        unservable = why_not_served(stored.path, base.model, encodes=base.is_encoder)
    else:
        unservable = None if stored.manifest is None else stored.manifest.unservable
    return Verification(
        stored.path,
        0 if stored.manifest is None else len(stored.manifest.files),
        len(tensors),
        effect,
        note,
        unservable,
    )


def _effect(path: Path, base: Base) -> float:
    with attached(base, None) as model:
        plain = _last_logits(model, base)
    with attached(base, path) as model:
        changed = _last_logits(model, base)
    difference = float((changed - plain).abs().max())
    if difference == 0.0:
        raise StoreError(
            f"{path}: the adapter changes nothing: the base gives the very same logits with and without it. It "
            "may never have been trained."
        )
    if not difference < float("inf"):
        raise StoreError(f"{path}: with the adapter the base gives logits that are NaN or Inf.")
    return difference


@torch.no_grad()
def _last_logits(model: Any, base: Base) -> Tensor:
    """The logits after tokens from all over the vocabulary; a soft prompt before them doesn't shift the last one."""
    embeddings: Any = base.model.get_input_embeddings()
    vocabulary = embeddings.weight.shape[0]
    ids = torch.linspace(0, vocabulary - 1, _PROBE_TOKENS, device=base.model.device).long()[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if base.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    logits: Tensor = model(**inputs).logits[:, -1].float()
    return logits
