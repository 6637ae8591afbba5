"""Stage 1: supervised fine-tuning on packed items.

Lives here: `SftRun`, its loss and its loop. Not here: the items (`training/curated.py`), layouts
(`tokens/layouts.py`), packing (`data/packing.py`), the step (`training/step.py`), held-out items
(`training/validation.py`), a share of EASY items that changes (`training/reweighting.py`).

Batch `step` is a pure function of the config (and of the mix in the checkpoint's record, where
there is one), so that a run which is killed and started again continues as if nothing had
happened.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import sys
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from l2s_jax.config import to_json
from l2s_jax.data.arithmetic import ArithmeticDocuments
from l2s_jax.data.mixing import Mix, MixedBatches
from l2s_jax.data.pipeline import Batches, in_turn
from l2s_jax.model.blockwise import attend_blocks
from l2s_jax.model.config import DTypeName, ModelConfig, Remat
from l2s_jax.model.decoder import Params, forward, head_rows
from l2s_jax.model.lora import LoraConfig, join
from l2s_jax.model.routes import attend_on
from l2s_jax.model.seen import Attend, Seen
from l2s_jax.objectives.route_sums import RouteIds, choice_sums, kind_sums, readable
from l2s_jax.objectives.sft import sft_loss
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import MeshConfig, host_mesh, make_mesh
from l2s_jax.tokens.layouts import Example
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.training.adapter import (
    AdapterRecord,
    add_adapter,
    base_digest,
    claim_base,
    kept_as,
    token_ids_of,
)
from l2s_jax.training.checkpoint import Checkpoints
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.feed import Work, hold_out, report_data
from l2s_jax.training.guard import Guard
from l2s_jax.training.hosts import Vote
from l2s_jax.training.logp import target_logp
from l2s_jax.training.metrics import LogConfig, RunLog
from l2s_jax.training.microbatches import metrics_of
from l2s_jax.training.optim import OptimConfig, make_optimizer, schedule
from l2s_jax.training.policy import describe_policy, load_policy
from l2s_jax.training.retention import KeepConfig
from l2s_jax.training.reweighting import MixingConfig, Pilot
from l2s_jax.training.speed import Clock
from l2s_jax.training.state import begin_state, fresh_params, state_shardings
from l2s_jax.training.step import (
    Program,
    check_row_length,
    check_rows,
    compile_step,
    place_batch,
)
from l2s_jax.training.stop import Stopped, StopSignal
from l2s_jax.training.validation import NAMED, Score, Validation, ValidationConfig
from l2s_jax.types import Batch, Metrics
from l2s_jax.verify.math import Verifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun:
    """A whole supervised run."""

    model: str | ModelConfig  # a folder or shipped name to start from, or a shape to start anew
    tokenizer: str | None = None  # with a shape; a folder brings its own
    data: CuratedItems | ArithmeticDocuments
    row_length: int = 128  # tokens of a packed row
    batch_rows: int = 16
    num_microbatches: int = 1  # parts of a batch that go through the model in turn, to save memory
    num_steps: int = 200
    lora: LoraConfig | None = None  # train an adapter beside the frozen model, not the model
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    dtype: DTypeName = "float32"  # of the computation; how weights are kept is `optim.weights`
    remat: Remat = "none"  # what the backward pass computes again: less memory, more time
    validation: ValidationConfig | None = None  # items that are held out
    mixing: MixingConfig | None = None  # EASY against regular, by what the policy can do; or as is
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: KeepConfig = KeepConfig()  # which checkpoints stay on disk
    max_skips: int = 5  # steps in a row without a finite loss and gradient; so many end the run
    log: LogConfig = LogConfig()

    # Between two starts.
    MAY_CHANGE: ClassVar = ("mesh", "log_every", "save_every", "keep", "max_skips", "log")

    def __post_init__(self):
        for name in (
            "row_length batch_rows num_microbatches num_steps log_every save_every max_skips"
        ).split():
            if getattr(self, name) < 1:
                raise ValueError(f"SftRun.{name}={getattr(self, name)}: must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"SftRun.seed={self.seed}: 0 or more.")
        if isinstance(self.model, ModelConfig) and self.tokenizer is None:
            raise ValueError(
                "SftRun.tokenizer is missing: a model that starts anew needs the folder of one."
            )
        if not isinstance(self.model, ModelConfig) and self.tokenizer is not None:
            raise ValueError(
                f"SftRun.tokenizer={self.tokenizer!r}: the folder {self.model!r} brings its own."
                " Leave it out."
            )
        if self.lora is not None and isinstance(self.model, ModelConfig):
            raise ValueError(
                "SftRun.lora adapts a trained model, but SftRun.model is a shape to start anew."
                " Name a folder, or leave lora out."
            )
        if self.mixing is not None and self.validation is None:
            raise ValueError(
                "SftRun.mixing measures the policy on held-out items, and SftRun.validation=null"
                " holds out none. Give a validation."
            )
        if self.mixing is not None and not isinstance(self.data, CuratedItems):
            raise ValueError("SftRun.mixing: these data have no EASY items. Set mixing=null.")
        metric, every = self.keep.metric or "", self.validation and self.validation.every
        if metric.startswith(NAMED) and (every is None or self.save_every % every):
            raise ValueError(
                f"SftRun.keep.metric={metric!r} and save_every={self.save_every}: no checkpoint"
                f" may lack it, but validation.every is {every}. Save at multiples of it."
            )
        schedule(self.optim, self.num_steps)  # refuses a warm-up that outlasts the run


def batch_hidden(
    cfg: ModelConfig, params: Params, batch: Batch, attend: Attend = attend_blocks
) -> Float[Array, "B T D"]:
    """The decoder's last hidden states."""
    seen = Seen(batch.segment_ids, batch.branches)
    return forward(cfg, params, batch.tokens, batch.positions, seen=seen, attend=attend)


