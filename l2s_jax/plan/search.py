"""The smallest slice on which a run fits, and the settings that make it fit.

Lives here: which settings are tried, in which order, and which need no compilation. Not here:
compiling (`plan/compiled.py`).

Tried are settings that change no result beyond rounding: mesh axes, micro-batches, what the
backward pass computes again; in stage 2 how many rows are sampled side by side, and whether during
the update. What the arrays of a program take is known without compiling, and
where they alone are too much, nothing is compiled. Of the rest an estimate says what to try first;
only the compiler says what fits.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.routes import heads_are_shared
from l2s_jax.plan.compiled import Report, measure
from l2s_jax.plan.memory import tree_bytes
from l2s_jax.plan.programs import Planned, Programs, programs_of
from l2s_jax.plan.subject import Subject
from l2s_jax.plan.topologies import GIB, SLICES, Topology, slices, topology
from l2s_jax.sharding import MeshConfig

MAX_COMPILED = 3  # updates that are compiled for one slice before the next larger one is taken
FIRST = "update"  # the program that needs most; where it does not fit, the others do not matter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting on one slice."""

    topology: Topology
    settings: dict[str, str]  # as after --set; empty: the recipe as it is
    reports: list[Report]
    why: str = ""  # nothing was compiled

    @property
    def fits(self) -> bool:
        return not self.why and all(report.fits(self.topology) for report in self.reports)


def search(
    cfg: Any, subject: Subject, name: str, say: Callable[[str], None]
) -> tuple[list[Tried], Programs | None]:
    """All that was tried, the last of which fits if any does, and the programs of that one.

    Args:
      name: a topology, or a generation: its slices are then tried from the smallest up.
    """
    tried: list[Tried] = []
    for one in slices(name) if name in SLICES else [name]:
        for attempt, programs in _on_slice(cfg, subject, topology(one), say):
            tried.append(attempt)
            if attempt.fits:
                return tried, programs
    return tried, None


def _on_slice(
    cfg: Any, subject: Subject, place: Topology, say: Callable[[str], None]
) -> Iterator[tuple[Tried, Programs]]:
    """Settings on one slice, likeliest first, as far as they are worth compiling."""
    likely, nearest, least = worth_compiling(cfg, subject, place)
    if not likely and nearest is None:
        reason = "no mesh shares its rows and heads evenly"
        if least < math.inf:
            reason = f"takes {least / GIB:.2f} GiB a chip at the least"
        say(f"{place.name}: {reason}; not compiled")
    # Those that should fit in the order of preference; without one, what comes nearest.
    too_large = set()
    for changed, programs in likely or ([nearest] if nearest else []):
        update = update_of(changed, programs)
        if update in too_large:
            continue
        settings = differences(cfg, changed)
        named = " ".join(f"{name}={value}" for name, value in settings.items())
        say(f"{place.name}: compiling with {named or 'the settings of the recipe'}")
        reports = measure_until(programs, place)
        last = max(reports, key=lambda report: report.memory.peak)
        say(f"{place.name}: {last.name} takes {last.memory.peak / GIB:.2f} GiB a chip")
        if not reports[0].fits(place):
            too_large.add(update)
        yield Tried(topology=place, settings=settings, reports=reports), programs


Candidate = tuple[Any, Programs]


def worth_compiling(
    cfg: Any, subject: Subject, place: Topology
) -> tuple[list[Candidate], Candidate | None, float]:
    """(settings that should fit, the one that misses by least, the least bytes of all)."""
    limit, least = place.chip.memory_bytes or math.inf, math.inf
    likely: list[Candidate] = []
    nearest: Candidate | None = None
    misses = math.inf
    samplers: dict[Any, Any] = {}
    num_params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(subject.model)))
    for group in variants(cfg, subject.model, place):
        for changed in group:
            weights = weight_bytes(num_params, changed)
            if weights > limit:  # known without tracing a program
                least = min(least, weights)
                break
            try:
                programs = programs_of(changed, subject, place, samplers)
            except ValueError:  # rows or heads that this mesh cannot share
                continue
            takes = max(least_bytes(p, changed, subject.model) for p in programs.programs)
            guess = max(guessed_bytes(p, changed, subject.model) for p in programs.programs)
            least = min(least, takes)
            if guess <= limit:
                likely.append((changed, programs))
                break  # more parts, or more recomputation, would only take longer
            if takes <= limit and guess < misses:
                nearest, misses = (changed, programs), guess
        if len({update_of(*one) for one in likely}) == MAX_COMPILED:
            break
    return likely, nearest, least


def update_of(cfg: Any, programs: Programs) -> tuple[Any, ...]:
    """What tells updates apart, whatever the sampler does beside them."""
    [update] = (planned for planned in programs.programs if planned.name == FIRST)
    return cfg.mesh, cfg.num_microbatches, cfg.remat, tree_bytes(update.beside)


def measure_until(programs: Programs, place: Topology) -> list[Report]:
    """Reports of the programs, up to the first that does not fit."""
    reports = []
    for planned in sorted(programs.programs, key=lambda p: p.name != FIRST):
        reports.append(measure(planned, place))
        if not reports[-1].fits(place):
            break
    return reports


