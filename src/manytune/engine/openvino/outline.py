"""What adapters do in a converted graph: the updates and factors that it has inputs for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class UpdateInput:
    """An update that some adapters have at one layer.

    Attributes:
        path: The layer.
        activation: Name of φ; empty for the identity.
        reads_output: Whether z is the layer's own output.
        source: Path of the layer whose input is z; empty for this one.
        has_bias: Whether there is e.
        inputs: Size of z.
        outputs: Size of y.
    """

    path: str
    activation: str
    reads_output: bool
    source: str
    has_bias: bool
    inputs: int
    outputs: int

    def name(self, part: str) -> str:
        """The name of an input of the graph: `down`, `up` or `bias`."""
        form = "-".join((self.activation, "y" if self.reads_output else "x", self.source))
        return f"{part} {self.path} {form}"


@dataclass(frozen=True, order=True)
class FactorInput:
    """Factors that some adapters have at one layer.

    Attributes:
        path: The layer.
        kind: `inputs`, `outputs`, `shift` or `added`: a, c, d or f.
        size: How many.
    """

    path: str
    kind: str
    size: int

    @property
    def name(self) -> str:
        """The name of an input of the graph."""
        return f"{self.kind} {self.path}"


@dataclass(frozen=True)
class Outline:
    """What adapters do in a graph."""

    updates: frozenset[UpdateInput] = frozenset()
    factors: frozenset[FactorInput] = frozenset()

    @property
    def ordered(self) -> tuple[UpdateInput, ...]:
        """The updates in the order of their numbers."""
        return tuple(sorted(self.updates))

    def __or__(self, other: Outline) -> Outline:
        return Outline(self.updates | other.updates, self.factors | other.factors)

    def __le__(self, other: Outline) -> bool:
        return self.updates <= other.updates and self.factors <= other.factors
