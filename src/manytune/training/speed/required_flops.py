"""Required FLOPs: the floating-point operations that a training step can't do without. Nothing is measured here.

With W weights in the layers' matrices, H in the head, A the width of attention summed over the layers, T tokens
computed (pad tokens not counted), R tokens that predict a target and P pairs of a token and one that it sees:

    forward     2 W T + 2 H R + 4 A P       matrices; head; scores and weighted values
    backward    as much for gradients of inputs, twice for attention's, and
                2 W' T + 2 H' R             for the weights W' and H' that are trained

An adapter's matrices count among W and W'. W and A of layers below everything that is trained have no part in the
backward pass; with `training.cache_frozen`, in the forward pass only for tokens that didn't skip them. Not counted
are norms, activations, the optimizer, and what is computed twice with gradient checkpointing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from manytune.methods.tuners.base_layers import linear_sizes
from manytune.model.classifier import is_classifier
from manytune.training.batches.batch import base_model
from manytune.training.loop.counters import Counters
from manytune.training.speed.compilation import repeated_layers


@dataclass(frozen=True)
class ModelSize:
    """What the required FLOPs of a model depend on.

    Attributes:
        layer_weights: W.
        head_weights: H.
        attention_width: A: heads times the size of a head, summed over the layers.
        trained_layer_weights: W'.
        trained_head_weights: H'.
        lower_weights: The part of W in the layers below everything that is trained, which tokens may skip.
        lower_attention_width: The part of A in these.
    """

    layer_weights: int
    head_weights: int
    attention_width: int
    trained_layer_weights: int
    trained_head_weights: int
    lower_weights: int = 0
    lower_attention_width: int = 0

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

    def forward_flops(self, counters: Counters) -> int:
        """Required FLOPs of the forward pass."""
        layers = 2 * self.layer_weights * _tokens(counters)
        skipped = (
            2 * self.lower_weights * counters.skipped_tokens
            + 4 * self.lower_attention_width * counters.skipped_pairs
        )
        head = 2 * self.head_weights * counters.logit_rows
        return layers - skipped + head + 4 * self.attention_width * counters.pairs

    def backward_flops(self, counters: Counters) -> int:
        """Required FLOPs of the backward pass."""
        weights = self.layer_weights - self.lower_weights + self.trained_layer_weights
        head = 2 * (self.head_weights + self.trained_head_weights) * counters.logit_rows
        width = self.attention_width - self.lower_attention_width
        return 2 * weights * _tokens(counters) + head + 8 * width * counters.pairs

    def training_flops(self, counters: Counters) -> int:
        """Required FLOPs of both."""
        return self.forward_flops(counters) + self.backward_flops(counters)


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


def _tokens(counters: Counters) -> int:
    return counters.tokens.tokens_computed - counters.tokens.pad_tokens
