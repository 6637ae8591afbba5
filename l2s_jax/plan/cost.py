"""How long a program takes at the least: the roofline of its arithmetic, memory and links.

Lives here: `Cost`. Not here: counting (`plan/flops.py`, `plan/hlo.py`), the figures of a chip
(`plan/topologies.py`).

The three overlap at best, so that the longest of them bounds the program from below; nothing is
said of how near a program comes. A collective is taken as a ring in both directions over one pair
of a chip's links, which every mesh axis can have; the bytes that leave a chip are those of the best
algorithm on a ring. Between slices the data centre's network takes the links' place.
"""

import dataclasses
from collections.abc import Iterable

from l2s_jax.plan.hlo import Collective, Traffic
from l2s_jax.plan.topologies import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """A program's work on one device, and the least seconds that its parts take; None: unknown."""

    flops: float
    num_bytes: float
    link_bytes: dict[str, float]  # by kind of collective
    compute_seconds: float | None
    memory_seconds: float | None
    link_seconds: float | None
    model_flops: float | None  # of one device's share

    @property
    def seconds(self) -> float | None:
        """The longest part."""
        parts = (self.compute_seconds, self.memory_seconds, self.link_seconds)
        return max((part for part in parts if part is not None), default=None)

    @property
    def bound(self) -> str | None:
        """Which part that is."""
        named = {
            "arithmetic": self.compute_seconds,
            "memory": self.memory_seconds,
            "links": self.link_seconds,
        }
        known = {name: value for name, value in named.items() if value is not None}
        return max(known, key=lambda name: known[name]) if known else None

    def mfu(self, peak: float | None) -> float | None:
        """The share of a device's peak that the model's own work could reach at best."""
        if self.model_flops is None or not self.seconds or peak is None:
            return None
        return self.model_flops / (self.seconds * peak)


def cost_of(
    flops: float, traffic: Traffic, topology: Topology, *, devices: int, model_flops: float | None
) -> Cost:
    """What a program costs.

    Args:
      flops: of all its devices together; each does its share.
      devices: on which the program runs.
    """
    chip, per_slice = topology.chip, topology.num_chips // topology.num_slices
    sent: dict[str, float] = {}
    link_seconds = 0.0
    for one in traffic.collectives:
        num_bytes = one.count * sent_bytes(one)
        sent[one.kind] = sent.get(one.kind, 0.0) + num_bytes
        wide = crosses(one.groups, per_slice)
        speed = chip.dcn_bandwidth if wide else chip.link_bandwidth
        link_seconds += num_bytes / (speed * (1 if wide else 2)) if speed else 0.0
    share = flops / devices
    return Cost(
        flops=share,
        num_bytes=traffic.num_bytes,
        link_bytes=sent,
        compute_seconds=share / chip.flops if chip.flops else None,
        memory_seconds=traffic.num_bytes / chip.memory_bandwidth if chip.memory_bandwidth else None,
        link_seconds=link_seconds if chip.link_bandwidth else None,
        model_flops=None if model_flops is None else model_flops / devices,
    )


def sent_bytes(one: Collective) -> float:
    """Bytes that leave a device for a collective, once."""
    if one.kind == "collective-permute":
        return float(one.num_bytes)
    rest = (one.size - 1) / one.size
    return one.num_bytes * rest * (2 if one.kind == "all-reduce" else 1)


def crosses(groups: Iterable[Iterable[int]], per_slice: int) -> bool:
    """True where a group has devices of several slices."""
    return any(len({device // per_slice for device in group}) > 1 for group in groups)