def loss_of(
    cfg: ModelConfig,
    ids: RouteIds | None = None,
    attend: Attend = attend_blocks,
    mesh: Mesh | None = None,
):
    """`loss(params, batch)` of stage 1 for one decoder; with `ids` it tells of the router.

    Args:
      mesh: of the program.
    """

    def loss(params: Params, batch: Batch) -> tuple[Array, Metrics]:
        hidden = batch_hidden(cfg, params, batch, attend)
        wanted = (batch.weights != 0) | batch.routing
        logp = target_logp(params, hidden, batch.targets, wanted, mesh=mesh)
        value, metrics = sft_loss(logp, batch.weights, num_tokens=batch.num_tokens)
        metrics |= kind_sums(logp, batch.weights, batch.easy)
        if ids is not None:
            chosen_CD = head_rows(params, [ids.easy, ids.long])
            metrics |= choice_sums(hidden, chosen_CD, logp, batch.targets, batch.routing, ids)
        return value, metrics

    return loss


def starting_policy(cfg: SftRun, mesh: Mesh) -> Policy:
    """The policy before training, without triggers if it starts anew."""
    if not isinstance(cfg.model, ModelConfig):
        # On the run's own mesh: it need not fit on one device, and a frozen base lies there once.
        return load_policy(cfg.model, mesh=mesh, dtype=kept_as(cfg.lora))
    assert cfg.tokenizer is not None
    params = fresh_params(cfg.model, jax.random.key(cfg.seed), mesh)
    tokenizer = load_tokenizer(cfg.tokenizer)
    return Policy(model=cfg.model, params=params, tokenizer=tokenizer, triggers=None)


def run(cfg: SftRun, workdir: str | pathlib.Path) -> None:
    """Trains, or goes on training, in `workdir`; returns when the last step is on disk.

    A SIGTERM or SIGINT ends it early by `Stopped`, with a checkpoint of all steps done.
    """
    with StopSignal() as stop:
        train(cfg, pathlib.Path(workdir), stop)


