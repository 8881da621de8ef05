"""What a method trains, in numbers, without a model: from a model's layer shapes and the options that change sizes.

A method states them in the file `sizes.py` of its folder, which imports neither torch nor transformers, so that what a
training would take can be computed at once. A method without such a file is planned by its number of parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from manytune.errors import ConfigError
from manytune.methods import load_sizes
from manytune.methods.tuners.usual_targets import ALL_LINEAR


@dataclass(frozen=True)
class Matrix:
    """A linear layer of each block: its name, its sizes, whether it has a bias, and the block that it belongs to.

    Attributes:
        name: Its name within a layer.
        inputs: Numbers that it reads for a token.
        outputs: Numbers that it gives.
        bias: Whether it adds one.
        reads: What it reads, `attention`, `heads`, `mlp` or `inner`: matrices that read the same share a saved input.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    reads: str

    @property
    def weights(self) -> int:
        """Numbers of the matrix, without the bias."""
        return self.inputs * self.outputs


class ModelSizes(Protocol):
    """What a method's sizes follow from: a decoder whose layers are of one kind."""

    @property
    def model_type(self) -> str:
        """Its config's `model_type`."""

    @property
    def layers(self) -> int:
        """How many layers there are."""

    @property
    def hidden(self) -> int:
        """Size of a hidden state."""

    @property
    def key_width(self) -> int:
        """Numbers of a token's keys in one layer: heads of keys · size of a head."""

    @property
    def parameters(self) -> int:
        """All numbers; tied ones once."""

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The linear layers of one layer."""

    def named(self, names: Iterable[str]) -> tuple[Matrix, ...]:
        """The linear layers of one layer whose names, or their endings, are given.

        Raises:
            ManytuneError: A name is none of them.
        """


@dataclass(frozen=True)
class Product:
    """Two matrices that a method adds, D (rank × inputs) and U (outputs × rank), as its terms have them.

    Attributes:
        rank: Their common size.
        inputs: Numbers that D reads.
        outputs: Numbers that U gives.
        count: How many such products there are in the model.
        biased: Whether both add a bias.
    """

    rank: int
    inputs: int
    outputs: int
    count: int
    biased: bool = False

    @property
    def weights(self) -> int:
        """Numbers of all the matrices, without biases."""
        return self.count * self.rank * (self.inputs + self.outputs)

    @property
    def numbers(self) -> int:
        """Numbers of all the matrices and biases."""
        return self.weights + (self.count * (self.rank + self.outputs) if self.biased else 0)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a method trains.

    Attributes:
        label: The method in words.
        parameters: Numbers that train.
        kept: Numbers of an adapter's file.
        products: The matrices that it adds, which each token is multiplied with.
        other_numbers: Numbers that its terms have besides: factors, biases, virtual tokens, weights.
        saved_inputs: What its backward pass needs of a block: `attention`, `heads`, `mlp`, `inner`, as `Matrix.reads`.
        saved_numbers: Further numbers that it keeps for a token and block.
        frozen_numbers: Numbers that it adds and doesn't train.
        input_tokens: Virtual tokens before each sequence.
        prefix_tokens: Keys and values before each sequence.
        whole: Whether the base's own weights train.
        copies_base: Whether the base's weights are kept aside.
        saving: The option, as a recipe has it, that would save memory; None if there is none.
        unknown_weights: Numbers that each token may be multiplied with, of a method that says no more.
    """

    label: str
    parameters: int
    kept: int
    products: tuple[Product, ...] = ()
    other_numbers: int = 0
    saved_inputs: frozenset[str] = frozenset()
    saved_numbers: int = 0
    frozen_numbers: int = 0
    input_tokens: int = 0
    prefix_tokens: int = 0
    whole: bool = False
    copies_base: bool = False
    saving: str | None = None
    unknown_weights: int = 0

    @property
    def added_weights(self) -> int:
        """Numbers in matrices that it adds, which each token is multiplied with."""
        return sum(product.weights for product in self.products) + self.unknown_weights


Count = Annotated[int, Field(ge=1, le=1 << 40)]
"""A size: a whole number from 1."""


def _as_targets(value: object) -> object:
    if value is None or value == ALL_LINEAR:
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(
        f"expected {ALL_LINEAR}, or a list of names of linear layers; found "
        f"{str(value)[:100]!r} ({type(value).__name__})"
    )


Targets = Annotated[str | tuple[str, ...] | None, BeforeValidator(_as_targets)]
"""Names of linear layers, or `all-linear`; None for what is usual for the architecture."""


class MethodSizes(BaseModel):
    """A method's options that change sizes, each called and meant as in the method's own config.

    Attributes:
        on_packed: Whether it can train on a base whose weights are packed, as `Method.on_packed`.
        no_checkpointing: Why it can't train with gradient checkpointing; None if it can.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    on_packed: ClassVar[bool] = True
    no_checkpointing: ClassVar[str | None] = None

    name: str
    """The method's name in recipes."""

    @abstractmethod
    def trained(self, model: ModelSizes) -> Trained:
        """What the method trains on a model.

        Raises:
            ManytuneError: A target isn't there, or the method has no default for the model's architecture.
        """


def targets_of(
    asked: str | tuple[str, ...] | None, model: ModelSizes, usual: Mapping[str, Sequence[str]]
) -> tuple[Matrix, ...]:
    """The linear layers of one layer that a method adapts.

    Args:
        asked: The option `target_modules`.
        model: The model.
        usual: The method's defaults, by `model_type`.

    Raises:
        ManytuneError: One of them isn't there, or none is given and the architecture has no default.
    """
    if asked == ALL_LINEAR:
        return model.matrices
    names = usual.get(model.model_type) if asked is None or isinstance(asked, str) else asked
    if names is None:
        raise ConfigError(
            f"target_modules: there is no default for model type {model.model_type!r}. Give {ALL_LINEAR}, or a list of "
            f"names of linear layers: {', '.join(matrix.name for matrix in model.matrices)}."
        )
    return model.named(names)


_SIZES: dict[str, type[MethodSizes]] = {}


def register_sizes(sizes: type[MethodSizes]) -> None:
    """Make a method's sizes known; its name is the default of `MethodSizes.name`.

    Raises:
        ConfigError: The class doesn't say what is trained, or names no method.
    """
    if sizes.__abstractmethods__ or not isinstance(sizes.model_fields["name"].default, str):
        raise ConfigError(
            f"Can't register {sizes.__qualname__}: expected a class with a default for `name` and a method `trained`. "
            "Write both; methods/lora/sizes.py is an example."
        )
    _SIZES[sizes.model_fields["name"].default] = sizes


def method_sizes() -> dict[str, type[MethodSizes]]:
    """The sizes of all methods that state them, by the name that recipes use, in the order of their names."""
    load_sizes()
    return dict(sorted(_SIZES.items()))
