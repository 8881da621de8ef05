"""A mistake that a newcomer makes, as a few files and a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RECIPE = """\
base: base
data:
  train: train.csv
  validation: null
  prompt: "{{ question }}"
  completion: "{{ answer }}"
training:
  max_steps: 1
  device: cpu
"""
"""What works, next to `train.csv`, the tiny base, the store `adapters` and the run `runs/done`."""


@dataclass(frozen=True)
class Mistake:
    """One row of the page.

    Attributes:
        what: The mistake, as the page says it.
        next_step: The part of the message that says what to do.
        command: What is typed after `manytune`.
        files: Files that are written first, by their names.
        recipe: Texts that are replaced in the recipe that works.
        environment: Variables that are set.
        disk: The error that the disk reports: when something is flushed to it, or when a directory is made.
    """

    what: str
    next_step: str
    command: str = "train recipe.yaml"
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    recipe: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    disk: int | None = None


@dataclass(frozen=True)
class Asked:
    """A mistake in a request to a server.

    Attributes:
        what: The mistake.
        next_step: The part of the message that says what to do.
        body: What is asked, at /v1/chat/completions; None to ask for the admin's list of adapters.
        key: The API key; None for none.
    """

    what: str
    next_step: str
    body: Mapping[str, object] | None
    key: str | None = "secret"
