"""Which base an adapter belongs to, noted in its options."""

from __future__ import annotations

from torch import nn

from manytune.methods.config import PeftConfig


def name_base(config: PeftConfig, base: nn.Module) -> None:
    """Note which base a configuration belongs to."""
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = base.__dict__.get("name_or_path") or None
        if config.revision is None:
            config.revision = revision_of(base)
    if config.task_type is None:
        kind = type(base)
        config.auto_mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def revision_of(base: nn.Module) -> str | None:
    """The revision on a hub that a base was loaded from; None if it wasn't."""
    revision = getattr(base.__dict__.get("config"), "_commit_hash", None)
    return revision if isinstance(revision, str) else None
