"""What to change where a run does not fit.

Lives here: suggestions, by the program that is too large. Not here: trying them (`plan/search.py`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from l2s_jax.evaluation.benchmark import EvalRun
from l2s_jax.plan.compiled import Report
from l2s_jax.plan.search import num_rows, parts_are_whole
from l2s_jax.plan.topologies import Topology

SAMPLER = ("sampler begins", "prefill", "decode")


def advice(cfg: Any, reports: Sequence[Report], place: Topology) -> Iterator[str]:
    """Lines for a person; those that change no result beyond rounding come first."""
    large = {report.name for report in reports if not report.fits(place)}
    if large & {"update", "log-probs", "validation"}:
        yield from _of_training(cfg, place)
    if large & {*SAMPLER, "reshard a layer"}:
        yield from _of_sampling(cfg)
    if not isinstance(cfg, EvalRun):
        yield "to have the slices and settings tried: --search"


def _of_training(cfg: Any, place: Topology) -> Iterator[str]:
    if cfg.remat != "full":
        yield "recompute more in the backward pass: --set remat=full"
    shards = place.num_chips // cfg.mesh.tensor
    rows, parts = num_rows(cfg), cfg.num_microbatches
    more = next((n for n in range(parts + 1, rows + 1) if parts_are_whole(rows, n, shards)), None)
    if more is not None:
        yield f"let fewer rows through the model at a time: --set num_microbatches={more}"
    if cfg.mesh.fsdp == 1 and place.num_chips > 1:
        yield "cut weights and optimizer over the chips: --set mesh.data=1 mesh.fsdp=-1"
    if cfg.optim.weights != "bfloat16":
        yield "keep weights in bfloat16, rounded by chance: --set optim.weights=bfloat16"
    if cfg.lora is None:
        yield "train an adapter instead of the whole model: SftRun.lora or GrpoRun.lora"
    yield "take more chips, or chips with more memory"


def _of_sampling(cfg: Any) -> Iterator[str]:
    if getattr(cfg, "ahead", False):
        yield "do not sample during the update: --set ahead=false"
    if cfg.sampling.max_rows > cfg.sampling.num_samples:
        yield f"sample fewer rows side by side than max_rows={cfg.sampling.max_rows}: " + (
            "--set sampling.max_rows=N"
        )
    yield f"cut the sampler's weights over more chips than mesh.tensor={cfg.mesh.tensor}"
    yield f"let answers be shorter than sampling.max_new_tokens={cfg.sampling.max_new_tokens}"
