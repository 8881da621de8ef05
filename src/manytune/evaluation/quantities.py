"""Counts, shares, durations and sizes in words and figures."""

from __future__ import annotations

DASH = "\N{EN DASH}"
"""What a table shows in the place of nothing."""


def count(value: int | None) -> str:
    """A whole number with thousands separated; a dash for none."""
    return DASH if value is None else f"{value:,}"


def share(part: int | None, whole: int | None) -> str:
    """A percentage with two significant digits, such as `0.24%`; empty if unknown."""
    if part is None or not whole:
        return ""
    percent = 100 * part / whole
    return f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"


def seconds(value: float | None) -> str:
    """A duration: `8.2 s`, `4 min 5 s`, `1 h 12 min`; a dash for none."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def milliseconds(value: float) -> str:
    """A short duration in seconds as `38 ms`, or as `1.2 s`."""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def size(value: int | None) -> str:
    """Bytes in binary units, such as `3.5 MiB`; a dash for none."""
    if value is None:
        return DASH
    amount = float(value)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"
