"""The slow twin of speculation: the acceptance rule on exact probabilities, and prompt lookup by searching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

Distribution = Mapping[int, Fraction]


def outcomes(p: Distribution, q: Distribution) -> dict[tuple[int, bool], Fraction]:
    """By token and whether it is the draft's, how probable the rule makes it (Leviathan et al. 2023, section 2.3).

    A token x drawn from q is accepted with probability min(1, p(x) / q(x)); otherwise the token is drawn from
    max(0, p - q), renormalised.
    """
    found: dict[tuple[int, bool], Fraction] = {}
    left = {token: max(Fraction(0), share - q.get(token, Fraction(0))) for token, share in p.items()}
    for x, share in q.items():
        accepted = min(Fraction(1), p.get(x, Fraction(0)) / share)
        found[x, True] = found.get((x, True), Fraction(0)) + share * accepted
        if accepted == 1:
            continue
        for token, mass in left.items():
            add = share * (1 - accepted) * mass / sum(left.values())
            found[token, False] = found.get((token, False), Fraction(0)) + add
    return {outcome: share for outcome, share in found.items() if share}


def answers(
    next_token: Callable[[tuple[int, ...]], Distribution], draft: Sequence[int], length: int
) -> dict[tuple[int, ...], Fraction]:
    """How probable each answer of a length is, if a draft is followed as long as its tokens are accepted."""
    found: dict[tuple[int, ...], Fraction] = {}

    def extend(answer: tuple[int, ...], share: Fraction, *, follows: bool) -> None:
        if len(answer) == length:
            found[answer] = found.get(answer, Fraction(0)) + share
            return
        p = next_token(answer)
        if not follows or len(answer) >= len(draft):
            for token, own in p.items():
                extend((*answer, token), share * own, follows=False)
            return
        for (token, is_accepted), own in outcomes(p, {draft[len(answer)]: Fraction(1)}).items():
            extend((*answer, token), share * own, follows=is_accepted)

    extend((), Fraction(1), follows=True)
    return found


def guesses(prompt: Sequence[int], answer: Sequence[int], sizes: Sequence[int]) -> Iterator[int | None]:
    """After each token of an answer, the place of the token that is guessed to follow; None for no guess.

    A right guess goes on at the next place. Otherwise it is the place after the last earlier occurrence of the last
    tokens, of as many of them as possible among `sizes`.
    """
    tokens, place = list(prompt), None
    for token in answer:
        place = place + 1 if place is not None and tokens[place] == token else None
        tokens.append(token)
        if place is None:
            ends = [
                end
                for size in sizes
                for end in range(len(tokens) - 1, size - 1, -1)
                if size <= len(tokens) and tokens[end - size : end] == tokens[-size:]
            ]
            place = ends[0] if ends else None
        yield place
