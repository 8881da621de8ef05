"""LoRA+: a larger learning rate for B than for A (Hayou et al., arXiv 2402.12354).

    A moves with η, B with λ · η

B starts at zero and multiplies features of the size of the output, so in wide models one rate for both trains A's
direction too slowly or B too fast. The paper recommends λ around 16.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from manytune.errors import ConfigError


def lora_plus_groups(
    model: nn.Module, lr: float, ratio: float = 16.0, *, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer of torch, of everything in a model that trains.

    Args:
        model: A model with a LoRA adapter.
        lr: η: the learning rate of A, and of whatever else trains.
        ratio: λ.
        weight_decay: Decay of the matrices; biases and other vectors have none.

    Returns:
        Two to four groups with `params`, `lr` and `weight_decay`: `torch.optim.AdamW(lora_plus_groups(model, 1e-4))`.

    Raises:
        ConfigError: No B trains, or a rate isn't positive.
    """
    if lr <= 0 or ratio <= 0:
        raise ConfigError(f"LoRA+ needs a positive lr and ratio, found lr={lr!r} and ratio={ratio!r}.")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_b = ".lora_B." in name or ".lora_embedding_B." in name
            groups.setdefault((is_b, parameter.dim() > 1), []).append(parameter)
    if not any(is_b for is_b, _ in groups):
        raise ConfigError(
            "LoRA+ sets the learning rate of LoRA's B, but the model has no B that trains. Attach a LoRA adapter, and "
            "choose it with set_adapter."
        )
    return [
        {
            "params": parameters,
            "lr": lr * ratio if is_b else lr,
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        for (is_b, is_matrix), parameters in groups.items()
    ]
