"""The sizes of a model that its required FLOPs depend on; `flops_formula.py` has the formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from manytune.methods.tuners.base_layers import linear_sizes
from manytune.model.classifier import is_classifier
from manytune.training.batches.batch import base_model
from manytune.training.speed.compilation import repeated_layers
from manytune.training.speed.flops_formula import FlopSizes


class ModelSize(FlopSizes):
    """The sizes of a model that is there, with its method attached."""

    @staticmethod
    def of(model: nn.Module, lower: Sequence[nn.Module] = ()) -> ModelSize | None:
        """Look at a causal language model with its method attached.

        Args:
            model: The model.
            lower: Its layers that tokens may skip; otherwise those that have nothing trained in them or below.

        Returns:
            None if the formula doesn't hold: the model has an encoder, classifies, or has weights that aren't matrices,
            such as a mixture of experts'.
        """
        base: Any = base_model(model)
        config = base.config
        if (
            config.is_encoder_decoder
            or is_classifier(base)
            or any(parameter.ndim > 2 for parameter in model.parameters())
        ):
            return None
        sizes = {True: [0, 0], False: [0, 0]}  # of the head or not: all, trained
        head = base.get_output_embeddings()
        inside_head = set() if head is None else set(head.modules())
        for module in matrices(model):
            size = math.prod(linear_sizes(module))  # of a packed weight, that of what is in it
            sizes[module in inside_head][0] += size
            sizes[module in inside_head][1] += size if module.weight.requires_grad else 0
        lower = lower or _below_all_trained(model, inside_head)
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return ModelSize(
            sizes[False][0],
            sizes[True][0],
            heads * head_size * config.num_hidden_layers,
            sizes[False][1],
            sizes[True][1],
            sum(math.prod(linear_sizes(module)) for layer in lower for module in matrices(layer)),
            heads * head_size * len(lower),
        )


def matrices(model: nn.Module) -> Iterator[nn.Linear | Conv1D]:
    """Every module that multiplies its input with a matrix, an adapter's included."""
    return (module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)))


def _below_all_trained(model: nn.Module, head: set[nn.Module]) -> Sequence[nn.Module]:
    layers = repeated_layers(model)
    above = {module for layer in layers for module in layer.modules()} | head
    first = {p for module in model.modules() if module not in above for p in module.parameters(recurse=False)}
    if any(parameter.requires_grad for parameter in first):
        return ()
    return list(
        itertools.takewhile(lambda layer: not any(p.requires_grad for p in layer.parameters()), layers)
    )
