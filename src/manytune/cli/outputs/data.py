"""How `manytune data` prints what it found, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from manytune.data.conversation.form import DESCRIPTIONS
from manytune.data.rendering import shorten
from manytune.data.unused import said_of_unused
from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.data.check import DataCheck, FileCheck
    from manytune.data.preview import Part, Preview
    from manytune.data.records import Rejected

_SHOWN = 10  # rejected rows and leaks; --json has them all


def print_check(found: DataCheck, limit: int | None, *, has_template: bool) -> None:
    """Print one section a file, the leaks between them, and the verdict."""
    console = Console(highlight=False)
    for file in found.files:
        _print_file(console, file, limit)
    if len(found.files) > 1 and has_template:
        console.print(Text(f"{_counted(len(found.leaks), 'prompt')} in more than one file", "bold"))
        for leak in found.leaks[:_SHOWN]:
            console.print(Padding(Text(" = ".join(leak.places.values())), (0, 0, 0, 2)))
            console.print(Padding(Text(visible(shorten(leak.prompt)), "dim"), (0, 0, 0, 4)))
        _print_more(console, len(found.leaks))
        console.print()
    if not has_template:
        console.print(Text("Prompts weren't checked: no --prompt and --completion, or --template.", "yellow"))
    unusable = sum(len(file.rejected) for file in found.files)
    if found.passed:
        console.print(Text("Every row can be used.", "green"))
    elif unusable:
        console.print(Text(f"{_counted(unusable, 'row')} can't be used.", "bold red"))


def print_previews(shown: Sequence[Preview], left_out: Sequence[Rejected], *, has_base: bool) -> None:
    """Print examples as the model sees them, the loss-bearing part in colour and between plain markers."""
    console = Console(highlight=False)
    for item in shown:
        title = item.where
        given, learned = item.tokens(learned=False), item.tokens(learned=True)
        if given is not None:
            title += f" · {given:,} + {learned:,} tokens"
        if item.truncated:
            title += " · cut"
        console.print(Rule(Text(title), align="left"))
        console.print(Text.assemble(*map(_marked, item.parts)), overflow="fold")
    console.print(Rule())
    console.print(Text("The model learns what is between >>> and <<<."))
    if not has_base:
        console.print(Text("With --base: its chat format, its end token, and token counts.", "dim"))
    _print_rejected(console, left_out)


def _marked(part: Part) -> Text:
    text = visible(part.text)
    return (
        Text.assemble((">>>", "bold green"), (text, "green"), ("<<<", "bold green"))
        if part.learned
        else Text(text)
    )


def print_split(written: Mapping[str, int], left_out: Sequence[Rejected]) -> None:
    """Print which files were written."""
    console = Console(highlight=False)
    for file, rows in written.items():
        console.print(Text(f"{rows:>7,}  {file}"), overflow="fold")
    _print_rejected(console, left_out)


def _print_file(console: Console, file: FileCheck, limit: int | None) -> None:
    console.print(Text.assemble((file.source, "bold"), f": {_counted(file.rows, 'row')}"))
    if file.form is not None:
        console.print(Text(f"  {DESCRIPTIONS[file.form]}"))
    if file.roles:
        listed = ", ".join(f"{role} {count:,}" for role, count in file.roles.items())
        console.print(Padding(Text(f"messages: {listed}"), (0, 0, 0, 2)))
    if file.labels:
        whole = max(1, sum(file.labels.values()))
        listed = ", ".join(f"{label} {count:,} ({count / whole:.0%})" for label, count in file.labels.items())
        console.print(Padding(Text(visible(f"labels: {listed}")), (0, 0, 0, 2)))
    if file.numbers is not None:
        found = file.numbers
        listed = (
            f"labels: {found.minimum:g} to {found.maximum:g}, mean {found.mean:.4g}, "
            f"standard deviation {found.deviation:.4g}"
        )
        console.print(Padding(Text(listed), (0, 0, 0, 2)))
    counts = {"can't be used": len(file.rejected), "equal to an earlier row": file.duplicate_rows}
    if file.duplicate_prompts is not None:
        counts["same prompt as an earlier row"] = file.duplicate_prompts
    counts |= {f"empty: {name}": count for name, count in file.empty.items()}
    if file.tokens is not None:
        counts["spell a special token in the prompt"] = file.tokens.special_tokens
        if file.tokens.over_length is not None:
            counts[f"longer than {limit:,} tokens"] = file.tokens.over_length
    if file.roles:
        counts["odd"] = len({row.where for row in file.odd})
    for name, count in counts.items():
        console.print(Text(f"  {count:>7,}  {name}", "" if count else "dim"))
    if file.tools_as_text:
        rows = _counted(file.tools_as_text, "row")
        note = f"{rows} with tools: the base's template knows none, so they are written as text"
        console.print(Padding(Text(note, "yellow"), (0, 0, 0, 2)))
    if file.unused:
        console.print(Padding(Text(said_of_unused(file.unused), "yellow"), (0, 0, 0, 2)))
    if file.lengths:
        console.print(_length_table(file))
    for row in file.odd[:_SHOWN]:
        console.print(Padding(Text.assemble((f"{row.where} ", "yellow"), visible(row.what)), (0, 0, 0, 2)))
    _print_more(console, len(file.odd))
    _print_rejected(console, file.rejected)
    console.print()


def _length_table(file: FileCheck) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("", overflow="fold")
    for name in ("min", "median", "95%", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in file.lengths.items():
        lengths = (found.minimum, found.median, found.percentile_95, found.maximum)
        table.add_row(Text(name), *(f"{length:,}" for length in lengths))
    return table


def _print_rejected(console: Console, rejected: Sequence[Rejected]) -> None:
    if not rejected:
        return
    console.print(Text(f"{_counted(len(rejected), 'row')} left out", "bold yellow"))
    for row in rejected[:_SHOWN]:
        console.print(Padding(Text.assemble((f"{row.where} ", "yellow"), visible(row.reason)), (0, 0, 0, 2)))
    _print_more(console, len(rejected))


def _print_more(console: Console, count: int) -> None:
    if count > _SHOWN:
        console.print(Text(f"  and {count - _SHOWN:,} more; --json lists all", "dim"))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