def train(cfg: SftRun, workdir: pathlib.Path, stop: StopSignal) -> None:
    """The run's stages."""
    # 1. What is learned, and by whom.
    mesh = make_mesh(cfg.mesh)
    base = starting_policy(cfg, mesh)
    policy, examples, left_out = cfg.data.prepare(base)
    # Whoever loads the run computes as it did.
    policy = policy.computed_in(cfg.dtype)
    check_lengths(examples, policy.model)
    examples, held_out = hold_out(cfg.validation, examples)
    kind = Batches if cfg.mixing is None else MixedBatches
    batches = kind(examples, row_length=cfg.row_length, batch_rows=cfg.batch_rows, seed=cfg.seed)
    print(
        f"sft: {len(examples)} examples in {batches.num_rows} rows of {cfg.row_length} tokens,"
        f" {batches.fill:.1%} filled; {len(held_out)} held out",
        file=sys.stderr,
    )
    # 2. One program on a mesh.
    decoder = dataclasses.replace(policy.model, remat=cfg.remat)
    num_rows = len(token_ids_of(policy.triggers)) if cfg.lora is not None else 0
    ids = route_ids(policy)
    optimizer, places, step_fn = program_of(cfg, decoder, mesh, num_rows, ids)
    # 3. Resume, or begin.
    params = policy.params
    if cfg.lora is not None:
        params = add_adapter(policy, cfg.lora, jax.random.key(cfg.seed))
        claim_base(workdir, adapter_record(cfg, base))
    state = begin_state(params, optimizer, places, weights=cfg.optim.weights)
    describe_policy(workdir, policy)
    # The state has its own copy, and nobody else needs them: four bytes a parameter less.
    policy = dataclasses.replace(policy, params={})
    del params, base
    report_data(workdir, examples, held_out, left_out, batches)
    validation = None
    if cfg.validation is not None:
        held = in_turn(held_out, row_length=cfg.row_length, batch_rows=cfg.batch_rows)
        score = scorer(decoder, mesh, ids, cfg.num_microbatches)
        validation = Validation(cfg.validation, list(held), len(held_out), score, workdir)
    with (
        Checkpoints(workdir, cfg=cfg, keep=cfg.keep) as checkpoints,
        contextlib.ExitStack() as stack,
    ):
        pilot = make_pilot(cfg, policy, held_out, stack, stop)
        found, mix, looked = checkpoints.restore(state), batches.start(), not_looked(cfg)
        if found is not None:
            state, record = found.state, found.record
            mix = Mix.from_record(record["input"]["mix"]) if pilot is not None else None
            looked = {n: v for n, v in record["metrics"].items() if n.startswith(NAMED)}
        begin = int(state.step)
        guard = Guard(workdir, cfg.max_skips)
        stop.hold()
        # 4. The loop.
        with RunLog(
            workdir,
            name="sft",
            num_steps=cfg.num_steps,
            resume_from=begin,
            cfg=cfg.log,
            config=to_json(cfg),
        ) as log:
            metrics: Metrics = {}
            work, clock, vote = Work(policy.model), Clock(), Vote(places.step.mesh)
            for step in range(begin, cfg.num_steps):
                # The share of EASY rows, and the batch that is drawn with it.
                told: dict[str, float] = {}
                if pilot is not None and pilot.is_due(step):
                    try:
                        with stop.interruptible():
                            measured = pilot.reweigh(mix, state)
                    except Stopped:
                        if step > begin:  # a resumed run measures again, the same
                            guard.settle()
                            checkpoints.save(state, record_of(metrics, looked, step, mix))
                        raise
                    mix, told = measured
                batch, mix = batches.draw(step, mix)
                # The update.
                vote.cast(stop.asked)
                state, metrics = step_fn(state, place_batch(batch, places))
                done, ends = step + 1, step + 1 == cfg.num_steps
                guard.watch(done, batch, metrics)
                work.add(batch)
                # What is told of it, and kept.
                # Asked once: nobody leaves without the save that goes with it, and no host alone.
                leaves = vote.outcome(stop.asked)
                saves = done % cfg.save_every == 0 or ends
                if saves or leaves:
                    guard.settle()
                if validation is not None and (validation.is_due(done) or ends):
                    with clock.part("validation"):
                        looked = validation.look(done, state, places)
                    told |= looked
                # Before every save too: no checkpoint holds a number that is none.
                if done % cfg.log_every == 0 or saves or told:
                    numbers = log.write(done, readable(numbers_of(metrics)) | told)
                    log.speed(done, work.lap(clock))
                    log.show(loss=f"{numbers.get('loss', math.nan):.4f}")
                if saves or leaves:
                    checkpoints.save(state, record_of(metrics, looked, done, mix))
                log.advance()
                if leaves:
                    stop.leave()


def not_looked(cfg: SftRun) -> dict[str, float]:
    """What stands for the validation's numbers before the first look: a signal may save then."""
    metric = cfg.keep.metric or ""
    return {metric: math.nan} if metric.startswith(NAMED) else {}


