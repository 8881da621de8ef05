"""What an operator decides about a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and habits of a server.

    Attributes:
        base_name: What requests call the plain base.
        max_queue: Requests that may wait beside those that run; more are refused with 429.
        max_answer_tokens: The most tokens that a request may ask for, and what it gets at most if it doesn't say.
        max_choices: The most answers that one request may ask for: prompts times `n`, or adapters to compare.
        max_body_bytes: The largest body of a request.
        max_prompt_chars: The longest prompt, in characters; text is measured before it is tokenized.
        adapter_memory: Bytes that the tensors of adapters in memory may take.
        watch_seconds: How often the store is looked at for new versions.
        log_prompts: Whether prompts and answers go into the log.
    """

    base_name: str
    max_queue: int = 64
    max_answer_tokens: int = 1024
    max_choices: int = 16
    max_body_bytes: int = 1 << 20
    max_prompt_chars: int = 200_000
    adapter_memory: int = 1 << 30
    watch_seconds: float = 2.0
    log_prompts: bool = False
