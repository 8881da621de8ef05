"""What `target_modules="all-linear"` doesn't reach: matrices that no linear layer holds are named, not passed over."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from manytune.errors import PeftWarning
from manytune.methods.tuners.targets import Selection, base_of, candidates, is_linear

#: Layers whose matrices nobody takes for a linear layer's.
_OTHER = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.LayerNorm, nn.RMSNorm)
_NO_MATRIX = ("bias", "token", "embed", "position", "parametrizations")


def warn_of_left_frozen(
    model: nn.Module, config: Any, adapted: Collection[str] = (), advice: str = ""
) -> None:
    """Name the matrices that stay frozen although every linear layer is adapted.

    Args:
        model: The model.
        config: The options, for what they leave out on purpose.
        adapted: Parameters that are adapted, by their path.
        advice: What adapts the others.

    Warns:
        PeftWarning: There are some.
    """
    selection = Selection.of(config, ())
    left = {
        f"{path}.{name}": parameter
        for path, name, parameter in _matrices(model)
        if f"{path}.{name}" not in adapted and selection.keeps(path) and selection.keeps(f"{path}.{name}")
    }
    if not left:
        return
    share = sum(parameter.numel() for parameter in left.values()) / sum(p.numel() for p in model.parameters())
    endings = sorted({key.rsplit(".", 2)[-2] + "." + key.rsplit(".", 1)[-1] for key in left if "." in key})
    warnings.warn(
        f"target_modules='all-linear' leaves {len(left)} weights frozen ({share:.1%} of the model) that no linear "
        f"layer holds: {', '.join(endings[:6])}{', ...' if len(endings) > 6 else ''}. "
        f"{advice or 'This method adapts linear layers; LoRA can adapt others, by target_parameters.'}",
        PeftWarning,
        stacklevel=5,
    )


def _matrices(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Parameters that multiply an input, or may, and aren't a linear layer's."""
    get_output = getattr(model, "get_output_embeddings", None)
    head = get_output() if callable(get_output) else None
    for path, module in candidates(model):
        layer = base_of(module)
        if isinstance(layer, _OTHER) or is_linear(module) or layer is head:
            continue
        for name, parameter in layer._parameters.items():
            # The first dimension of what is one vector, or a table of one, is 1.
            if parameter is None or parameter.dim() < 2 or parameter.shape[0] == 1:
                continue
            if not any(word in f"{path}.{name}".lower() for word in _NO_MATRIX):
                yield path, name, parameter
