"""How long steps take, and what a drafted token adds to them, as this engine has measured on this machine.

What else runs on the machine makes some steps longer and none shorter, and a step with one drafted token is hardly
longer than one without. So an estimate isn't a mean: it is the value below which a third of the measurements are, and a
measured price counts as often as its step had drafted tokens. A step with drafts that took less than those without are
estimated to take shows that the estimate is too high, so it counts as one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from time import perf_counter

# Until it has been measured often enough, what a step costs besides its tokens is taken for the cost of so many tokens.
_FIXED = 8

# So many measurements are enough for an estimate of a step, and of a price; the last ones are kept.
_ENOUGH, _ENOUGH_PRICES, _KEPT = 3, 5, 25
# After so many steps in which no draft was worth its price, the price is measured again, so many times. Each time that
# this was in vain it takes twice as many steps until the next time, up to a limit.
_PATIENCE, _MOST_PATIENCE, _AGAIN = 8, 200, 2
# After so many steps with drafts, one without is measured again.
_UNMEASURED = 30
# No price is estimated below this share of the one before any measurement.
_LEAST = 1 / 5
# The share of measurements below an estimate.
_SHARE = 1 / 3


class StepTimes:
    """Steps that read no prompts: without drafts by the number of requests, with drafts what each token adds.

    The price of a drafted token is (t - p) / (p d), where t is the time of a step with d of them and p the estimated
    time of those without, with as many requests. It is estimated from steps with about as many requests: 1, 2 to 3,
    4 to 7 and so on.
    """

    def __init__(self) -> None:
        self._plain: dict[int, deque[float]] = {}
        self._drafting: dict[int, int] = {}  # steps with drafts since the last one without
        # By about how many requests: the time, how many requests, how many drafted tokens.
        self._drafted: dict[int, deque[tuple[float, int, int]]] = {}
        self._refused: dict[int, int] = {}
        self._patience: dict[int, int] = {}
        self._lines: dict[int, tuple[float, float] | None] = {}  # see `added`
        self._begun = 0.0

    def begin(self) -> None:
        """Note that a step begins."""
        self._begun = perf_counter()

    def end(self, requests: int, drafted: int) -> float:
        """Measure the step that has begun.

        Args:
            requests: How many requests it gave a token.
            drafted: How many drafted tokens it read.

        Returns:
            What they took, as a share of a step without them.
        """
        seconds = perf_counter() - self._begun
        if not drafted:
            self._plain.setdefault(requests, deque(maxlen=_KEPT)).append(seconds)
            self._drafting[requests] = 0
            return 0.0
        if seconds < self._plain_seconds(requests):
            self._plain[requests].append(seconds)
        self._drafting[requests] += 1
        about = requests.bit_length()
        measured = self._drafted.setdefault(about, deque(maxlen=_KEPT))
        if len(measured) >= _ENOUGH_PRICES:
            self._patience[about] = _PATIENCE
        measured.append((seconds, requests, drafted))
        self._lines.pop(about, None)
        self._refused[about] = 0
        return seconds / self._plain_seconds(requests) - 1

    def price(self, requests: int) -> float | None:
        """What a drafted token adds to a step of so many requests, as a share of it.

        None if steps without drafts have to be measured first.
        """
        if len(self._plain.get(requests, ())) < _ENOUGH or self._drafting[requests] >= _UNMEASURED:
            return None
        first = 1 / (requests + _FIXED)
        prices = self._prices(requests.bit_length())
        if len(prices) >= _ENOUGH_PRICES:
            return max(_LEAST * first, _estimate(prices))
        return max(_LEAST * first, min([first, *(price for price, _ in prices)]))

    def added(self, requests: int, drafted: int) -> float:
        """What so many drafted tokens add to a step of so many requests, as a share of it, where a price is known.

        The first tokens cost more than the later ones, as products take rows in blocks, and a step has more to do where
        there are drafts at all. So it is f + r d, with r the median slope between any two steps' prices (Theil 1950,
        Sen 1968) and f such that a third of the steps took less.
        """
        about = requests.bit_length()
        if about not in self._lines:
            self._lines[about] = _line([(drafted, drafted * price) for price, drafted in self._prices(about)])
        line = self._lines[about]
        if line is None:
            return drafted * (self.price(requests) or 0.0)
        return max(drafted * _LEAST / (requests + _FIXED), line[0] + line[1] * drafted)

    def refuse(self, requests: int) -> None:
        """Note that no draft was worth the price in a step."""
        about = requests.bit_length()
        self._refused[about] = self._refused.get(about, 0) + 1
        patience = self._patience.get(about, _PATIENCE)
        if self._refused[about] < patience:
            return
        self._refused[about] = 0
        self._patience[about] = min(2 * patience, _MOST_PATIENCE)
        measured = self._drafted.get(about, deque())
        while len(measured) > _ENOUGH_PRICES - _AGAIN:  # the older ones may no longer be true
            measured.popleft()
        self._lines.pop(about, None)

    def _plain_seconds(self, requests: int) -> float:
        return max(1e-9, _estimate([(seconds, 1) for seconds in self._plain[requests]]))

    def _prices(self, about: int) -> list[tuple[float, int]]:
        """The measured prices of drafted tokens, by the present estimates of steps without any, and of how many."""
        measured = self._drafted.get(about, ())
        plain = {requests: self._plain_seconds(requests) for _, requests, _ in measured}
        return [
            ((seconds / plain[requests] - 1) / drafted, drafted) for seconds, requests, drafted in measured
        ]


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """A line through points, f and r of f + r x, neither below 0; None if there are too few for one."""
    slopes = [
        (later - earlier) / (x - before)
        for number, (before, earlier) in enumerate(points)
        for x, later in points[number + 1 :]
        if x != before
    ]
    if len(points) < _ENOUGH_PRICES or not slopes:
        return None
    slope = max(0.0, median(slopes))
    return max(0.0, _estimate([(y - slope * x, 1) for x, y in points])), slope


def _estimate(measured: Iterable[tuple[float, int]]) -> float:
    """The value below which a third of the measurements are, each of which counts so many times."""
    ordered = sorted(measured)
    left = _SHARE * sum(count for _, count in ordered)
    for value, count in ordered:
        left -= count
        if left < 0:
            return value
    return ordered[-1][0]
