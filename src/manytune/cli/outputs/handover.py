"""Which adapters another engine can serve, as a table or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manytune.cli.outputs.json_output import print_json
from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.handover.vllm_engine import Checked
    from manytune.handover.vllm_release import Vllm

_DIGITS = 12


def print_checked(checked: list[Checked], vllm: Vllm | None, *, as_json: bool, to_stderr: bool) -> None:
    """Print what was found.

    Args:
        checked: The adapters.
        vllm: The vLLM that they were checked for; None if there is none.
        as_json: Print JSON.
        to_stderr: Print to stderr, where it isn't the command's result.
    """
    if as_json:
        print_json([_row(one) for one in checked])
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("adapter", "version", "method", "rank", "vLLM"):
        table.add_column(heading, overflow="fold")
    for one in checked:
        table.add_row(
            Text(visible(", ".join(one.entry.names))),
            one.entry.digest[:_DIGITS],
            Text(visible(one.entry.manifest.method)),
            str(one.verdict.rank or ""),
            Text(
                visible("; ".join(["yes", *one.verdict.notes]) if one.reason is None else f"no: {one.reason}")
            ),
        )
    console = Console(highlight=False, markup=False, stderr=to_stderr)
    console.print(table)
    served = sum(one.reason is None for one in checked)
    release = f" {vllm.version}" if vllm is not None and vllm.version else ""
    console.print(f"vLLM{release} can serve {served} of {len(checked)} adapters.")


def _row(one: Checked) -> dict[str, object]:
    return {
        "names": list(one.entry.names),
        "digest": one.entry.digest,
        "method": one.entry.manifest.method,
        "rank": one.verdict.rank or None,
        "servable": one.reason is None,
        "reason": one.reason,
        "notes": list(one.verdict.notes),
    }
