"""What an engine reports about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What an engine has done so far, and its present state.

    Attributes:
        steps: Forwards.
        prompt_tokens: Prompt tokens that were computed.
        cached_tokens: Prompt tokens that were taken from cached prefixes.
        completion_tokens: Tokens generated.
        finished: Requests that ended without being cancelled.
        cancelled: Requests that were cancelled.
        waiting: Requests in the queue.
        running: Requests in the batch.
        kv_tokens: Tokens of running requests in the KV cache.
        kv_budget_tokens: Capacity of the KV cache.
        adapters: Registered adapters.
        adapters_in_slots: Adapters whose weights are in slots.
        prefix_tokens: Tokens in the prefix cache.
        drafted_tokens: Tokens of answers that were guessed and read by a forward before they were chosen.
        accepted_tokens: How many of them were chosen then.
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
    drafted_tokens: int = 0
    accepted_tokens: int = 0
