"""The linear module that A and B are."""

from __future__ import annotations

import math

from torch import nn


class Factor(nn.Linear):
    """A linear layer that starts as any fresh `torch.nn.Linear`, at a fraction of the bookkeeping.

    A model has hundreds of factors, and drawing them the long way took a third of an attachment's time. The
    values drawn are those that `torch.nn.Linear` draws from the same random state: U(±1/√in).
    """

    def reset_parameters(self) -> None:
        """Draw the weight, and the bias if there is one."""
        draw_fresh(self)


def draw_fresh(module: nn.Module) -> None:
    """Draw a linear layer's weight anew from U(±1/√in): Kaiming-uniform with a = √5, bit for bit."""
    weight = module.get_parameter("weight")
    fan_in = weight.shape[1]
    # The order of these operations is that of torch.nn.init.kaiming_uniform_, so that the last bit agrees, too.
    bound = math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(fan_in))
    weight.data.uniform_(-bound, bound)
    if module.bias is not None:
        bound = 1 / math.sqrt(fan_in)
        module.bias.data.uniform_(-bound, bound)  # type: ignore[operator]
