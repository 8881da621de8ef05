"""What an engine reports about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What an engine has done, and how it stands.

    Attributes:
        steps: Forwards.
        prompt_tokens: Tokens of prompts that were read.
        cached_tokens: Tokens of prompts that came from cached prefixes.
        completion_tokens: Tokens chosen.
        finished: Requests that ended by themselves.
        cancelled: Requests that were cancelled.
        waiting: Requests that wait.
        running: Requests that run.
        kv_tokens: Tokens in the cache of the running ones.
        kv_budget_tokens: What it has room for.
        adapters: Known adapters.
        adapters_in_slots: Those whose weights are in slots.
        prefix_tokens: Tokens kept for prompts to come.
    """

    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finished: int
    cancelled: int
    waiting: int
    running: int
    kv_tokens: int
    kv_budget_tokens: int
    adapters: int
    adapters_in_slots: int
    prefix_tokens: int
