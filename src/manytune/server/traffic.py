"""What was asked and answered lately, by adapter and by key: counted for an interval, then handed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Where requests of further models and keys are counted once an interval has this many of them.
OTHERS = "(others)"
_MOST_NAMES = 64
_MOST_TIMES = 1000


@dataclass
class Counts:
    """What one model or key had in an interval.

    Attributes:
        requests: Answers that ended.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens that were generated.
        first_tokens: Answers whose first token came.
        first_seconds: How long these waited for it, together.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_tokens: int = 0
    first_seconds: float = 0.0

    def row(self) -> list[float]:
        """The counts in the order above."""
        return [
            self.requests,
            self.prompt_tokens,
            self.completion_tokens,
            self.first_tokens,
            round(self.first_seconds, 4),
        ]


@dataclass
class Interval:
    """The counts of an interval.

    Attributes:
        total: Those of all requests.
        models: Those of each model that had any.
        keys: Those of each key that had any.
        first_times: The seconds that answers waited for their first tokens; of very many, the first thousand.
    """

    total: Counts = field(default_factory=Counts)
    models: dict[str, Counts] = field(default_factory=dict)
    keys: dict[str, Counts] = field(default_factory=dict)
    first_times: list[float] = field(default_factory=list)


class Traffic:
    """Counts requests. It is used on the event loop alone."""

    def __init__(self) -> None:
        self._now = Interval()

    def token(self, model: str, key: str, first_after: float | None) -> None:
        """A token was generated.

        Args:
            model: Whose.
            key: For whom.
            first_after: For the first one of an answer, the seconds since its request arrived; else None.
        """
        for counts in self._of(model, key):
            counts.completion_tokens += 1
            if first_after is not None:
                counts.first_tokens += 1
                counts.first_seconds += first_after
        if first_after is not None and len(self._now.first_times) < _MOST_TIMES:
            self._now.first_times.append(first_after)

    def read(self, model: str, key: str, prompt_tokens: int) -> None:
        """A prompt of so many tokens was answered."""
        for counts in self._of(model, key):
            counts.prompt_tokens += prompt_tokens

    def ended(self, model: str, key: str) -> None:
        """An answer has ended, however."""
        for counts in self._of(model, key):
            counts.requests += 1

    def take(self) -> Interval:
        """What was counted since the last time."""
        found, self._now = self._now, Interval()
        return found

    def _of(self, model: str, key: str) -> tuple[Counts, Counts, Counts]:
        return self._now.total, _counts(self._now.models, model), _counts(self._now.keys, key)


def _counts(found: dict[str, Counts], name: str) -> Counts:
    if name not in found and len(found) >= _MOST_NAMES:
        name = OTHERS
    return found.setdefault(name, Counts())


def rows(found: Mapping[str, Counts]) -> dict[str, list[float]]:
    """Counts by name, as JSON has them."""
    return {name: counts.row() for name, counts in sorted(found.items())}
