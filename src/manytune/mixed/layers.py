"""The base's linear layers, computed with the adapters' terms for the time of a forward.

A layer gets another `forward` in its own dictionary, which torch calls in place of its class's, and loses it again
after the forward: outside of the engine's steps the model is what it was. A layer where no token has an adapter isn't
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from manytune.mixed.products import Product
from manytune.mixed.slots import LayerTerms

#: What computes a layer.
Forward = Callable[[Tensor], Tensor]


class AdaptedLayers:
    """The linear layers of a base.

    Args:
        model: The base.
        packed: Forwards to use in place of layers' own, by path.
    """

    def __init__(self, model: nn.Module, packed: Mapping[str, Forward]) -> None:
        self._modules = dict(model.named_modules())
        self._packed = packed
        self._terms: Mapping[str, LayerTerms] | None = None
        self._installed: list[tuple[dict[str, object], Forward]] = []
        self._inputs: dict[str, Tensor] = {}  # what layers read that others' adapters need

    @contextmanager
    def applied(self, terms: Mapping[str, LayerTerms]) -> Iterator[None]:
        """Within this context the layers compute the terms, too."""
        if terms is not self._terms:
            self._terms = terms
            self._installed = self._forwards(terms)
        for attributes, forward in self._installed:
            attributes["forward"] = forward
        try:
            yield
        finally:
            for attributes, _ in self._installed:
                del attributes["forward"]
            self._inputs.clear()

    def _forwards(self, terms: Mapping[str, LayerTerms]) -> list[tuple[dict[str, object], Forward]]:
        paths: dict[str, LayerTerms] = dict(terms)
        sources = {p.source for one in terms.values() for p in one.products if p.source is not None}
        for source in sources:
            paths.setdefault(source, LayerTerms())
        forwards = dict(self._packed)
        for path, own in paths.items():
            forwards[path] = self._forward(path, own, keeps=path in sources)
        return [(self._modules[path].__dict__, forward) for path, forward in forwards.items()]

    def _forward(self, path: str, terms: LayerTerms, *, keeps: bool) -> Forward:
        module = self._modules[path]
        base: Forward = self._packed.get(path) or type(module).forward.__get__(module)
        products, inputs = terms.products, self._inputs
        if not terms.rescalings and not keeps and all(_reads_input(product) for product in products):

            def adapted(x: Tensor) -> Tensor:
                y = base(x)
                for product in products:
                    product.add(x, y)
                return y

            return adapted

        def general(x: Tensor) -> Tensor:
            if keeps:
                inputs[path] = x
            scaled = x
            for rescaling in terms.rescalings:
                scaled = rescaling.before(scaled)
            y = base(scaled)
            for rescaling in terms.rescalings:
                rescaling.after(y)
            for product in products:
                z = y if product.reads_output else x if product.source is None else inputs[product.source]
                product.add(z, y)
            return y

        return general


def _reads_input(product: Product) -> bool:
    return not product.reads_output and product.source is None
