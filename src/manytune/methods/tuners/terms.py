"""A method's terms: what one adapter is to whatever runs, merges, exports or accounts for it without its method.

At one layer that computes W x + b, an adapter makes of an input x

    y = c ⊙ (W (a ⊙ x) + b) + d + U φ(D z + e) + f

where z is x, y itself, or the input of another layer. An embedding table is such a layer, with x one-hot; a norm is one
with the identity for W. Outside of layers an adapter has virtual tokens that are read before the prompt, or keys and
values that stand in the cache before it. Each method uses some of these terms; one that needs more says so.
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

#: The functions φ by the names that configurations give them.
NONLINEARITIES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Adapter(Protocol):
    """An adapter in memory, as `manytune.store.resident.ResidentAdapter` is one. Nothing in it may change."""

    @property
    def digest(self) -> str:
        """The hash of its content."""

    @property
    def config(self) -> PeftConfig:
        """Its options."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors, by their names in HF PEFT's file."""


@dataclass(frozen=True)
class Update:
    """U φ(D z + e) + f at one layer.

    Attributes:
        down: D, (rank, in); None for the identity, so that U is a whole weight, (out, in).
        up: U, (out, rank); to be multiplied by `scaling`.
        scaling: Of U and f.
        down_bias: e, (rank,), or None.
        up_bias: f, (out,), or None.
        source: Path of the layer whose input is z; None for this layer.
        lookup: Whether the layer is an embedding table, so that z are ids and D z is a look-up of D's columns.
    """

    down: Tensor | None
    up: Tensor
    scaling: float = 1.0
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None
    source: str | None = None
    lookup: bool = False

    @property
    def rank(self) -> int:
        """Between D and U."""
        return int(self.up.shape[1])

    @property
    def inputs(self) -> int:
        """Numbers that z has at a position."""
        return int(self.up.shape[1] if self.down is None else self.down.shape[1])

    @property
    def outputs(self) -> int:
        """Numbers that y has at a position."""
        return int(self.up.shape[0])


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
class Terms:
    """One adapter.

    Attributes:
        updates: U, D, e and f by path of their layer.
        activation: Name of φ; None for the identity.
        reads_output: Whether z is the layer's own output.
        factors: a, c and d by path of their layer.
        embeddings: Virtual tokens that are read before the prompt, (tokens, hidden), or None.
        prefix: Keys and values that stand before it in each layer, (layers, 2, heads, tokens, head size), or None.
    """

    updates: Mapping[str, Update] = field(default_factory=dict)
    activation: str | None = None
    reads_output: bool = False
    factors: Mapping[str, Factors] = field(default_factory=dict)
    embeddings: Tensor | None = None
    prefix: Tensor | None = None

    @property
    def virtual_tokens(self) -> int:
        """How many positions it takes before the prompt."""
        read = 0 if self.embeddings is None else self.embeddings.shape[0]
        return read + (0 if self.prefix is None else self.prefix.shape[3])

    @property
    def is_linear(self) -> bool:
        """Whether it is an update of weights and biases, so that it can be merged."""
        plain = self.activation is None and not self.reads_output and not self.virtual_tokens
        return plain and all(update.source is None for update in self.updates.values())


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
