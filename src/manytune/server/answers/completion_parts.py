"""The parts of one answer of `/v1/completions`, after the prompt if that is to be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manytune.engine.request import TokenLogprobs
from manytune.server.answers.formats import Delta, PartialAnswer
from manytune.server.answers.token_entries import TokenEntries
from manytune.server.prompts import Prompts


class CompletionParts:
    """Puts text and entries together, for a whole answer or for each chunk of a stream.

    Args:
        prompts: Reads tokens.
        has_logprobs: Whether entries of the tokens are wanted.
        echo: The prompt's tokens, if the answer begins with them; else None.
        text: The prompt as it was sent; None if it was sent as tokens.
    """

    def __init__(
        self, prompts: Prompts, *, has_logprobs: bool, echo: Sequence[int] | None, text: str | None
    ) -> None:
        self._entries = TokenEntries(prompts.token)
        self._begin_id = prompts.begin_id
        self._has_logprobs = has_logprobs
        self._echo = echo
        self._text = text
        self._follows = echo is not None  # whether the answer's text has yet to be joined to the prompt's
        self._gap = ""

    def part(self, new: Delta | PartialAnswer) -> tuple[str, dict[str, Any] | None]:
        """The next part's text, and its tokens' entries if they are wanted and there are any.

        Args:
            new: What an event adds to the answer, or the whole answer.
        """
        before, entries = self._prompt(new.prompt_logprobs or ())
        for token in new.tokens:
            gap = self._entries.gap(token) if self._follows else None
            if gap is not None:
                self._gap, self._follows = gap, False
        text = new.text
        if text:
            text, self._gap = self._gap + text, ""
        for name, values in self._entries.text(new.logprobs).items():
            entries.setdefault(name, []).extend(values)
        return before + text, entries if self._has_logprobs and entries["tokens"] else None

    def _prompt(self, scores: Sequence[TokenLogprobs]) -> tuple[str, dict[str, Any]]:
        if self._echo is None:
            return "", {}
        ids, self._echo = self._echo, None
        decoded, entries = self._entries.prompt(ids, scores, self._begin_id)
        text = decoded if self._text is None else self._text
        self._entries.continue_after(text)
        return text, entries
