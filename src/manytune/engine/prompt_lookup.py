"""Guesses of how an answer continues: by what followed its last tokens where they occurred before.

That is prompt lookup (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): summaries, extracts and
rewritten texts repeat much of their prompt. The index of n-grams grows with each token, and a guess that was right goes
on at the next place without a search. Semantics: `tests/reference/speculation.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

#: Sizes of the n-grams that are looked up; the longest comes first.
SIZES = (4, 3, 2)

# Guesses after matches of 2 to 3, 4 to 7, 8 to 15 and more tokens are counted apart: by the bits of that number.
_MOST_BITS = 5
# What is known of guesses in general counts for so many of a request's own.
_PRIOR = 4.0
# What is less probable isn't worth a draft.
_LEAST_CHANCE = 0.01
# Counts are halved at this number, so that they are of recent guesses.
_MOST_COUNTED = 512


class HitRate:
    """The share of guesses that were right, by the number of tokens that matched before the guess.

    With h of n guesses right, and a prior share q, it is (h + 4 q) / (n + 4).

    Args:
        prior: The rate of guesses in general, which counts these, too; None for a prior share of a half.
    """

    def __init__(self, prior: HitRate | None = None) -> None:
        self._prior = prior
        self._hits = [0.0] * (_MOST_BITS + 1)
        self._guesses = [0.0] * (_MOST_BITS + 1)

    def count(self, matched: int, *, is_hit: bool) -> None:
        """Count a guess."""
        bits = min(matched.bit_length(), _MOST_BITS)
        self._hits[bits] += is_hit
        self._guesses[bits] += 1
        if self._guesses[bits] >= _MOST_COUNTED:
            self._hits[bits] /= 2
            self._guesses[bits] /= 2
        if self._prior is not None:
            self._prior.count(matched, is_hit=is_hit)

    def share(self, matched: int) -> float:
        """The estimate, between 0 and 1."""
        bits = min(matched.bit_length(), _MOST_BITS)
        prior = 0.5 if self._prior is None else self._prior.share(matched)
        return (self._hits[bits] + _PRIOR * prior) / (self._guesses[bits] + _PRIOR)


class PromptLookup:
    """The tokens of one request, and a guess of those that come next.

    Every guess is compared with the token that was chosen, whether or not a forward has read it: how often guesses are
    right costs no forward to find out.

    Args:
        prompt: The prompt.
        max_new_tokens: Limit on the answer.
        rate: Counts its guesses.
    """

    def __init__(self, prompt: Sequence[int], max_new_tokens: int, rate: HitRate) -> None:
        self._tokens = list(prompt)
        self._left = max_new_tokens
        self._rate = rate
        # By n-gram of each size, the place after the last one that has a place after it.
        self._after: list[dict[tuple[int, ...], int]] = []
        self._place = 0  # of the token that is guessed
        self._matched = 0  # tokens before it that are equal to the last ones; 0 for no guess

    def add(self, token: int) -> None:
        """Append a token of the answer."""
        if not self._after:  # the first one; requests that wait have no index
            for size in SIZES:
                shifted = (self._tokens[start:] for start in range(size))
                ends = range(size, len(self._tokens))
                self._after.append(dict(zip(zip(*shifted, strict=False), ends, strict=False)))
        is_hit = bool(self._matched) and self._tokens[self._place] == token
        if self._matched:
            self._rate.count(self._matched, is_hit=is_hit)
        tokens, end = self._tokens, len(self._tokens)
        for size, after in zip(SIZES, self._after, strict=True):
            if size <= end:
                after[tuple(tokens[-size:])] = end
        tokens.append(token)
        self._left -= 1
        if is_hit:
            self._place += 1
            self._matched += 1
        else:
            self._search()

    def chances(self, most: int) -> Iterator[float]:
        """For each of the next tokens, how probable it is that it and those before it are right, if it is at all.

        Args:
            most: For so many tokens. There are never more than fit into the answer before its last token, which no
                forward reads.
        """
        chance = 1.0
        for ahead in range(min(most, self._left - 1) if self._matched else 0):
            chance *= self._rate.share(self._matched + ahead)
            if chance < _LEAST_CHANCE:
                return
            yield chance

    def draft(self, count: int) -> tuple[int, ...]:
        """So many guessed tokens. Those beyond the present end repeat what was guessed, as a loop would."""
        found = self._tokens[self._place : self._place + count]
        while len(found) < count:
            found.append(found[len(found) - (len(self._tokens) - self._place)])
        return tuple(found)

    def _search(self) -> None:
        """Look for the last tokens; sets the guess."""
        self._matched = 0
        for size, after in zip(SIZES, self._after, strict=True):
            place = after.get(tuple(self._tokens[-size:]))
            if place is not None:
                self._place, self._matched = place, size
                return
