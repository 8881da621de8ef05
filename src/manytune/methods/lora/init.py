"""How A and B start."""

from __future__ import annotations

import math

from torch import nn


def initialise(lora_a: nn.Module, lora_b: nn.Module, *, r: int, init: bool | str) -> None:
    """Set the factors of a linear layer so that, unless `init` is False, BA = 0.

    Args:
        lora_a: Module with weight (r, in).
        lora_b: Module with weight (out, r).
        r: The rank.
        init: True: A Kaiming-uniform with a = √5, that is U(±1/√in), as a fresh linear layer; B zero.
            `"gaussian"`: A from a normal distribution with standard deviation 1/r; B zero. False: both as
            fresh linear layers.
    """
    if init is False:
        return
    weight = lora_a.get_parameter("weight")
    if isinstance(init, str) and init.lower() == "gaussian":
        nn.init.normal_(weight, std=1.0 / r)
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    nn.init.zeros_(lora_b.get_parameter("weight"))
    if "bias" in dict(lora_b.named_parameters()):
        nn.init.zeros_(lora_b.get_parameter("bias"))
