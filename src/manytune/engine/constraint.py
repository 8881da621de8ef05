"""What an answer must look like, as the engine knows it: which tokens may come next. `constraints/` makes them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Matcher(Protocol):
    """One answer under a constraint, token by token. Its methods must not run in two threads at once."""

    def allowed(self) -> Tensor:
        """Which tokens may come next, (vocabulary,), bool; end tokens aren't among them.

        None is if the answer can only end here, or can't go on because the constraint is too complex at this point.
        """

    def accept(self, token: int) -> None:
        """Append a token that was allowed."""

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is complete."""

    @property
    def must_end(self) -> bool:
        """Whether it is complete, and nothing can follow."""


class Constraint(Protocol):
    """What the answers to a request must look like. It doesn't change, and several threads may use it."""

    def start(self) -> Matcher:
        """A matcher for one answer."""