def make_pilot(
    cfg: SftRun,
    policy: Policy,
    held_out: list[Example],
    stack: contextlib.ExitStack,
    stop: StopSignal,
) -> Pilot | None:
    """Who measures the policy for a mix that changes; its workers end with `stack`."""
    if cfg.mixing is None:
        return None
    assert isinstance(cfg.data, CuratedItems)
    ids = {example.id for example in held_out}
    problems = [problem for problem in cfg.data.problems() if problem.id in ids]
    verifier = Verifier(cfg.mixing.num_workers, cfg.mixing.verify_seconds)
    mesh = host_mesh(make_mesh(cfg.mesh))
    return Pilot(cfg.mixing, policy, problems, stack.enter_context(verifier), stop, mesh)


def route_ids(policy: Policy) -> RouteIds | None:
    """Which ids the route is decided between; None before the triggers are taught."""
    triggers = policy.triggers
    if triggers is None:
        return None
    return RouteIds(easy=triggers.easy[triggers.fork], long=triggers.long[triggers.fork])


def numbers_of(metrics: Metrics) -> dict[str, float]:
    """The metrics as plain numbers; waits for the device."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def record_of(
    metrics: Metrics, looked: dict[str, float], step: int, mix: Mix | None
) -> dict[str, Any]:
    """The checkpoint's record: the input's state is the step, and the mix where there is one."""
    fed = {"step": step, "mix": None if mix is None else dataclasses.asdict(mix)}
    return {"metrics": readable(numbers_of(metrics)) | looked, "input": fed}


def program_of(
    cfg: SftRun, model: ModelConfig, mesh: Mesh, num_rows: int, ids: RouteIds | None
) -> Program:
    """A run's `program`; refuses rows that the mesh cannot share evenly."""
    made = program(
        model, cfg.optim, cfg.num_steps, mesh, cfg.lora, num_rows, cfg.num_microbatches, ids
    )
    check_rows("SftRun.batch_rows", cfg.batch_rows, made[1], num_microbatches=cfg.num_microbatches)
    check_row_length("SftRun.row_length", cfg.row_length, mesh)
    return made


@functools.lru_cache(maxsize=4)
def program(
    model: ModelConfig,
    optim: OptimConfig,
    num_steps: int,
    mesh: Mesh,
    lora: LoraConfig | None,
    num_rows: int,
    num_microbatches: int,
    ids: RouteIds | None,
) -> Program:
    """Optimizer, shardings and compiled step; runs of one process that agree on them share it."""
    optimizer = make_optimizer(optim, num_steps)
    places = state_shardings(model, optimizer, mesh, lora=lora, num_rows=num_rows)
    loss = loss_of(model, ids, attend_on(mesh), mesh)
    step_fn = compile_step(loss, optimizer, places, num_microbatches=num_microbatches)
    return optimizer, places, step_fn


@functools.lru_cache(maxsize=4)
def scorer(model: ModelConfig, mesh: Mesh, ids: RouteIds | None, num_microbatches: int) -> Score:
    """The loss's metrics on a batch, compiled, without an update."""
    loss = loss_of(model, ids, attend_on(mesh), mesh)

    def score(trained: Params, frozen: Params, batch: Batch) -> Metrics:
        return metrics_of(loss, join(trained, frozen), batch, mesh, num_microbatches)

    return jax.jit(score)


def adapter_record(cfg: SftRun, base: Policy) -> AdapterRecord:
    """What the workdir must say for others to find and prepare the base again."""
    assert cfg.lora is not None and isinstance(cfg.model, str)
    teaching = cfg.data if isinstance(cfg.data, CuratedItems) else None
    return AdapterRecord(
        lora=cfg.lora,
        base=cfg.model,
        digest=base_digest(cfg.model, base),
        spelling=teaching.spelling if teaching else None,
        starts=teaching.starts if teaching else None,
    )


def check_lengths(examples: list[Example], model: ModelConfig) -> None:
    """Refuses examples that reach past the positions the model was made for."""
    beyond = [e.id for e in examples if int(e.positions.max()) >= model.max_positions]
    if beyond:
        raise ValueError(
            f"{len(beyond)} items are longer than the model's {model.max_positions} positions:"
            f" {', '.join(beyond[:10])}. Curate shorter items or take another model."
        )
