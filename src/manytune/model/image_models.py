"""Which bases read images."""

from __future__ import annotations

from typing import Any

IMAGE_MODELS = ("vit", "deit", "dinov2")
"""transformers' names of the vision transformers whose classifiers are trained, asked and served here."""


def reads_images(config: Any) -> bool:
    """Whether a model with this configuration is a vision transformer, which reads images and no text."""
    return getattr(config, "model_type", None) in IMAGE_MODELS
