"""A base's layers, computed with adapters' terms for the time of a forward.

Outside of a forward the model is what it was. A layer where no token has an adapter isn't touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from manytune.layer_forwards import replaced_forwards
from manytune.methods.tuners.targets import base_of
from manytune.mixed.own_updates import OwnUpdate
from manytune.mixed.stacks import LayerTerms
from manytune.mixed.updates import Product

#: What computes a layer; a tensor, except for routers, which give several.
Forward = Callable[..., Any]


class MixedLayers:
    """The layers of a base.

    Args:
        modules: The base's modules by path.
        forwards: What computes some of them in place of their class's `forward`, by path: reordered weights, or the
            layer that an adapter layer is wrapped around.
        prepare: What is done to a layer's input first; the same object if there is nothing to do.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        forwards: Mapping[str, Forward],
        *,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._modules = modules
        self._forwards = forwards
        self._prepare = prepare
        self._terms: Mapping[str, LayerTerms] | None = None
        self._installed: dict[nn.Module, Forward] = {}
        self._inputs: dict[str, Tensor] = {}  # what layers read that others' adapters need

    @contextmanager
    def applied(self, terms: Mapping[str, LayerTerms]) -> Iterator[None]:
        """Within this context the layers compute the terms, too."""
        if terms is not self._terms:
            self._terms = terms
            self._installed = self._with_terms(terms)
        with replaced_forwards(self._installed):
            try:
                yield
            finally:
                self._inputs.clear()

    def _with_terms(self, terms: Mapping[str, LayerTerms]) -> dict[nn.Module, Forward]:
        paths: dict[str, LayerTerms] = dict(terms)
        sources = {p.source for one in terms.values() for p in one.products if p.source is not None}
        for source in sources:
            paths.setdefault(source, LayerTerms())
        forwards = dict(self._forwards)
        for path, own in paths.items():
            forwards[path] = self._forward(path, own, keeps=path in sources)
        return {self._modules[path]: forward for path, forward in forwards.items()}

    def _forward(self, path: str, terms: LayerTerms, *, keeps: bool) -> Forward:
        module = self._modules[path]
        base: Forward = self._forwards.get(path) or type(module).forward.__get__(module)
        if terms.parameters is not None:
            return terms.parameters.forward(base_of(module), base)
        products, rescalings, inputs, prepare = terms.products, terms.rescalings, self._inputs, self._prepare
        if not rescalings and not keeps and all(_reads_input(product) for product in products):

            def with_updates(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                if prepare is not None:
                    x = prepare(x)
                y, rows = _rows(base(x, *args, **kwargs))
                for product in products:
                    product.add(x, rows)
                return y

            return with_updates

        def general(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if prepare is not None:
                x = prepare(x)
            if keeps:
                inputs[path] = x
            scaled = x
            for rescaling in rescalings:
                scaled = rescaling.before(scaled)
            y, rows = _rows(base(scaled, *args, **kwargs))
            for rescaling in rescalings:
                rescaling.after(rows)
            for product in products:
                z = rows if product.reads_output else x if product.source is None else inputs[product.source]
                product.add(z, rows)
            return y

        return general


def _rows(y: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's result, (..., out), and its rows, (tokens, out), in the same memory."""
    if y.dim() == 2:
        return y, y
    if y.dim() == 3 and y.shape[0] == 1:
        return y, y[0]
    try:
        return y, y.view(-1, y.shape[-1])
    except RuntimeError:  # rows that aren't evenly spaced
        y = y.contiguous()
        return y, y.view(-1, y.shape[-1])


def _reads_input(product: Product | OwnUpdate) -> bool:
    return not product.reads_output and product.source is None
