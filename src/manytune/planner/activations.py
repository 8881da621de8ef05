"""What a forward pass keeps for the backward pass, in bytes a token.

Korthikanti et al. ("Reducing activation recomputation", arXiv 2205.05198, section 4) count what each operation of a
layer keeps; here the same is counted for the layers of today, whose base is frozen. A frozen product keeps nothing,
since the gradient of its input needs the weight alone; one with an adapter, or whose weight trains, keeps its input.
Attention never holds its scores (FlashAttention, arXiv 2205.14135; manytune's packed attention). For a token and a
layer:

    norms            the hidden state in float32, each; and, if weights of the base train, what they scale
    attention        queries, keys, values and the result
    MLP              3 inner sizes where it is gated: both projections and the activated one
    an adapter       the inputs of the layers that it adapts, once each, and its own small ones
"""

from __future__ import annotations

from dataclasses import dataclass

from manytune.methods.tuners.sizes import Trained
from manytune.planner.architecture import Architecture

# transformers computes GPT-2's activation from single operations, each of which keeps its input.
_ACTIVATION_COPIES = {"gpt2": 4}


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes a token.

    Attributes:
        layer: What one layer keeps.
        boundary: A layer's input, which is all that stays of it with gradient checkpointing.
        gradients: Gradients of one layer on their way back, which live for a moment.
    """

    layer: float
    boundary: float
    gradients: float

    def kept(self, layers: int, *, checkpointing: bool) -> float:
        """Bytes that a token takes when the backward pass begins; checkpointing: Chen et al., arXiv 1604.06174."""
        if checkpointing:
            return layers * self.boundary + self.layer
        return layers * self.layer


def activation_bytes(model: Architecture, trained: Trained, *, size: float) -> ActivationBytes:
    """What a token takes.

    Args:
        model: The model.
        trained: What the method trains.
        size: Bytes of a number of a hidden state.
    """
    hidden, inner = model.hidden, model.inner * max(1, model.experts_used)
    queries, keys = model.heads * model.head_dim, model.key_heads * model.head_dim
    norm_size = size if model.family.layer_norm else max(size, 4)
    norms = model.family.norms * hidden * norm_size
    if model.family.head_norms != "none":
        norms += (queries + keys) * norm_size
    if trained.whole:
        norms += model.family.norms * hidden * size
    activated = 3 * inner if model.family.gated else _ACTIVATION_COPIES.get(model.model_type, 1) * inner
    inputs = {"attention": hidden, "heads": 0, "mlp": hidden, "inner": inner}  # heads' input is kept already
    saved = sum(inputs[name] for name in trained.saved_inputs) + trained.saved_numbers
    return ActivationBytes(
        layer=norms + (2 * queries + 2 * keys + activated + saved) * size,
        boundary=hidden * size,
        gradients=(2 * inner + 2 * hidden) * size,
    )
