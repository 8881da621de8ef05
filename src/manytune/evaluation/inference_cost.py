"""What answering costs: the record of one measurement, and its place next to the cost of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

Form = Literal["base", "merged", "unmerged", "mixed"]
"""The untouched base; an adapter merged into it; one next to it; or several in one batch."""


@dataclass(frozen=True, slots=True)
class InferenceCost:
    """What the engine measured on the test prompts.

    Attributes:
        system: Which system; of `mixed`, all those that were in the batch, separated by commas.
        form: How its adapter was used.
        tokens_per_second: Generated tokens of a full batch, the time for reading its prompts included.
        first_token_seconds: From a prompt to the first token of its answer, in an idle engine; the median.
        memory_bytes: The most memory in use at once: of the GPU, or of the process.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    system: str
    form: Form
    tokens_per_second: float
    first_token_seconds: float
    memory_bytes: int
