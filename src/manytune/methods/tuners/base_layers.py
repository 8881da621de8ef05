"""The base's own layers, under whatever is attached to them: what terms are terms of.

A model may carry adapters when an adapter's terms are asked for. Its layers are then found under their wrappers, and
their weights as the base has them, whatever is merged or trained in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.methods.tuners.quantized_layers import dequantized_weight, quantization_backend
from manytune.methods.tuners.terms import INSTEAD, TermsError


class Wrapper(nn.Module, ABC):
    """A module that has taken the place of one of the base's."""

    #: Whether it carries adapters, rather than copies of the module.
    carries_adapters: ClassVar[bool] = True
    #: The one parameter that it adapts; None if it adapts the module as a whole.
    parameter_name: str | None = None
    #: What HF PEFT's names call the base's module in it.
    name_of_base: ClassVar[str] = "base_layer"
    #: Whether it computes each row of its input by itself, so that it may be run on some of them.
    row_wise: ClassVar[bool] = True

    @property
    @abstractmethod
    def wrapped(self) -> nn.Module:
        """The module that this one has taken the place of."""

    def pristine(self, name: str) -> Tensor:
        """A parameter of `wrapped` as the base has it; not to be changed."""
        return self.wrapped.get_parameter(name).data


def unwrapped(module: nn.Module) -> nn.Module:
    """The base's own module under whatever has taken its place, or the module itself."""
    while isinstance(module, Wrapper):
        module = module.wrapped
    return module


