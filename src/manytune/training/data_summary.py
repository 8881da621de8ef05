"""What a training's output says of its rows."""

from __future__ import annotations

from collections.abc import Callable

from manytune.data.dataset import TokenSplits
from manytune.data.unused import said_of_unused
from manytune.store.run_directory import SCORES_NAME

_LISTED = 5


def describe_data(say: Callable[[str], None], data: TokenSplits, *, leaks: int) -> None:
    """Say how many rows there are, and what was left out, cut or not used of them.

    Args:
        say: Receives each line.
        data: The rows.
        leaks: Prompts that occur in more than one split.
    """
    several = f" ({len(data.train):,} sequences)" if len(data.train) > data.train_rows else ""
    say(f"{data.train_rows:,} rows to train on{several}, {data.validation_rows:,} to validate on")
    for share in data.mixture.shares if data.mixture else ():
        say(
            f"task {share.name}: {share.rows:,} rows, {share.rows_per_epoch:,} in an epoch ({share.rate:.1%})"
        )
    for row in data.left_out[:_LISTED]:
        say(f"left out: {row.where}: {row.reason}")
    if len(data.left_out) > _LISTED:
        say(f"left out: {len(data.left_out) - _LISTED:,} more rows; {SCORES_NAME} will name them")
    if data.turns_dropped:
        say(
            f"shortened to data.max_length: {data.truncated:,} rows, in which {data.turns_dropped:,} answers aren't "
            "learned"
        )
    elif data.truncated:
        say(f"{data.truncated:,} prompts were cut to data.max_length")
    if data.spelled is not None:
        found = data.spelled
        say(
            f"warning: {found.rows:,} prompts spell special tokens, such as {found.name!r} ({found.where}): they are "
            "read as text, as users' text is; with data.special_tokens_in_text: true they are tokens"
        )
    if leaks:
        say(f"warning: {leaks:,} prompts occur in more than one split, so scores partly measure memory")
    if data.odd:
        listed = ", ".join(data.odd[:_LISTED]) + (", ..." if len(data.odd) > _LISTED else "")
        say(f"warning: odd conversations: {len(data.odd):,} ({listed}); `manytune data check` says why")
    if data.unused:
        say(f"warning: {said_of_unused(data.unused)}")
