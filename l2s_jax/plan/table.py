"""A plan as a person reads it, and as a program does.

Lives here: the table and the JSON of reports. Not here: the reports (`plan/compiled.py`).
"""

from collections.abc import Sequence
from typing import Any

from l2s_jax.plan.compiled import Report
from l2s_jax.plan.search import Tried
from l2s_jax.plan.topologies import Topology

GIB = 2**30
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB}
HEADS = [
    "program",
    "arguments (GiB)",
    "temporaries",
    "beside",
    "peak",
    "share",
    "fits",
    "GFLOP",
    "memory (s)",
    "links (s)",
    "at best (s)",
    "bound by",
    "MFU at best",
]


def as_record(report: Report, place: Topology) -> dict[str, Any]:
    """One program; bytes and seconds of one device."""
    memory, cost, limit = report.memory, report.cost, place.chip.memory_bytes
    record: dict[str, Any] = {
        "program": report.name,
        "argument_bytes": memory.arguments,
        "padding_bytes": memory.padding,
        "temporary_bytes": memory.temporaries,
        "result_bytes": memory.results,
        "beside_bytes": memory.beside,
        "peak_bytes": memory.peak,
        "share": memory.peak / limit if limit else None,
        "fits": report.fits(place),
        "compile_seconds": round(report.compile_seconds, 2),
    }
    if cost is None:
        return record
    return record | {
        "flops": cost.flops,
        "memory_traffic_bytes": cost.num_bytes,
        "link_bytes": cost.link_bytes,
        "compute_seconds": cost.compute_seconds,
        "memory_seconds": cost.memory_seconds,
        "link_seconds": cost.link_seconds,
        "seconds_at_best": cost.seconds,
        "bound": cost.bound,
        "mfu_ceiling": cost.mfu(place.chip.flops),
    }


def as_table(reports: Sequence[Report], place: Topology) -> str:
    """The programs, one a line; sizes in GiB and times in seconds, of one device."""
    unit = max((name for name in UNITS if _largest(reports) >= UNITS[name]), key=UNITS.__getitem__)
    heads = [name.replace("(GiB)", f"({unit})") for name in HEADS]
    rows = [heads, *(_row(report, place, UNITS[unit]) for report in reports)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


def _largest(reports: Sequence[Report]) -> int:
    return max((report.memory.peak for report in reports), default=GIB)


def _row(report: Report, place: Topology, unit: int) -> list[str]:
    memory, cost, limit = report.memory, report.cost, place.chip.memory_bytes
    row = [
        report.name,
        _size(unit, memory.arguments + memory.padding),
        _size(unit, memory.temporaries + memory.results),
        _size(unit, memory.beside),
        _size(unit, memory.peak),
        f"{memory.peak / limit:.0%}" if limit else "-",
        "yes" if report.fits(place) else "NO",
    ]
    if cost is None:
        return row + ["-"] * (len(HEADS) - len(row))
    mfu = cost.mfu(place.chip.flops)
    return [
        *row,
        f"{cost.flops / 1e9:,.0f}",
        _seconds(cost.memory_seconds),
        _seconds(cost.link_seconds),
        _seconds(cost.seconds),
        cost.bound or "-",
        "-" if mfu is None else f"{mfu:.0%}",
    ]


def _size(unit: int, num_bytes: int) -> str:
    return f"{num_bytes / unit:.2f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def heading(place: Topology) -> str:
    """The devices in words."""
    limit = place.chip.memory_bytes
    memory = "" if limit is None else f", {limit / GIB:.2f} GiB each for programs"
    hosts = "" if place.num_hosts == 1 else f" on {place.num_hosts} hosts"
    return f"{place.name}: {place.num_chips} x {place.chip.kind}{hosts}{memory}"


def settings_text(tried: Tried) -> str:
    """The settings as one would give them."""
    if not tried.settings:
        return "the recipe as it is"
    return "--set " + " ".join(f"{name}={value}" for name, value in tried.settings.items())
