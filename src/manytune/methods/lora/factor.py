"""The linear modules that A and B are, and their random start.

A fresh `torch.nn.Linear` draws its weight; LoRA then draws A again and sets B to zero. HF PEFT does both, so its users'
seeds lead to the second draw. The first draw's values are never seen: here the random state is only moved past them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError

_WORDS_A_NUMBER = {torch.float32: 1, torch.float64: 2}


class Factor(nn.Linear):
    """A linear layer whose weight isn't set yet; `torch.nn.Linear` less the bookkeeping of hundreds of factors.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether there is one.
        training: The mode to be in.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, training: bool) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(in_features=in_features, out_features=out_features, training=training)
        # As register_parameter does it, less its questions about names and kinds.
        self._parameters["weight"] = _frozen(torch.empty(out_features, in_features))
        self._parameters["bias"] = _frozen(torch.empty(out_features)) if bias else None


def _frozen(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def require_values(weight: Tensor) -> None:
    """Refuse to compute with a weight that has no values: torch gives some all the same, or leaves them out.

    Raises:
        AdapterError: It is on the meta device.
    """
    if weight.is_meta:
        raise AdapterError(
            "The adapter has no values yet: it was made with low_cpu_mem_usage=True, for a checkpoint to bring them. "
            "Load one with load_adapter() or set_peft_model_state_dict()."
        )


def draw_fresh(module: nn.Linear) -> None:
    """Draw what a fresh linear layer has: U(±1/√in), which is Kaiming-uniform with a = √5, bit for bit."""
    weight = module.weight
    fan_in = weight.shape[1]
    # The order of these operations is that of torch.nn.init.kaiming_uniform_, so that the last bit agrees, too.
    bound = math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(fan_in))
    weight.data.uniform_(-bound, bound)
    if module.bias is not None:
        bound = 1 / math.sqrt(fan_in)
        module.bias.data.uniform_(-bound, bound)


def skip_draws(*modules: nn.Linear) -> None:
    """Leave torch's random state as `draw_fresh` of these modules would, in half the time."""
    weights = [
        p for module in modules for p in module._parameters.values() if p is not None and not p.is_meta
    ]
    words = {_WORDS_A_NUMBER.get(parameter.dtype) for parameter in weights}
    if words not in ({1}, {2}):
        for module in modules:
            draw_fresh(module)
        return
    # On a CPU a number takes one 32-bit word of the generator, a float64 two, and so does an int64.
    count = sum(parameter.numel() for parameter in weights) * words.pop()  # type: ignore[operator]
    torch.empty(count // 2, dtype=torch.int64).random_()
    if count % 2:
        torch.empty(1, dtype=torch.float32).uniform_()
