"""How `manytune plan` prints a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from manytune.evaluation.quantities import milliseconds, seconds, share
from manytune.planner.hardware import GIB, Hardware
from manytune.planner.plan import Plan
from manytune.planner.ranges import Range
from manytune.planner.serving import NoRoom, ServingEstimate
from manytune.planner.training import TrainingEstimate

_TO = "\N{EN DASH}"
_COUNTS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print what a training and a service would take.

    Args:
        plan: The plan.
        console: Where; None for stdout.
    """
    console = console or Console(highlight=False)
    table = _grid()
    table.add_row("model", f"{plan.model.model_type}, {_count(plan.model.parameters)} parameters")
    trained = plan.trained.parameters
    table.add_row(
        "method", f"{plan.trained.label}: {_count(trained)} trained ({share(trained, plan.model.parameters)})"
    )
    device = plan.hardware
    table.add_row(
        "device",
        f"{plan.device_name}: {device.memory_gib:.0f} GiB, {device.bandwidth_gb_s:,.0f} GB/s, "
        f"{', '.join(f'{_digits(value)} TFLOP/s in {dtype}' for dtype, value in device.tflops.items())}",
    )
    table.add_row("", Text(device.source, "dim"))
    console.print(table)
    if plan.training is not None:
        _print_training(plan, plan.training, console)
    if isinstance(plan.serving, NoRoom):
        console.print()
        console.print(Text.assemble(("Serving ", "bold"), "doesn't fit: ", plan.serving.why))
    elif plan.serving is not None:
        _print_serving(plan, plan.serving, console)
    for note in plan.notes:
        console.print()
        console.print(Text(note))


def print_hardware(devices: Mapping[str, Hardware]) -> None:
    """Print the table of devices with its sources."""
    console = Console(highlight=False)
    for name, device in devices.items():
        speeds = ", ".join(f"{_digits(value)} TFLOP/s {dtype}" for dtype, value in device.tflops.items())
        console.print(Text(name, "bold"))
        facts = Text(f"{device.memory_gib:g} GiB, {device.bandwidth_gb_s:,.0f} GB/s, {speeds}")
        for line in (facts, Text(device.source, "dim")):
            console.print(Padding(line, (0, 0, 0, 2)))


def _print_training(plan: Plan, found: TrainingEstimate, console: Console) -> None:
    section = plan.recipe.training
    assert section is not None
    console.print()
    each = " on each device" if section.devices > 1 else ""
    console.print(Text(f"Training: peak memory{each}", "bold"))
    table = _amounts()
    for part in found.parts:
        table.add_row(part.name, *_cells(part.bytes, _size))
    table.add_section()
    table.add_row("total", *_cells(found.memory, _size), style="bold")
    console.print(table)
    console.print(_verdict(found, section.batch_size, plan))
    console.print()
    console.print(Text("Training: time", "bold"))
    table = _grid()
    flops = f"{found.required_flops:.3g} FLOPs required"
    if found.computed_flops > found.required_flops:
        flops += f", {found.computed_flops:.3g} with recomputation"
    table.add_row("one step", flops)
    table.add_row("", _range(found.step_seconds, milliseconds))
    table.add_row("tokens/s", _range(found.tokens_per_second, _digits))
    table.add_row("steps", f"{found.steps:,}")
    table.add_row("total", _range(found.seconds, seconds))
    if found.cost is not None:
        table.add_row(
            "cost", f"{_range(found.cost, _money)} for {_range(found.device_hours, _hours)} of a device"
        )
    console.print(table)


def _verdict(found: TrainingEstimate, rows: int, plan: Plan) -> Text:
    capacity = f"{found.capacity / GIB:.0f} GiB"
    largest = (
        f"Batches of up to about {found.largest_batch:,} rows fit."
        if found.largest_batch
        else "Not even a batch of one row fits."
    )
    if found.memory.high <= found.capacity:
        return Text.assemble(("Fits ", "bold green"), f"into {capacity}. {largest}")
    if found.memory.expected <= found.capacity:
        return Text.assemble(("May fit ", "bold yellow"), f"into {capacity}. {largest}")
    hints = ", ".join(plan.savings)
    return Text.assemble(
        ("Doesn't fit ", "bold red"),
        f"into {capacity}. {largest}",
        f" What saves memory: {hints}." if hints else "",
    )


