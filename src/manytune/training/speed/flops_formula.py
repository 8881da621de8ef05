"""The formula of required FLOPs: the operations that a training step can't do without, from sizes and counts alone.

With W weights in the layers' matrices, H in the head, A the width of attention summed over the layers, T tokens
computed (pad tokens not counted), R tokens that predict a target and P pairs of a token and one that it sees:

    forward     2 W T + 2 H R + 4 A P       matrices; head; scores and weighted values
    backward    as much for gradients of inputs, twice for attention's, and
                2 W' T + 2 H' R             for the weights W' and H' that are trained

So full fine-tuning takes 6 W T (Kaplan et al., arXiv 2001.08361, section 2.1) and an adapter on a frozen base 4 W T;
the term of attention is that of Hoffmann et al. (arXiv 2203.15556, appendix F) with causal pairs. An adapter's matrices
count among W and W'. W and A of layers below everything that is trained have no part in the backward pass; with
`training.cache_frozen`, in the forward pass only for tokens that didn't skip them. Not counted are norms, activations,
the optimizer, and what is computed twice with gradient checkpointing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Counted(Protocol):
    """What a forward pass computes, in tokens: T, P and R, and what of T and P skips the lower layers."""

    @property
    def real_tokens(self) -> int:
        """T."""

    @property
    def pairs(self) -> int:
        """P."""

    @property
    def logit_rows(self) -> int:
        """R."""

    @property
    def skipped_tokens(self) -> int:
        """The part of T on which the lower layers don't run."""

    @property
    def skipped_pairs(self) -> int:
        """Pairs of these."""


@dataclass(frozen=True)
class FlopSizes:
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

    def forward_flops(self, counted: Counted) -> int:
        """Required FLOPs of the forward pass."""
        layers = 2 * self.layer_weights * counted.real_tokens
        skipped = (
            2 * self.lower_weights * counted.skipped_tokens
            + 4 * self.lower_attention_width * counted.skipped_pairs
        )
        head = 2 * self.head_weights * counted.logit_rows
        return layers - skipped + head + 4 * self.attention_width * counted.pairs

    def backward_flops(self, counted: Counted) -> int:
        """Required FLOPs of the backward pass."""
        weights = self.layer_weights - self.lower_weights + self.trained_layer_weights
        head = 2 * (self.head_weights + self.trained_head_weights) * counted.logit_rows
        width = self.attention_width - self.lower_attention_width
        return 2 * weights * counted.real_tokens + head + 8 * width * counted.pairs

    def training_flops(self, counted: Counted) -> int:
        """Required FLOPs of both."""
        return self.forward_flops(counted) + self.backward_flops(counted)
