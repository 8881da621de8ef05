"""Bottleneck adapters' sizes; see `BottleneckConfig`."""

from __future__ import annotations

from typing import Literal

from manytune.methods.tuners.sizes import Count, MethodSizes, ModelSizes, Product, Trained, register_sizes


class BottleneckSizes(MethodSizes):
    """D (bottleneck × hidden) and U (hidden × bottleneck), each with a bias, once or twice a layer."""

    name: Literal["bottleneck"] = "bottleneck"
    """The method."""
    bottleneck_size: Count = 64
    """The size between D and U."""
    style: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """Where they are: `houlsby` has them behind attention and MLP, the others once a layer."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        size, in_a_layer = self.bottleneck_size, 2 if self.style == "houlsby" else 1
        networks = Product(size, model.hidden, model.hidden, in_a_layer * model.layers, biased=True)
        return Trained(
            label=f"bottleneck ({self.style}), {size} wide",
            parameters=networks.numbers,
            kept=networks.numbers,
            products=(networks,),
            saved_numbers=in_a_layer * (model.hidden + 2 * size),
        )


register_sizes(BottleneckSizes)