def variants(cfg: Any, model: ModelConfig, place: Topology) -> Iterator[Iterator[Any]]:
    """The run under settings for a slice, in groups: each on a mesh, with more and more parts."""
    tensor = 1
    while tensor <= min(place.num_chips, model.num_heads):
        shared = heads_are_shared(model.num_heads, model.num_kv_heads, tensor)
        if place.num_chips % tensor == 0 and shared:
            mesh = MeshConfig(data=1, fsdp=place.num_chips // tensor, tensor=tensor)
            for sampling in samplings(cfg):
                yield _parts(dataclasses.replace(cfg, mesh=mesh, **sampling))
        tensor *= 2


def samplings(cfg: Any) -> list[dict[str, Any]]:
    """What stage 2 may do with less memory: sample apart from the update, and fewer rows."""
    if not hasattr(cfg, "sampling"):
        return [{}]
    found: list[dict[str, Any]] = [{}, {"ahead": False}]
    rows = cfg.sampling.max_rows // 2
    while rows >= cfg.sampling.num_samples:
        fewer = dataclasses.replace(cfg.sampling, max_rows=rows)
        found.append({"ahead": False, "sampling": fewer})
        rows //= 2
    return found


def _parts(cfg: Any) -> Iterator[Any]:
    rows = num_rows(cfg)
    for remat in dict.fromkeys([cfg.remat, "full"]):
        for parts in range(1, rows + 1):
            if parts_are_whole(rows, parts, cfg.mesh.fsdp):
                yield dataclasses.replace(cfg, num_microbatches=parts, remat=remat)


def parts_are_whole(rows: int, parts: int, shards: int) -> bool:
    """True where every part gives every shard a row, and as many."""
    return rows % (parts * shards) == 0


def num_rows(cfg: Any) -> int:
    """Rows of a step that micro-batches and devices share."""
    if hasattr(cfg, "batch_rows"):
        return cfg.batch_rows
    return cfg.prompts_per_step * cfg.sampling.num_samples


def differences(cfg: Any, changed: Any) -> dict[str, str]:
    """What `--set` must say to make the one of the other."""
    found = {}
    for axis in ("data", "fsdp", "tensor"):
        if getattr(cfg.mesh, axis) != getattr(changed.mesh, axis):
            found[f"mesh.{axis}"] = str(getattr(changed.mesh, axis))
    for name in ("num_microbatches", "remat", "ahead"):
        if getattr(cfg, name, None) != getattr(changed, name, None):
            found[name] = str(getattr(changed, name)).lower()
    if hasattr(cfg, "sampling") and cfg.sampling.max_rows != changed.sampling.max_rows:
        found["sampling.max_rows"] = str(changed.sampling.max_rows)
    return found


# ---- without compiling ----


def least_bytes(planned: Planned, cfg: Any, model: ModelConfig) -> float:
    """What a program takes at the least on a device: its arrays, and what lies beside.

    An update holds gradients all at once, in float32, since their norm over all comes before it;
    and with them, as the backward pass begins, the input of every block.
    """
    arrays = float(tree_bytes(planned.arguments) + tree_bytes(planned.beside))
    if planned.name != FIRST:
        return arrays
    trained = jax.tree.leaves(planned.arguments["state"].params)
    gradients = 4 * sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in trained)
    inputs = model.num_layers * model.width * jnp.dtype(cfg.dtype).itemsize / cfg.mesh.tensor
    return arrays + gradients + inputs * tokens_in_part(planned, cfg)


def weight_bytes(num_params: int, cfg: Any) -> float:
    """What weights in all their copies take on a device: moments, gradients, the sampler's."""
    trained = 4 if cfg.lora is not None else 12 + jnp.dtype(cfg.optim.weights).itemsize
    on_device = num_params / (cfg.mesh.data * cfg.mesh.fsdp * cfg.mesh.tensor)
    if not hasattr(cfg, "sampling"):
        return trained * on_device
    behaviour = 4 * on_device
    sampled = jnp.dtype(cfg.dtype).itemsize * num_params / cfg.mesh.tensor
    return trained * on_device + behaviour + sampled


def guessed_bytes(planned: Planned, cfg: Any, model: ModelConfig) -> float:
    """An estimate of a program's peak, good enough to choose what to compile first."""
    least = least_bytes(planned, cfg, model)
    if planned.name != FIRST:
        return least
    size, tensor = jnp.dtype(cfg.dtype).itemsize, cfg.mesh.tensor
    kept = {"full": 1, "dots": 6, "none": 14}[cfg.remat] * model.num_layers * model.width
    inside = 16 * model.width + 8 * model.ffn_width / tensor  # one block, computed again
    missing = kept - model.num_layers * model.width / tensor + inside
    return least + size * missing * tokens_in_part(planned, cfg)


def tokens_in_part(planned: Planned, cfg: Any) -> float:
    """Tokens that one device takes through the model at a time."""
    size = math.prod(planned.arguments["batch"].tokens.shape)
    return size / (cfg.mesh.data * cfg.mesh.fsdp * cfg.num_microbatches)