@dataclass(frozen=True, eq=False)
class BaseLayer:
    """One layer of the base.

    Attributes:
        path: Where it is in the base.
        module: The base's module.
        wrapper: What has taken its place, if anything has.
        parent: The module that it is in.
        kept: Values of the base for parameters that are trained in place.
    """

    path: str
    module: nn.Module
    wrapper: Wrapper | None
    parent: nn.Module | None
    kept: Mapping[nn.Parameter, Tensor]

    def value(self, name: str) -> Tensor | None:
        """One of its own parameters as the base has it, or None; not to be changed."""
        parameter = self.module._parameters.get(name)
        if parameter is None:
            return None
        if parameter in self.kept:
            return self.kept[parameter]
        return parameter.detach() if self.wrapper is None else self.wrapper.pristine(name).detach()

    @property
    def is_linear(self) -> bool:
        """Whether it is `torch.nn.Linear` or transformers' `Conv1D`, packed or not, and is called."""
        called = not isinstance(self.parent, nn.MultiheadAttention)
        return called and isinstance(self.module, (nn.Linear, Conv1D))

    @property
    def is_embedding(self) -> bool:
        """Whether it looks up rows of a table, which it leaves as they are."""
        return isinstance(self.module, nn.Embedding) and self.module.max_norm is None

    @property
    def inputs(self) -> int:
        """Number of inputs of a linear layer, or rows of an embedding table."""
        return self._sizes[0]

    @property
    def outputs(self) -> int:
        """Number of outputs of a linear layer, or of an embedding."""
        return self._sizes[1]

    @property
    def _sizes(self) -> tuple[int, int]:
        module = self.module
        if isinstance(module, nn.Embedding):
            return module.num_embeddings, module.embedding_dim
        return linear_sizes(module)

    @property
    def weight(self) -> Tensor:
        """W of a linear layer or an embedding as (out, in), unpacked, at least in float32; not to be changed."""
        if quantization_backend(self.module):
            weight = dequantized_weight(self.module)
        else:
            found = self.value("weight")
            assert found is not None
            weight = found.t() if isinstance(self.module, (Conv1D, nn.Embedding)) else found
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    @property
    def embed_scale(self) -> float:
        """What an embedding multiplies the rows by that it looks up, as Gemma's does."""
        scale = getattr(self.module, "embed_scale", None)
        return 1.0 if scale is None else float(scale)

    def require_linear(self) -> None:
        """Refuse a layer that isn't linear.

        Raises:
            TermsError: It isn't one.
        """
        if not self.is_linear:
            within = ", which torch.nn.MultiheadAttention never calls" if self.parent_is_attention else ""
            raise TermsError(
                f"the adapter has weights for {self.path!r} ({type(self.module).__name__}{within}); what it does there "
                f"has no terms, which are for torch.nn.Linear and transformers' Conv1D. {INSTEAD}"
            )

    @property
    def parent_is_attention(self) -> bool:
        """Whether it is within `torch.nn.MultiheadAttention`."""
        return isinstance(self.parent, nn.MultiheadAttention)

    def require_tensors(
        self, tensors: Mapping[str, Tensor], needed: Sequence[str], optional: Sequence[str] = ()
    ) -> None:
        """Refuse an adapter that lacks a tensor for this layer, or has others.

        Raises:
            TermsError: It does.
        """
        if not set(needed) <= set(tensors) <= {*needed, *optional}:
            raise TermsError(
                f"{self.path}: expected {' and '.join(needed)}, found {', '.join(sorted(tensors))}. Is the file whole, "
                "and are adapter_config.json's options those that it was trained with?"
            )

    def require_shape(self, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
        """Refuse a tensor that doesn't fit this layer.

        Raises:
            TermsError: Its shape isn't the expected one.
        """
        require_shape(self.path, name, tensor, expected)


def is_routed(path: str) -> bool:
    """Whether a layer is within one of several experts that aren't grouped, so that it sees some tokens alone."""
    if "experts" not in path:  # as in most: this is asked for each adapter of each layer at each call
        return False
    return "experts" in [name for name in path.split(".") if name != "base_layer"][:-1]


def refuse_routed(path: str) -> None:
    """Refuse a layer of `is_routed`.

    Raises:
        TermsError: It is one.
    """
    if is_routed(path):
        raise TermsError(
            f"the adapter has weights for {path!r}, which sees only the tokens that are routed to its expert, so those "
            f"of several adapters can't be distinguished there. {INSTEAD}"
        )


def linear_sizes(layer: nn.Module) -> tuple[int, int]:
    """The numbers of inputs and outputs of `torch.nn.Linear`, packed or not, or transformers' `Conv1D`."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    rows, columns = layer.get_parameter("weight").shape
    return rows, columns


def require_shape(where: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a tensor that doesn't fit the base.

    Raises:
        TermsError: Its shape isn't the expected one.
    """
    if tuple(tensor.shape) != expected:
        raise TermsError(
            f"{where}: {name} has shape {tuple(tensor.shape)}, expected {expected}. Was the adapter trained on another "
            "base, or with other options?"
        )


class BaseLayers:
    """The layers of a base by their path in it.

    Args:
        model: The base, with or without adapters attached.
        kept: Values of the base for parameters that are trained in place; the others' are the present ones.
    """

    def __init__(self, model: nn.Module, kept: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        self.model = model
        self._kept = kept or {}

    def at(self, path: str) -> BaseLayer:
        """The layer of a path; wrappers in the path, as in HF PEFT's names of biases, are skipped.

        Raises:
            TermsError: There is none.
        """
        layer = self._layer("", self.model, None)
        for name in path.split(".") if path else ():
            child = layer.module._modules.get(name)
            if child is not None:
                layer = self._layer(f"{layer.path}.{name}".lstrip("."), child, layer.module)
            elif name != "base_layer":
                raise TermsError(
                    f"the adapter has weights for {path!r}, and {type(self.model).__name__} has no such layer. Was it "
                    "trained on another base?"
                )
        refuse_routed(layer.path)
        return layer

    def under(self, wrapper: Wrapper, path: str) -> BaseLayer:
        """The layer that a wrapper at this path has the place of; the same as `at`, without a search."""
        refuse_routed(path)
        return BaseLayer(path, wrapper.wrapped, wrapper, None, self._kept)

    def __iter__(self) -> Iterator[BaseLayer]:
        """Each layer once, by its first path."""
        seen: set[nn.Module] = set()
        stack = [self._layer("", self.model, None)]
        while stack:
            layer = stack.pop()
            if layer.module in seen:
                continue
            seen.add(layer.module)
            yield layer
            children = [
                self._layer(f"{layer.path}.{name}".lstrip("."), child, layer.module)
                for name, child in layer.module._modules.items()
                if child is not None
            ]
            stack.extend(reversed(children))

    def holders(self, layer: BaseLayer, name: str) -> list[tuple[BaseLayer, str]]:
        """All layers that hold a parameter, with what they call it: several for tied weights."""
        parameter = layer.module._parameters.get(name)
        return [] if parameter is None else self.holding(parameter)

    def holding(self, parameter: nn.Parameter) -> list[tuple[BaseLayer, str]]:
        """All layers that hold a parameter, with what they call it; none if it isn't the base's."""
        return self._holders.get(parameter, [])

    @cached_property
    def _holders(self) -> dict[nn.Parameter, list[tuple[BaseLayer, str]]]:
        found: dict[nn.Parameter, list[tuple[BaseLayer, str]]] = {}
        for layer in self:
            for name, parameter in layer.module._parameters.items():
                if parameter is not None:
                    found.setdefault(parameter, []).append((layer, name))
        return found

    def _layer(self, path: str, module: nn.Module, parent: nn.Module | None) -> BaseLayer:
        wrapper = None
        while isinstance(module, Wrapper):
            wrapper, module = module, module.wrapped
        return BaseLayer(path, module, wrapper, parent, self._kept)


class AsksBase(nn.Module):
    """Mixed into an adapter layer that is asked for its base layer's attributes, which it then gives.

    torch's transformer layers ask their attention for sizes, weights and masks, and mixtures of experts their experts
    and routers for sizes and biases.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "base_layer" not in self._modules:
                raise
            return getattr(self.base_layer, name)
