"""A method's terms: what one adapter is to whatever runs, merges, exports or accounts for it without its method.

At one layer that computes W x + b, an adapter makes of an input x

    y = c ⊙ (W (a ⊙ x) + b) + d + U φ(D z + e) + f

where z is x, y itself, or the input of another layer. An embedding table is such a layer, with x one-hot; a norm is one
with the identity for W. In a mixture of experts a router computes with W + s U D, and each grouped expert e with
W[e] + s U[e] D[e]. Outside of layers an adapter has virtual tokens that are read before the prompt, or keys and
values that are in the cache before it. Each method uses some of these terms; one that needs more says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor, nn

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
        """Identifies its content."""

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
class ParameterUpdate:
    """s U D added to a parameter that no linear layer holds: a router's matrix, or grouped experts' matrices.

    Attributes:
        down: D, (rank, in), or one of each expert, (experts, rank, in).
        up: U, (out, rank), or (experts, out, rank).
        scaling: s.
    """

    down: Tensor
    up: Tensor
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        """Between D and U."""
        return int(self.up.shape[-1])


@dataclass(frozen=True)
class Terms:
    """One adapter.

    Attributes:
        updates: U, D, e and f by path of their layer.
        activation: Name of φ; None for the identity.
        reads_output: Whether z is the layer's own output.
        factors: a, c and d by path of their layer.
        embeddings: Virtual tokens that are read before the prompt, (tokens, hidden), or None.
        prefix: Keys and values that come before it in each layer, (layers, 2, heads, tokens, head size), or None.
        parameters: What is added to routers and grouped experts, by path of the parameter.
    """

    updates: Mapping[str, Update] = field(default_factory=dict)
    activation: str | None = None
    reads_output: bool = False
    factors: Mapping[str, Factors] = field(default_factory=dict)
    embeddings: Tensor | None = None
    prefix: Tensor | None = None
    parameters: Mapping[str, ParameterUpdate] = field(default_factory=dict)

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


class TermsError(ConfigError):
    """An adapter, or something in it, can't be written in terms, or doesn't fit the base that it is to run on."""


#: What can be done with an adapter that has no terms.
INSTEAD = "Use it attached to a model of its own (PeftModel.from_pretrained), or generate with generate_batch there."


def joined(parts: Iterable[Terms]) -> Terms:
    """The terms of an adapter that does several things, such as one for each layer.

    A layer has one update. It may have factors twice if one of the two only shifts: the shifts add up.

    Raises:
        TermsError: Two parts want the same place, or updates with and without a nonlinearity.
    """
    updates: dict[str, Update] = {}
    factors: dict[str, Factors] = {}
    parameters: dict[str, ParameterUpdate] = {}
    kinds: set[tuple[str | None, bool]] = set()
    before: dict[str, Tensor] = {}
    for part in parts:
        if part.updates:
            kinds.add((part.activation, part.reads_output))
        for path, update in part.updates.items():
            if path in updates:
                raise TermsError(f"{path}: the adapter has two updates for one layer. {INSTEAD}")
            updates[path] = update
        parameters.update(part.parameters)
        for path, own in part.factors.items():
            factors[path] = _both(path, factors[path], own) if path in factors else own
        for name, value in (("embeddings", part.embeddings), ("prefix", part.prefix)):
            if value is not None and name in before:
                raise TermsError(f"the adapter has two soft prompts, and one can be read. {INSTEAD}")
            if value is not None:
                before[name] = value
    if len(kinds) > 1:
        raise TermsError(
            "the adapter has updates with a nonlinearity and others without one, such as bottleneck layers and a "
            f"module trained in full (modules_to_save); all updates of an adapter have one form. {INSTEAD}"
        )
    activation, reads_output = kinds.pop() if kinds else (None, False)
    soft = before.get("embeddings"), before.get("prefix")
    return Terms(updates, activation, reads_output, factors, *soft, parameters)


def _both(path: str, first: Factors, second: Factors) -> Factors:
    if second.inputs is not None or second.outputs is not None:
        first, second = second, first
    if second.inputs is not None or second.outputs is not None:
        raise TermsError(f"{path}: the adapter scales one layer twice. {INSTEAD}")
    shifts = [one.shift for one in (first, second) if one.shift is not None]
    return replace(first, shift=sum(shifts[1:], shifts[0]) if shifts else None)
