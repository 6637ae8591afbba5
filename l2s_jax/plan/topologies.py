"""What a program is planned for: a TPU slice by its name, or the devices at hand.

Lives here: the chips' figures, names such as `v5e:4x4` or `2*v5e:8x8` (two slices), the slices of a
generation from the smallest up. Not here: what is compiled for them (`plan/programs.py`).

Sources. Memory that a program can use: what libtpu 0.0.42 says of each chip when a program does not
fit ("exceeds available HBM"); the rest of a chip's memory is the runtime's. Bandwidths: Google's
pages of each TPU version (docs.cloud.google.com/tpu/docs/v5e, v6e, v5p, read 2026-11); a link's one
direction is the page's bidirectional figure over links and directions. Peak of arithmetic:
`training/speed.py`.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from l2s_jax.cli.devices import quiet_libtpu
from l2s_jax.training.speed import peak_flops

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of device. Figures that nobody knows, as a CPU's, are None."""

    kind: str
    memory_bytes: int | None  # that programs can use
    flops: float | None  # dense bfloat16, a second
    memory_bandwidth: float | None  # bytes a second
    link_bandwidth: float | None  # bytes a second, one link in one direction
    dcn_bandwidth: float | None = None  # bytes a second of a chip between slices


def _tpu(kind: str, gib: float, bandwidth: float, link: float, dcn: float) -> Chip:
    return Chip(
        kind=kind,
        memory_bytes=int(gib * GIB),
        flops=peak_flops(kind),
        memory_bandwidth=bandwidth,
        link_bandwidth=link,
        dcn_bandwidth=dcn,
    )


# Chips of a v5e or v6e have 4 links, those of a v5p 6. Between slices: 2 x 100 Gbps for 8 chips of
# v5e, 50 Gbps for one of v5p; v6e's page gives 4 x 200 Gbps for 8.
CHIPS = {
    "v5e": _tpu("TPU v5e", 15.75, 819e9, 400e9 / 8, 25e9 / 8),
    "v6e": _tpu("TPU v6e", 31.25, 1638e9, 800e9 / 8, 100e9 / 8),
    "v5p": _tpu("TPU v5p", 95.74, 2765e9, 1200e9 / 12, 6.25e9),
}
SLICES = {  # that can be had, the smallest first
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8",
}
ONE_HOST = 8  # chips of a v5e or v6e slice that hang on one host; larger slices have four on each
HOST = (2, 2, 1)  # these four, and those of every host of v5p
HERE = "here"

NAME = re.compile(r"(?:(?P<num>[1-9]\d*)\*)?(?P<chip>\w+):(?P<shape>\d+(?:x\d+){1,2})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices that a run would have."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    num_slices: int = 1

    @property
    def num_chips(self) -> int:
        return len(self.devices)

    @property
    def num_hosts(self) -> int:
        return len({device.process_index for device in self.devices})


def topology(name: str) -> Topology:
    """The devices of a name: `v5e:4x4`, `2*v5e:8x8`, or `here`."""
    return here() if name == HERE else tpu_slice(name)


def tpu_slice(name: str) -> Topology:
    """The devices of TPU slices that need not exist: the compiler knows them, nothing runs."""
    found = NAME.fullmatch(name)
    if found is None or found["chip"] not in CHIPS:
        raise ValueError(
            f"--topology {name!r}: give {HERE}, or one of {', '.join(CHIPS)} with a shape, such as"
            " v5e:4x4, v5p:2x2x1, or 2*v5e:8x8 for two slices."
        )
    shape = tuple(map(int, found["shape"].split("x")))
    if len(shape) != (3 if found["chip"] == "v5p" else 2):
        raise ValueError(
            f"--topology {name!r}: a slice of {found['chip']} has a shape such as"
            f" {SLICES[found['chip']].split()[1]}."
        )
    num_slices = int(found["num"] or 1)
    return Topology(
        name=name,
        chip=CHIPS[found["chip"]],
        devices=tuple(_describe(f"{found['chip']}:{found['shape']}", shape, num_slices)),
        num_slices=num_slices,
    )


def _describe(name: str, shape: tuple[int, ...], num_slices: int) -> Any:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology {name}: compiling for a TPU takes libtpu, which is not installed:"
            " in this checkout pip install -c constraints.txt -e '.[plan]' (700 MB on disk)."
        )
    quiet_libtpu()
    from jax.experimental import topologies

    bounds = (*shape, 1) if len(shape) == 2 and math.prod(shape) <= ONE_HOST else HOST
    try:
        described = topologies.get_topology_desc(
            name, "tpu", num_slices=num_slices, chips_per_host_bounds=bounds
        )
    except RuntimeError as error:
        raise ValueError(f"--topology {name}: {str(error).splitlines()[0]}") from None
    return described.devices


def one_host(place: Topology) -> Topology:
    """The chips of one of a slice's hosts, as a slice of their own.

    A program on some of a slice's chips runs there, but the compiler wants to be told of them all.
    """
    if place.num_hosts == 1:
        return place
    generation = place.name.split("*")[-1].split(":")[0]
    shape = HOST if generation == "v5p" else HOST[:2]
    return tpu_slice(f"{generation}:{'x'.join(map(str, shape))}")


def here() -> Topology:
    """This machine's devices."""
    devices = jax.devices()
    kind = devices[0].device_kind
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit")
    if memory is None and devices[0].platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    chip = Chip(
        kind=kind,
        memory_bytes=memory,
        flops=peak_flops(kind),
        memory_bandwidth=None,
        link_bandwidth=None,
    )
    return Topology(name=HERE, chip=chip, devices=tuple(devices))


def slices(generation: str) -> list[str]:
    """Names of a generation's slices, the smallest first."""
    if generation not in SLICES:
        raise ValueError(f"{generation!r}: give one of {', '.join(SLICES)}.")
    return [f"{generation}:{shape}" for shape in SLICES[generation].split()]