def _print_serving(plan: Plan, found: ServingEstimate, console: Console) -> None:
    section = plan.recipe.serving
    assert section is not None
    console.print()
    devices = f"{found.devices} devices" if found.devices > 1 else "one device"
    console.print(Text(f"Serving: a replica of {devices}", "bold"))
    table = _grid()
    table.add_row("base", f"{_size(found.weight_bytes)}, {section.weights}")
    table.add_row("keys and values", f"{_size(found.kv_bytes)} a token")
    table.add_row("requests at once", _range(found.batch, _digits))
    table.add_row("memory, total", _range(found.memory, _size))
    if section.adapters:
        slots = f"{found.slots:,} {'slot' if found.slots == 1 else 'slots'} of {_size(found.slot_bytes)}"
        loaded = f"the others load theirs from RAM, {_size(found.loaded_bytes)}/s"
        table.add_row("adapters in use", f"{slots}; {_found_there(found.slot_hit_rate, loaded)}")
        held = f"all {section.adapters:,}" if found.in_memory == section.adapters else f"{found.in_memory:,}"
        table.add_row(
            "adapters in RAM",
            f"{held} of {_size(found.adapter_bytes)}: {_size(found.in_memory * found.adapter_bytes)}; "
            + _found_there(found.memory_hit_rate, "the others read the disk"),
        )
    table.add_row("tokens/s", _range(found.tokens_per_second, _digits))
    table.add_row("… of one answer", _range(found.stream_tokens_per_second, _digits))
    table.add_row("time to first token", f"{_range(found.first_token_seconds, milliseconds)} without a queue")
    table.add_row("requests/s", _range(found.requests_per_second, _digits))
    console.print(table)
    console.print()
    traffic = f"{section.requests_per_second:g} requests/s, at {section.load:.0%} of that"
    console.print(Text(f"Serving: {traffic}", "bold"))
    table = _grid()
    table.add_row("replicas", _range(found.replicas, _digits))
    table.add_row("devices", _range(found.all_devices, _digits))
    if found.cost_per_hour is not None and found.cost_per_million is not None:
        table.add_row("cost", f"{_range(found.cost_per_hour, _money)} an hour")
        table.add_row("", f"{_range(found.cost_per_million, _money)} for a million answer tokens")
    console.print(table)


def _found_there(share: float, otherwise: str) -> str:
    """For which share of the requests an adapter is where it is wanted, and what the others do."""
    return (
        "every request finds its adapter"
        if share == 1
        else f"{share:.0%} of requests find theirs, {otherwise}"
    )


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _amounts() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")
    return table


def _cells(found: Range, shown: Callable[[float], str]) -> tuple[str, str]:
    low, high = shown(found.low), shown(found.high)
    return shown(found.expected), "" if low == high else f"{_without_unit(low, high)} {_TO} {high}"


def _range(found: Range, shown: Callable[[float], str]) -> str:
    expected, outer = _cells(found, shown)
    return f"{expected} ({outer})" if outer else expected


def _without_unit(low: str, high: str) -> str:
    """`3.1` for `3.1 GiB`, if the other has the same unit."""
    number, _, unit = low.partition(" ")
    return (
        number
        if unit.isalpha() and high.endswith(f" {unit}") and number.replace(".", "").replace(",", "").isdigit()
        else low
    )


def _size(value: float) -> str:
    for unit in ("KiB", "MiB"):
        value /= 1024
        if value < 1000:
            return f"{_digits(value)} {unit}"
    return f"{_digits(value / 1024)} GiB"


def _count(value: int) -> str:
    for scale, name in _COUNTS:
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value:,}"


def _digits(value: float) -> str:
    """Two or three digits: more would say more than is known."""
    if value >= 100:
        rounded = float(f"{value:.3g}")
        return f"{rounded:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _money(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{float(f'{value:.3g}'):,.0f}"


def _hours(value: float) -> str:
    return f"{_digits(value)} h"
