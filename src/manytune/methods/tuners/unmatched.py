"""Names in a configuration that match nothing: an error that names the nearest, for every option and every method.

A saved adapter is another matter: HF PEFT ignores such names when it trains and writes them into the file all the same.
There they are left over, and a warning names them.
"""

from __future__ import annotations

import difflib
import itertools
import re
import warnings
from collections.abc import Collection, Iterable, Sequence

from manytune.errors import ConfigError, NoMatchingPeftModuleError, PeftWarning
from manytune.methods.tuners.patterns import match

_MOST_ASKED = 20  # names that a message looks for near ones of


class UnmatchedError(ConfigError, NoMatchingPeftModuleError):
    """An option names a module, a parameter or a layer that isn't there, so that it would have no effect."""


def report(message: str, *, saved: bool) -> None:
    """Say that something matches nothing.

    Args:
        message: What was named, where, and what there is.
        saved: Whether the options come from a saved adapter, where it is left over rather than a mistake.

    Raises:
        UnmatchedError: They don't.
    """
    if not saved:
        raise UnmatchedError(message)
    warnings.warn(f"{message} It was saved so; the adapter is loaded without it.", PeftWarning, stacklevel=5)


def check_patterns(
    option: str,
    patterns: Collection[str],
    targeted: Sequence[str],
    everything: Iterable[str],
    *,
    saved: bool,
) -> None:
    """Refuse keys of `rank_pattern` and the like that no targeted module or parameter has.

    Args:
        option: The option's name.
        patterns: Its keys; see `pattern_matches`.
        targeted: The paths that the adapter goes to.
        everything: All paths there are.
        saved: See `report`.

    Raises:
        UnmatchedError: A key matches none of the targeted paths, and the options aren't a saved adapter's.
    """
    unmatched = [key for key in patterns if not any(pattern_matches(key, path) for path in targeted)]
    if not unmatched:
        return
    paths = list(everything)
    what = "The targeted paths"
    for key in unmatched:
        elsewhere = [path for path in paths if pattern_matches(key, path)]
        if elsewhere:
            reason = f"it names {_some(elsewhere)}, which the adapter doesn't target. Target it, or leave the key out."
        else:
            anchor = " '^' means the beginning of the whole path." if key.startswith("^") else ""
            reason = f"it matches no targeted path.{anchor} {nearest([key], targeted, what)}"
        report(f"{option}[{key!r}] has no effect: {reason}", saved=saved)


def pattern_matches(key: str, path: str) -> bool:
    """Whether a key of a rank or alpha pattern names a path: as its ending, or as an expression that ends there."""
    return match(rf"(.*\.)?({key})$", path) is not None


def check_layers(
    wanted: Collection[int], indices: Collection[int | None], what: str, *, saved: bool, pattern: str = ""
) -> None:
    """Refuse indices in `layers_to_transform` that no layer has.

    Args:
        wanted: The indices.
        indices: Those that the targeted modules or parameters lie in; None for those outside of layers.
        what: What is targeted, for the message.
        saved: See `report`.
        pattern: The `layers_pattern` in use, for the message.

    Raises:
        UnmatchedError: An index isn't among them, and the options aren't a saved adapter's.
    """
    known = sorted({index for index in indices if index is not None})
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        whole = known and known == list(range(known[0], known[-1] + 1))
        there = f"{known[0]} to {known[-1]}" if whole else ", ".join(map(str, known)) or "none"
        report(
            f"layers_to_transform names {', '.join(map(str, unknown))}, and {what} lies in no such layer{pattern}. "
            f"The layers there are: {there}, counted from 0.",
            saved=saved,
        )


def nearest(names: Iterable[str], paths: Iterable[str], what: str = "The model's modules") -> str:
    """A sentence with the names nearest to some that match nothing, or with what there is to choose from.

    Args:
        names: What matches nothing: paths, their endings, or expressions.
        paths: The paths of what there is.
        what: What these are.
    """
    endings = sorted({path.rsplit(".", 1)[-1] for path in paths} - {str(i) for i in range(1000)})
    asked = itertools.islice(names, _MOST_ASKED)
    close = [found for name in asked for found in _close(_last_word(name), endings)]
    if close:
        return f"Did you mean {', '.join(repr(name) for name in dict.fromkeys(close))}?"
    return f"{what} end in: {', '.join(endings[:40])}."


def _close(word: str, endings: Sequence[str]) -> Sequence[str]:
    return [word] if word in endings else difflib.get_close_matches(word, endings, n=2)


def _last_word(name: str) -> str:
    """What a path, or an expression for paths, ends in."""
    words = re.findall(r"\w+", name)
    return words[-1] if words else name


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
