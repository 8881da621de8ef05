"""What an adapter is to a forward that mixes adapters: small products, factors, virtual tokens, keys and values.

At one linear layer with weight W and bias b, an adapter makes of an input x

    y = c ⊙ (W (a ⊙ x) + b) + d + U φ(D z + e) + f

where z is x, or for a bottleneck y itself or the input of another layer. Each method uses some of these terms; methods
become the same few operations, and so share a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import ConfigError
from manytune.methods.config import PeftConfig

#: What every name in an adapter's file begins with, except for virtual tokens.
FILE_PREFIX = "base_model.model."


class Adapter(Protocol):
    """An adapter in memory, as `manytune.store.resident.ResidentAdapter` is one. Nothing in it may change."""

    @property
    def id(self) -> str:
        """The hash of its content."""

    @property
    def config(self) -> PeftConfig:
        """Its options."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors, by their names in HF PEFT's file."""


@dataclass(frozen=True)
class Pair:
    """U φ(D z + e) + f at one layer.

    Attributes:
        down: D, (rank, in).
        up: U, (out, rank); to be multiplied by `scaling`.
        scaling: Of U and f.
        down_bias: e, (rank,), or None.
        up_bias: f, (out,), or None.
        source: Path of the layer whose input is z; None for this layer.
    """

    down: Tensor
    up: Tensor
    scaling: float
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None
    source: str | None = None


@dataclass(frozen=True)
class Factors:
    """a, c and d at one layer; None for none.

    Attributes:
        inputs: a, (in,).
        outputs: c, (out,).
        shift: d, (out,).
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """One adapter.

    Attributes:
        pairs: Small products by path of their layer.
        between: Name of φ; None for the identity.
        reads_output: Whether z is the layer's own output.
        factors: Factors by path of their layer.
        embeddings: Virtual tokens that are read before the prompt, (tokens, hidden), or None.
        prefix: Keys and values that stand before it in each layer, (layers, 2, heads, tokens, head size), or None.
    """

    pairs: Mapping[str, Pair] = field(default_factory=dict)
    between: str | None = None
    reads_output: bool = False
    factors: Mapping[str, Factors] = field(default_factory=dict)
    embeddings: Tensor | None = None
    prefix: Tensor | None = None

    @property
    def virtual_tokens(self) -> int:
        """How many positions it takes before the prompt."""
        read = 0 if self.embeddings is None else self.embeddings.shape[0]
        return read + (0 if self.prefix is None else self.prefix.shape[3])


def by_layer(adapter: Adapter, endings: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """An adapter's tensors by the path of their layer, and there by the ending of their name.

    Raises:
        ConfigError: A tensor is of another kind, such as a module trained in full.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        ending = next((e for e in endings if name.endswith(f".{e}")), None)
        if ending is None or not name.startswith(FILE_PREFIX):
            raise ConfigError(
                f"{adapter.config.peft_type} adapter: {name!r} can't run in a mixed batch, which takes "
                f"{', '.join(endings)} beside linear layers. Merge the adapter into a model of its own, or generate "
                "with generate_batch."
            )
        path = name.removeprefix(FILE_PREFIX).removesuffix(f".{ending}")
        found.setdefault(path, {})[ending] = tensor
    return found


def linear_at(model: nn.Module, path: str) -> nn.Module:
    """The linear layer of a path.

    Raises:
        ConfigError: There is none, or adapters can't run beside it in a mixed batch.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ConfigError(
            f"the adapter has weights for {path!r}, and {type(model).__name__} has no such layer. Was it trained on "
            "another base?"
        ) from None
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(module, (nn.Linear, Conv1D)) or module is head:
        raise ConfigError(
            f"the adapter has weights for {path!r} ({type(module).__name__}); in a mixed batch adapters run beside "
            "linear layers, the language model's head excepted. Merge it into a model of its own."
        )
    return module


def sizes(module: nn.Module) -> tuple[int, int]:
    """The numbers of inputs and outputs of a linear layer."""
    weight = module.get_parameter("weight")
    out, inputs = (weight.shape[1], weight.shape[0]) if isinstance(module, Conv1D) else weight.shape
    return int(inputs), int(out)


def check_shape(path: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a tensor that doesn't fit its layer.

    Raises:
        ConfigError: Its shape isn't the expected one.
    """
    if tuple(tensor.shape) != expected:
        raise ConfigError(
            f"{path}: {name} has shape {tuple(tensor.shape)}, expected {expected}. Was the adapter trained on another "
            "base?"
        )


def weight_of(module: nn.Module) -> Tensor:
    """A linear layer's weight as (out, in), at least in float32."""
    weight = module.get_parameter("weight").detach()
    if isinstance(module, Conv1D):
        weight = weight.t()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
