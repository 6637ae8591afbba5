"""Programs compiled, and what the compiler made of them.

Lives here: `Report` of one program, `measure`, which compiles or remembers, and `measure_all`. Not
here: which programs (`plan/programs.py`), what is made of the reports (`plan/table.py`,
`plan/search.py`).

What was measured once is kept under the user's cache folder by a fingerprint of the program's text,
the topology and the compiler: the same program is not compiled twice.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from l2s_jax.config import from_json, to_json
from l2s_jax.data.store import replace_file
from l2s_jax.plan.cost import Cost, cost_of
from l2s_jax.plan.flops import count_flops
from l2s_jax.plan.hlo import traffic
from l2s_jax.plan.memory import Memory, memory_of, refused_bytes, tree_bytes
from l2s_jax.plan.planned import Planned
from l2s_jax.plan.topologies import HERE, Topology

AT_ONCE = 2  # compilations; one of a 7B takes a core and up to 7 GB
FORMAT = 2  # of what is kept; another one is measured anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a program takes on one device."""

    name: str
    memory: Memory
    cost: Cost | None  # None where it was too large to be compiled
    refused: bool = False  # by the compiler, for its memory
    compile_seconds: float = 0.0
    remembered: bool = False

    def fits(self, topology: Topology) -> bool:
        limit = topology.chip.memory_bytes
        return not self.refused and (limit is None or self.memory.peak <= limit)


def measure_all(programs: Sequence[Planned], topology: Topology) -> Iterator[Report]:
    """The reports in the order of the programs, compiled side by side.

    What has not begun when the caller asks for no more is left out.
    """
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        begun = [pool.submit(measure, planned, topology) for planned in programs]
        try:
            for one in begun:
                yield one.result()
        finally:
            pool.shutdown(cancel_futures=True)


def measure(planned: Planned, topology: Topology) -> Report:
    """The report of a program."""
    traced = planned.trace()
    lowered = traced.lower()
    known = _cache_file(lowered.as_text(), planned, topology)
    beside = tree_bytes(planned.beside)
    if known is not None and known.exists():
        found = from_json(Report, json.loads(known.read_text()))
        memory = dataclasses.replace(found.memory, beside=beside)
        return dataclasses.replace(found, memory=memory, name=planned.name, remembered=True)
    report = _compile(planned, topology, traced, lowered)
    if known is not None:
        known.parent.mkdir(parents=True, exist_ok=True)
        replace_file(known, json.dumps(to_json(report)).encode())
    return report


def _compile(planned: Planned, topology: Topology, traced: Any, lowered: Any) -> Report:
    begin = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = refused_bytes(str(error))
        if needed is None:
            raise
        return _too_large(planned, needed, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    cost = cost_of(
        count_flops(traced.jaxpr, while_trips=planned.trips),
        traffic(compiled.as_text(), while_trips=planned.trips),
        topology,
        devices=planned.mesh.size,
        model_flops=planned.model_flops,
    )
    return Report(
        name=planned.name,
        memory=memory_of(
            compiled,
            planned.arguments,
            planned.beside,
            platform=planned.mesh.devices.flat[0].platform,
        ),
        cost=cost,
        compile_seconds=seconds,
    )


def _too_large(planned: Planned, needed: int, seconds: float) -> Report:
    """What is known of a program that the compiler refused: what it would need, or more."""
    arguments = tree_bytes(planned.arguments)
    memory = Memory(
        arguments=arguments,
        padding=0,
        temporaries=max(0, needed - arguments),
        results=0,
        beside=tree_bytes(planned.beside),
    )
    return Report(
        name=planned.name, memory=memory, cost=None, refused=True, compile_seconds=seconds
    )


def _cache_file(text: str, planned: Planned, topology: Topology) -> pathlib.Path | None:
    """Where a program's report is kept; None for this machine's own devices, which are quick."""
    if topology.name == HERE:
        return None
    version = [importlib.metadata.version(name) for name in ("jaxlib", "libtpu")]
    known = [FORMAT, topology.name, *version, planned.trips, planned.model_flops, text]
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "l2s_jax" / "plan" / f"{digest}.json"
