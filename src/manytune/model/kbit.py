"""Making a quantized base ready for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> nn.Module:
    """Freeze a base, keep what isn't quantized in float32, and let gradients reach its layers.

    Args:
        model: The base, changed in place.
        use_gradient_checkpointing: Recompute activations in the backward pass, rather than keep them.
        gradient_checkpointing_kwargs: Passed on to torch's checkpointing, such as `{"use_reentrant": False}`.
        auto_clear_cache: Give the memory of the casts back to a GPU's driver.

    Returns:
        The model.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.to(torch.float32)
    if use_gradient_checkpointing:
        options = gradient_checkpointing_kwargs or {}
        if options.get("use_reentrant", True):
            let_inputs_require_grad(model)
        enable: Any = getattr(model, "gradient_checkpointing_enable", None)
        if enable is not None:
            enable(**({"gradient_checkpointing_kwargs": options} if options else {}))
    if auto_clear_cache and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model


def let_inputs_require_grad(model: nn.Module) -> None:
    """Make embeddings carry gradients: reentrant checkpointing computes none for a block whose inputs carry none."""
    enable: Any = getattr(model, "enable_input_require_grads", None)
    if enable is not None:
        enable()
        return
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is not None:
        embeddings.register_forward_hook(_require_grad)


def _require_grad(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.requires_grad_(True)
