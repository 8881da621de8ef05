"""The base that several adapters have in common."""

from __future__ import annotations

from collections.abc import Mapping

from manytune.errors import StoreError


def common_base(bases: Mapping[str, str | None]) -> str:
    """Where the one base of several adapters is.

    Args:
        bases: By each adapter's name, where its base is; None if its files don't say.

    Raises:
        StoreError: They name different bases, or one names none.
    """
    unknown = next((name for name, base in bases.items() if base is None), None)
    if unknown is not None:
        raise StoreError(f"{unknown}: the adapter doesn't say what its base is. Name it with --base.")
    if len(set(bases.values())) > 1:
        listed = "; ".join(f"{name}: {base}" for name, base in bases.items())
        raise StoreError(
            f"the adapters name different bases ({listed}). Give those of one base at a time, or name it with --base "
            "if they are one and the same."
        )
    return str(next(iter(bases.values())))
