"""Which triplets of AdaLoRA are worth their place.

A number's sensitivity is |w · ∂loss/∂w|: about what the loss would gain or lose without it. Single batches say little,
so both it and its deviation from its average are averaged over the steps, and a number's importance is the product of
the two averages. A triplet's importance is that of its E, plus the means over its row of A and its column of B.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError
from manytune.methods.adalora.config import AdaLoraConfig

#: The parameters `lora_A`, `lora_E` and `lora_B` of one layer.
Triplets = Mapping[str, nn.Parameter]


def budget_at(config: AdaLoraConfig, step: int, *, layers: int) -> int:
    """How many triplets the whole model may have after a step: b₁ + (b₀ - b₁) (1 - t)³, with t from 0 to 1."""
    first, last = config.init_r * layers, config.target_r * layers
    if step <= config.tinit:
        return first
    left = 1 - (min(step, config.final_step) - config.tinit) / (config.final_step - config.tinit)
    return int((first - last) * left**3 + last)


class RankAllocator:
    """The running averages of one adapter, and the choice that follows from them.

    Args:
        config: The adapter's options.
    """

    def __init__(self, config: AdaLoraConfig) -> None:
        self._config = config
        # By layer and parameter: average sensitivity, and average deviation from it; of the parameter's shape.
        self.averages: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def observe(self, layers: Mapping[str, Triplets]) -> None:
        """Take in the gradients of a step.

        Raises:
            AdapterError: There are none.
        """
        parameters = {(path, kind): p for path, triplets in layers.items() for kind, p in triplets.items()}
        if all(parameter.grad is None for parameter in parameters.values()):
            raise AdapterError(
                "update_and_allocate needs the gradients of the step: call it after loss.backward() and before "
                "zero_grad()."
            )
        beta1, beta2 = self._config.beta1, self._config.beta2
        for key, parameter in parameters.items():
            zero = torch.zeros_like(parameter)
            # Without a gradient the layer had no part in this step.
            sensitivity = zero if parameter.grad is None else (parameter * parameter.grad).abs()
            average, deviation = self.averages.get(key, (zero, zero))
            average = beta1 * average + (1 - beta1) * sensitivity
            deviation = beta2 * deviation + (1 - beta2) * (sensitivity - average).abs()
            self.averages[key] = average, deviation

    def scores(self, path: str) -> Tensor:
        """The importance of a layer's triplets: (r,)."""
        a, e, b = (
            torch.mul(*self.averages[path, kind]) for kind in ("lora_A", "lora_E", "lora_B")
        )  # (r, in), (r, 1), (out, r)
        return e.flatten() + a.mean(dim=1) + b.mean(dim=0)

    def choose(self, paths: list[str], budget: int) -> dict[str, list[bool]]:
        """The most important triplets of the whole model, by layer; those that equal the first one cut go, too."""
        scores = {path: self.scores(path) for path in paths}
        everything = torch.cat(list(scores.values()))
        surplus = len(everything) - budget
        if surplus <= 0:
            return {path: [True] * len(score) for path, score in scores.items()}
        threshold = everything.kthvalue(surplus).values
        return {path: (score > threshold).tolist() for path, score in scores.items()}
