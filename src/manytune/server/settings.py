"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and behaviour of a server.

    Attributes:
        base_name: The plain base's name in requests.
        max_queue: Answers of one tenant that may wait in addition to as many as run; further ones are refused with 429.
        max_answer_tokens: Largest `max_tokens` of a request, and the limit of an answer without one.
        max_choices: Largest number of answers to one request: prompts times `n`, or models to compare.
        max_body_bytes: Size of the largest request body.
        max_prompt_chars: Length of the longest prompt, in characters; text is measured before it is tokenized.
        adapter_memory: Bytes that the tensors of adapters in memory may take.
        watch_seconds: Interval at which the store is checked for new versions.
        sample_seconds: Interval of the samples that the operator's page draws.
        drain_seconds: How long running requests may continue when the server stops.
        log_prompts: Whether prompts and answers are logged.
    """

    base_name: str
    max_queue: int = 64
    max_answer_tokens: int = 1024
    max_choices: int = 16
    max_body_bytes: int = 1 << 20
    max_prompt_chars: int = 200_000
    adapter_memory: int = 1 << 30
    watch_seconds: float = 2.0
    sample_seconds: float = 10.0
    drain_seconds: float = 30.0
    log_prompts: bool = False
