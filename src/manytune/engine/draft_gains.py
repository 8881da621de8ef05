"""Whether drafting has paid lately: what tokens it gave and what it took, in steps of about as many requests.

Chances and prices are estimates, and where they are both a little too good, each step loses. So what came of them is
counted, and after some steps that together lost half a step's time there are no drafts for a while; each time that this
happens again for twice as long, up to a limit. So in a text in which nothing repeats the loss is that of a few steps.
"""

from __future__ import annotations

from collections import deque

# Steps that are looked at, at most and at least.
_LATELY, _ENOUGH = 6, 4
# What they may lose together: as a share of a step, what disturbs a few of them.
_LOSS = 0.5
# For how many steps there are no drafts, at first and at most.
_PAUSE, _LONGEST = 16, 256


class DraftGains:
    """Gains of steps with drafts, by about how many requests there were: 1, 2 to 3, 4 to 7 and so on."""

    def __init__(self) -> None:
        self._lately: dict[int, deque[float]] = {}
        self._left: dict[int, int] = {}  # steps without drafts
        self._pause: dict[int, int] = {}

    def pauses(self, requests: int) -> bool:
        """Whether a step of so many requests goes without the drafts that it could have.

        Mutates: counts the step, if so.
        """
        about = requests.bit_length()
        left = self._left.get(about, 0)
        self._left[about] = max(0, left - 1)
        return left > 0

    def count(self, requests: int, accepted: int, price: float) -> None:
        """Count a step with drafts.

        Args:
            requests: How many requests it gave a token.
            accepted: How many drafted tokens were right.
            price: What the drafted tokens took, as a share of a step without them, which gives `requests` tokens. What
                exceeds such a step counts as one: something else has stopped it.
        """
        about = requests.bit_length()
        lately = self._lately.setdefault(about, deque(maxlen=_LATELY))
        lately.append(accepted / requests - min(1.0, price))
        if len(lately) < _ENOUGH:
            return
        if sum(lately) >= -_LOSS:
            if len(lately) == _LATELY and sum(lately) > 0:
                self._pause[about] = _PAUSE
            return
        self._left[about] = self._pause.get(about, _PAUSE)
        self._pause[about] = min(2 * self._left[about], _LONGEST)
        lately.clear()
