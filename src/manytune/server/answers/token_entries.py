"""Tokens with their log probabilities in the shapes of OpenAI's answers: one entry for each token, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from manytune.engine.request import TokenLogprobs
from manytune.engine.token_bytes import CharacterCount

#: What to call a token, and its bytes; the second argument says whether a text begins with it.
ReadToken = Callable[[int, bool], tuple[str, bytes]]


class TokenEntries:
    """Makes the entries of one text's tokens, which may come in parts.

    Args:
        read: Reads a token.
    """

    def __init__(self, read: ReadToken) -> None:
        self._read = read
        self._count = CharacterCount()
        self._begun = False

    def chat(self, tokens: Iterable[TokenLogprobs]) -> dict[str, Any]:
        """The entries of an answer's next tokens, in the format of chat completions."""
        content = []
        for one in tokens:
            first = not self._begun
            entry = self._entry(one.token_id, one.logprob, first)
            top = [self._entry(token, logprob, first) for token, logprob in _with_chosen(one)]
            content.append({**entry, "top_logprobs": top if one.top else []})
            self._skip(one.token_id)
        return {"content": content, "refusal": None}

    def text(self, tokens: Iterable[TokenLogprobs]) -> dict[str, list[Any]]:
        """The entries of the next tokens, in the format of completions."""
        found = no_entries()
        for one in tokens:
            first = not self._begun
            label, content = self._read(one.token_id, first)
            found["tokens"].append(label)
            found["token_logprobs"].append(one.logprob)
            found["top_logprobs"].append(self._top(one, first))
            found["text_offset"].append(self._count.add(content))
            self._skip(one.token_id)
        return found

    def prompt(
        self, ids: Sequence[int], scores: Sequence[TokenLogprobs], begin_id: int | None
    ) -> tuple[str, dict[str, list[Any]]]:
        """A prompt's text, and the entries of its tokens; nothing predicts the first.

        Args:
            ids: Its tokens.
            scores: Those of all tokens but the first, or none.
            begin_id: The token that has no text at the beginning.
        """
        found = no_entries()
        content = bytearray()
        for place, token in enumerate(ids):
            first = not self._begun
            label, new = self._read(token, first)
            if place == 0 and token == begin_id:
                new = b""
            else:
                self._skip(token)
            score = scores[place - 1] if place and scores else None
            found["tokens"].append(label)
            found["token_logprobs"].append(None if score is None else score.logprob)
            found["top_logprobs"].append(None if score is None else self._top(score, first))
            found["text_offset"].append(self._count.add(new))
            content += new
        return content.decode(errors="replace"), found

    def continue_after(self, text: str) -> None:
        """Count from the end of this text on."""
        self._count = CharacterCount(len(text))

    def gap(self, token: int) -> str | None:
        """What a text has before its next token that it wouldn't have if it began with it: a space, or nothing.

        None for a token without text.
        """
        within, first = (self._read(token, one)[1] for one in (False, True))
        if not within:
            return None
        return within.removesuffix(first).decode(errors="ignore") if self._begun else ""

    def _skip(self, token: int) -> None:
        self._begun = self._begun or bool(self._read(token, False)[1])

    def _entry(self, token: int, logprob: float, first: bool) -> dict[str, Any]:
        label, content = self._read(token, first)
        return {"token": label, "logprob": logprob, "bytes": list(content)}

    def _top(self, one: TokenLogprobs, first: bool) -> dict[str, float]:
        """By what the tokens are called: the chosen one always, another of the same text by its number."""
        own = self._read(one.token_id, first)[0]
        found: dict[str, float] = {}
        for token, logprob in _with_chosen(one):
            label = self._read(token, first)[0]
            taken = label in found or (label == own and token != one.token_id)
            found[f"token_id:{token}" if taken else label] = logprob
        return found


def no_entries() -> dict[str, list[Any]]:
    """The format of completions, without tokens."""
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _with_chosen(one: TokenLogprobs) -> list[tuple[int, float]]:
    """The likeliest tokens, and the chosen one after them if it isn't one."""
    chosen = [] if one.token_id in dict(one.top) else [(one.token_id, one.logprob)]
    return [*one.top, *chosen]
