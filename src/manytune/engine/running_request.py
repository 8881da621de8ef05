"""A request while it is in the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from manytune.engine.detokenize import TextStream
from manytune.engine.request import Completion, FinishReason, Request, TokenLogprobs, Usage
from manytune.engine.sampling import Chooser
from manytune.mixed.stacks import Snapshot


@dataclass
class Entry:
    """A request and how far it has come.

    Attributes:
        request: What was asked.
        snapshot: Its adapter, as it was when the request came.
        chooser: Chooses its tokens.
        text: Turns them into text; None if nobody wants that before the end.
        beginning: Keys of its prompt's blocks, if beginnings are shared.
        tokens: Chosen so far, with the end token.
        cached: Tokens of the prompt that came from a cached prefix.
        running: Whether it has been admitted.
    """

    request: Request
    snapshot: Snapshot | None
    chooser: Chooser
    text: TextStream | None
    beginning: tuple[bytes, ...]
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    running: bool = False

    @property
    def usage(self) -> Usage:
        """What it has taken so far."""
        return Usage(len(self.request.prompt_ids), self.cached, len(self.tokens))

    def completion(
        self, tokenizer: Any, text: str, reason: FinishReason, logprobs: list[TokenLogprobs], *, ended: bool
    ) -> Completion:
        """The whole answer.

        Args:
            tokenizer: Decodes the tokens, if they haven't been turned into text on the way.
            text: What its outputs brought.
            reason: Why it ended.
            logprobs: What its outputs brought.
            ended: Whether the last token is an end token.
        """
        tokens = self.tokens[:-1] if ended else self.tokens
        if self.text is None:
            text = tokenizer.decode(tokens, skip_special_tokens=True)
        return Completion(self.request.id, tuple(tokens), text, reason, tuple(logprobs), self.usage)
