"""What becomes of examples with more tokens than a sequence may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from manytune.data.conversation.shorter import without_newest_turns, without_oldest_turns
from manytune.data.encoding.encoded import Encoded
from manytune.data.nearest import did_you_mean
from manytune.data.records import Rejected
from manytune.data.templates import Example
from manytune.errors import DataError

Overflow = Literal["error", "drop", "truncate_prompt", "drop_oldest_turns", "drop_newest_turns"]


@dataclass(frozen=True)
class Fitted:
    """An example within the limit.

    Attributes:
        sequences: Its sequences.
        answers: How many of its answers they hold.
        shortened: Whether something was cut or dropped.
    """

    sequences: tuple[Encoded, ...]
    answers: int
    shortened: bool = False


class LengthLimit:
    """Brings examples within a limit, as `overflow` says.

    Args:
        max_length: The most tokens of a sequence; `None` for no limit.
        overflow: What becomes of a longer one.
        sequences: All sequences of an example, however long.
        cut: An example's sequence with its prompt cut to so many tokens in all; `None` if that can't be.

    Raises:
        DataError: `overflow` or `max_length` can't be used.
    """

    def __init__(
        self,
        max_length: int | None,
        overflow: Overflow,
        sequences: Callable[[Example], tuple[Encoded, ...]],
        cut: Callable[[Example, int], Encoded | None],
    ) -> None:
        if overflow not in get_args(Overflow):
            raise DataError(
                f"overflow must be one of {', '.join(get_args(Overflow))}, not {overflow!r}"
                f"{did_you_mean(str(overflow), get_args(Overflow))}"
            )
        if max_length is not None and max_length < 2:
            raise DataError(
                f"max_length must be at least 2 (one token each of prompt and completion), not {max_length}"
            )
        self._max_length = max_length
        self._overflow = overflow
        self._sequences = sequences
        self._cut = cut

    def fit(self, example: Example) -> Fitted | Rejected:
        """Return the example's sequences within the limit, or why there are none.

        Raises:
            DataError: The prompt has no token.
            TemplateError: The chat template refuses or changes the example.
        """
        whole = self._sequences(example)
        longest = max(whole, key=lambda item: len(item.input_ids))
        limit = self._max_length
        if limit is None or len(longest.input_ids) <= limit:
            return Fitted(whole, len(example.earlier) + 1)
        shortened = self._shortened(example, limit)
        if shortened is not None:
            return shortened
        given, learned = len(longest.prompt_ids), len(longest.completion_ids)
        reason = (
            f"{given + learned} tokens (prompt {given}, completion {learned}) {self._why(example, limit)}"
        )
        return Rejected(example.source, example.row, reason)

    def error(self, rejected: Rejected) -> DataError:
        """Return what to raise for an example that is too long."""
        choices = (
            ", or set overflow to 'drop' or 'truncate_prompt' (conversations: 'drop_oldest_turns')"
            if self._overflow == "error"
            else ""
        )
        return DataError(f"{rejected.reason}. Raise max_length{choices}", where=rejected.where)

    def _shortened(self, example: Example, limit: int) -> Fitted | None:
        if self._overflow in ("error", "drop"):
            return None
        if self._overflow == "truncate_prompt":
            cut = None if example.earlier else self._cut(example, limit)
            return None if cut is None else Fitted((cut,), 1, shortened=True)
        drop = without_oldest_turns if self._overflow == "drop_oldest_turns" else without_newest_turns
        found = drop(example, lambda shorter: self._longest(shorter) <= limit)
        return (
            None if found is None else Fitted(self._sequences(found), len(found.earlier) + 1, shortened=True)
        )

    def _longest(self, example: Example) -> int:
        return max(len(item.input_ids) for item in self._sequences(example))

    def _why(self, example: Example, limit: int) -> str:
        if self._overflow in ("error", "drop"):
            return f"are more than max_length {limit}"
        if self._overflow != "truncate_prompt":
            return f"are more than max_length {limit}, and so is its shortest part"
        if example.earlier:
            return (
                f"are more than max_length {limit}, and truncate_prompt cuts no conversation with several answers to "
                "learn; drop_oldest_turns drops turns"
            )
        return f"leave no room for any of the user's text within max_length {limit}"
