"""The part of a recipe's data section that says how several tasks are mixed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from manytune.data.mixing import Strategy
from manytune.data.section import Number, Section


class MixingRecipe(Section):
    """How often each of several tasks comes up."""

    strategy: Strategy = "proportional"
    """`proportional` to the tasks' sizes, to their roots (`temperature`), or `explicit`: the tasks' weights."""
    cap: Annotated[int, Field(ge=1)] | None = None
    """The most examples that a task counts for; null for no limit."""
    temperature: Annotated[Number, Field(ge=1)] | None = None
    """With the strategy of this name: 1 is proportional, a higher one brings the shares closer together."""
