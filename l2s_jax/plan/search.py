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
from l2s_jax.plan.compiled import Report, measure_all
from l2s_jax.plan.memory import tree_bytes
from l2s_jax.plan.planned import Planned
from l2s_jax.plan.programs import Programs, goes_ahead, programs_of
from l2s_jax.plan.subject import Subject
from l2s_jax.plan.topologies import GIB, SLICES, Topology, slices, topology
from l2s_jax.sharding import MeshConfig
from l2s_jax.training.adapter import kept_as

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
        for attempt, programs in on_slice(cfg, subject, topology(one), say):
            tried.append(attempt)
            if attempt.fits:
                return tried, programs
    return tried, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings, and what is known of them without compiling: bytes on a device."""

    cfg: Any
    programs: Programs | None  # None: its weights alone are too much
    leasts: dict[str, float]  # by program
    guesses: dict[str, float]

    @property
    def least(self) -> float:
        return max(self.leasts.values())

    def guess(self, factor: float = 1.0) -> float:
        """Of the largest program, where what goes beyond the least is `factor` times the guess."""
        return max(
            least + factor * (self.guesses[name] - least) for name, least in self.leasts.items()
        )

    def factor(self, peak: int) -> float:
        """That of the update, of which the compiler says what it takes."""
        least, guess = self.leasts[FIRST], self.guesses[FIRST]
        return (peak - least) / (guess - least)

    @property
    def update(self) -> tuple[Any, ...]:
        """What tells updates apart, whatever the sampler does beside them."""
        assert self.programs is not None
        [update] = (planned for planned in self.programs.programs if planned.name == FIRST)
        cfg = self.cfg
        return cfg.mesh, cfg.num_microbatches, cfg.remat, tree_bytes(update.beside)


def on_slice(
    cfg: Any, subject: Subject, place: Topology, say: Callable[[str], None]
) -> Iterator[tuple[Tried, Programs]]:
    """Settings on one slice in the order of preference, as far as they are worth compiling.

    What the first update takes corrects the estimate of the others. Where nothing should fit, what
    comes nearest is compiled, for an estimate may be too high.
    """
    limit, least = place.chip.memory_bytes or math.inf, math.inf
    nearest, nearest_guess = None, math.inf
    compiled, too_large, factor = False, set(), 1.0
    for group in candidates(cfg, subject, place):
        for one in group:
            least = min(least, one.least)
            if one.programs is None:
                break
            if one.guess(factor) > limit:
                if one.least <= limit and one.guess() < nearest_guess:
                    nearest, nearest_guess = one, one.guess()
                continue
            if one.update in too_large:
                continue
            tried, compiled = _compiled(cfg, one, one.programs, place, say), True
            yield tried, one.programs
            if tried.reports[0].fits(place):
                break  # another program is too large, and more parts change the update alone
            too_large.add(one.update)
            if len(too_large) == MAX_COMPILED:
                return
            factor = max(factor, one.factor(tried.reports[0].memory.peak))
    if not compiled and nearest is not None and nearest.programs is not None:
        yield _compiled(cfg, nearest, nearest.programs, place, say), nearest.programs
    elif not compiled:
        reason = "no mesh shares its rows and heads evenly"
        if least < math.inf:
            reason = f"takes {least / GIB:.2f} GiB a chip at the least"
        say(f"{place.name}: {reason}; not compiled")


def _compiled(
    cfg: Any, one: Candidate, programs: Programs, place: Topology, say: Callable[[str], None]
) -> Tried:
    """What the compiler makes of a candidate, told as it goes."""
    settings = differences(cfg, one.cfg)
    named = " ".join(f"{name}={value}" for name, value in settings.items())
    say(f"{place.name}: compiling with {named or 'the settings of the recipe'}")
    reports = measure_until(programs, place)
    last = max(reports, key=lambda report: report.memory.peak)
    say(f"{place.name}: {last.name} takes {last.memory.peak / GIB:.2f} GiB a chip")
    return Tried(topology=place, settings=settings, reports=reports)


def candidates(cfg: Any, subject: Subject, place: Topology) -> Iterator[Iterator[Candidate]]:
    """The run under settings for a slice, in the groups of `variants`; each is made when asked."""
    samplers: dict[Any, Any] = {}
    num_params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(subject.model)))

    def estimated(changed: Any) -> Iterator[Candidate]:
        weights = weight_bytes(num_params, changed, ahead=goes_ahead(changed, place))
        if weights > (place.chip.memory_bytes or math.inf):  # without tracing a program
            known = {"weights": weights}
            yield Candidate(cfg=changed, programs=None, leasts=known, guesses=known)
            return
        try:
            programs = programs_of(changed, subject, place, samplers)
        except ValueError:  # rows or heads that this mesh cannot share
            return
        sizes = (changed, subject.model)
        yield Candidate(
            cfg=changed,
            programs=programs,
            leasts={p.name: least_bytes(p, *sizes) for p in programs.programs},
            guesses={p.name: guessed_bytes(p, *sizes) for p in programs.programs},
        )

    for group in variants(cfg, subject.model, place):
        yield (one for changed in group for one in estimated(changed))


def measure_until(programs: Programs, place: Topology) -> list[Report]:
    """Reports of the programs, up to the first that does not fit."""
    reports = []
    for report in measure_all(sorted(programs.programs, key=lambda p: p.name != FIRST), place):
        reports.append(report)
        if not report.fits(place):
            break
    return reports


def variants(cfg: Any, model: ModelConfig, place: Topology) -> Iterator[Iterator[Any]]:
    """The run under settings for a slice, in groups: each on a mesh, with more and more parts."""
    tensor = 1
    while tensor <= min(place.num_chips, model.num_heads):
        shared = heads_are_shared(model.num_heads, model.num_kv_heads, tensor)
        if place.num_chips % tensor == 0 and shared:
            mesh = MeshConfig(data=1, fsdp=place.num_chips // tensor, tensor=tensor)
            for changed in samplings(dataclasses.replace(cfg, mesh=mesh), place):
                yield _parts(changed)
        tensor *= 2


def samplings(cfg: Any, place: Topology) -> Iterator[Any]:
    """The run as it is; and with less memory for sampling: apart from the update, on fewer rows."""
    yield cfg
    if not hasattr(cfg, "sampling"):
        return
    if goes_ahead(cfg, place):
        cfg = dataclasses.replace(cfg, ahead=False)
        yield cfg
    rows = cfg.sampling.max_rows // 2
    while rows >= cfg.sampling.num_samples:
        fewer = dataclasses.replace(cfg.sampling, max_rows=rows)
        yield dataclasses.replace(cfg, sampling=fewer)
        rows //= 2


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


def weight_bytes(num_params: int, cfg: Any, *, ahead: bool) -> float:
    """What weights in all their copies take on a device: moments, gradients, the sampler's.

    Args:
      ahead: the run samples during its updates; else gradients and the sampler's copy take turns.
    """
    on_device = num_params / (cfg.mesh.data * cfg.mesh.fsdp * cfg.mesh.tensor)
    whole, base = cfg.lora is None, jnp.dtype(kept_as(cfg.lora)).itemsize
    kept = (8 + jnp.dtype(cfg.optim.weights).itemsize if whole else base) * on_device
    gradients = 4 * on_device if whole else 0
    if not hasattr(cfg, "sampling"):
        return kept + gradients
    # Without a refresh an adapter's base is the behaviour policy itself.
    own = whole or cfg.refresh_every is not None
    behaviour = min(base, jnp.dtype(cfg.optim.weights).itemsize) * on_device if own else 0
    sampled = jnp.dtype(cfg.dtype).itemsize * num_params / cfg.mesh.tensor
    return kept + behaviour + (gradients + sampled if ahead else max(gradients, sampled))


def guessed_bytes(planned: Planned, cfg: Any, model: ModelConfig) -> float:
    """An estimate of a program's peak, good enough to choose what to compile first.

    Of an update's: what the compiler assigned to four updates of a 7B (LOG.md, 2026-11-27), met
    within 0.3 GiB.
    """
    least = least_bytes(planned, cfg, model)
    if planned.name != FIRST:
        return least
    size, tensor = jnp.dtype(cfg.dtype).itemsize, cfg.mesh.tensor
    kept = {"full": 1, "dots": 6, "none": 14}[cfg.remat] * model.num_layers * model.width
    inside = 6 * model.width + 3.5 * model.ffn_width / tensor  # one block, computed again
    missing = kept - model.num_layers * model.width / tensor + inside
    trained = jax.tree.leaves(planned.arguments["state"].params)
    # The weights once more in the computation's type, and a part's gradients beside their sum.
    of_weight = (size if size < 4 else 0) + (4 if cfg.num_microbatches > 1 else 0)
    again = of_weight * sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in trained)
    return least + again + size * missing * tokens_in_part(planned, cfg)


def tokens_in_part(planned: Planned, cfg: Any) -> float:
    """Tokens that one device takes through the model at a time."""
    size = math.prod(planned.arguments["batch"].tokens.shape)
    return size / (cfg.mesh.data * cfg.mesh.fsdp * cfg.num_microbatches)
