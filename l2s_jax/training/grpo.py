"""Stage 2: rollouts, verification, advantages, a clipped update.

Lives here: `GrpoRun` and its loop. Not here: the presets' formulas (`objectives/presets.py`),
rollouts as arrays (`training/rollouts.py`), the sampler (`sampling`).

The paper samples from the SFT policy and holds every ratio against it. `refresh_every` = None is
that; a number lets the sampler take over the current weights every so many steps.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.model.attention import visible
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, forward, head
from l2s_jax.model.lora import LoraConfig, join, merge, split
from l2s_jax.objectives.logprobs import token_logp
from l2s_jax.objectives.presets import V2, Plus, PlusLinear
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Request, SamplingConfig, ask
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.adapter import (
    AdapterRecord,
    add_adapter,
    base_digest,
    claim_base,
    token_ids_of,
)
from l2s_jax.training.checkpoint import Checkpoints
from l2s_jax.training.metrics import MetricsFile
from l2s_jax.training.optim import OptimConfig, make_optimizer, schedule
from l2s_jax.training.policy import describe_policy, load_policy
from l2s_jax.training.rollouts import (
    RolloutSource,
    build_batch,
    choose_problems,
    group_modes,
    judge,
)
from l2s_jax.training.state import TrainState, begin_state, state_shardings
from l2s_jax.training.step import Program, check_rows, compile_step, place_batch
from l2s_jax.types import Metrics, Problem, Rollout, RolloutBatch
from l2s_jax.verify.math import Verifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoRun:
    """A whole run of stage 2."""

    model: str  # workdir or Hugging Face folder of the stage 1 policy
    problems: ArithmeticProblems | JsonlProblems
    preset: V2 | Plus | PlusLinear
    rollouts: RolloutSource = "auto"
    sampling: SamplingConfig = SamplingConfig(num_samples=8)
    prompts_per_step: int = 32
    num_steps: int = 100
    refresh_every: int | None = None  # steps between two policies of the sampler; None: never
    lora: LoraConfig | None = None  # train an adapter beside the frozen model, not the model
    optim: OptimConfig = OptimConfig(peak_lr=1e-6)
    mesh: MeshConfig = MeshConfig()
    verify_seconds: float = 5.0  # bound on one symbolic decision
    num_workers: int = 2
    seed: int = 0
    save_every: int = 50

    def __post_init__(self):
        for name in ("prompts_per_step", "num_steps", "save_every", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"GrpoRun.{name}={getattr(self, name)}: must be at least 1.")
        if self.seed < 0 or not self.verify_seconds > 0:
            raise ValueError(
                f"GrpoRun.seed={self.seed}, verify_seconds={self.verify_seconds}: a seed is 0 or"
                " more, a bound above 0."
            )
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ValueError(
                f"GrpoRun.refresh_every={self.refresh_every}: at least 1, or null for never."
            )
        if self.refresh_every is not None and self.save_every % self.refresh_every:
            raise ValueError(
                f"GrpoRun.save_every={self.save_every} is no multiple of refresh_every="
                f"{self.refresh_every}: a resumed run would not know the sampler's weights."
            )
        if self.sampling.temperature == 0 or self.sampling.top_p < 1:
            raise ValueError(
                f"GrpoRun.sampling: temperature={self.sampling.temperature}, top_p="
                f"{self.sampling.top_p}. Ratios need draws from the whole policy: set a"
                " temperature above 0 and top_p=1."
            )
        if self.sampling.num_samples < 2:
            raise ValueError(
                "GrpoRun.sampling.num_samples=1: a rollout alone has no group to be compared with."
                " Take 2 or more; 8 is usual."
            )
        group_modes(self.rollouts, self.sampling.num_samples)
        if self.sampling.routing.modes != ("auto",):
            raise ValueError(
                f"GrpoRun.sampling.routing.modes={self.sampling.routing.modes}: in stage 2"
                " GrpoRun.rollouts decides them. Set that, and leave the modes out."
            )
        limit = self.sampling.max_new_tokens
        if isinstance(self.preset, PlusLinear) and self.preset.max_tokens != limit:
            raise ValueError(
                f"GrpoRun.preset.max_tokens={self.preset.max_tokens} is not"
                f" sampling.max_new_tokens={limit}: length would be rewarded by another measure."
                " Set both to one number."
            )
        schedule(self.optim, self.num_steps)  # refuses a warm-up that outlasts the run


def completion_logp(
    cfg: ModelConfig, params: Params, batch: RolloutBatch, temperature: float
) -> Float[Array, "B T"]:
    """Log-prob of every completion token, nats, at the temperature it was sampled at."""
    mask = visible(batch.segment_ids, jnp.zeros_like(batch.segment_ids))
    hidden, _ = forward(cfg, params, batch.tokens, batch.positions, mask_BTT=mask)
    logp_RW = token_logp(hidden, head(params), batch.targets, temperature=temperature)
    return logp_RW.reshape(-1)[batch.places]


def loss_of(cfg: ModelConfig, preset: V2 | Plus | PlusLinear, temperature: float):
    """`loss(params, batch)` of stage 2 for one decoder and preset."""

    def loss(params: Params, batch: RolloutBatch) -> tuple[Array, Metrics]:
        logp_BT = completion_logp(cfg, params, batch, temperature)
        gap_BT = jnp.where(batch.free, jnp.abs(logp_BT - batch.old_logp), 0.0)
        value, metrics = preset.loss(
            logp_BT,
            batch.old_logp,
            batch.advantages,
            batch.free,
            num_sequences=batch.num_sequences,
        )
        # Right after a refresh the two policies are one: what is left is numerics or a bug.
        return value, metrics | {"max_log_ratio": jnp.max(gap_BT)}

    return loss


def run(cfg: GrpoRun, workdir: str | pathlib.Path) -> None:
    """Trains, or goes on training, in `workdir`; returns when the last step is on disk."""
    workdir = pathlib.Path(workdir)
    # 1. Who is refined, on what.
    policy = load_policy(cfg.model)
    if policy.tokenizer is None or policy.triggers is None:
        raise ValueError(
            f"GrpoRun.model={cfg.model}: this model does not know the triggers. Train stage 1"
            " first with `l2s sft` and give its workdir."
        )
    problems = cfg.problems.load()
    requests = {request.id: request for request in ask(problems, policy.tokenizer)}
    check_problems(cfg, policy.model, list(requests.values()))
    longest = max(len(request.prompt_ids) for request in requests.values())
    engine = Engine(policy, cfg.sampling)
    # 2. One program on a mesh.
    num_token_rows = len(token_ids_of(policy.triggers)) if cfg.lora is not None else 0
    optimizer, places, step_fn = program(
        policy.model,
        cfg.preset,
        cfg.sampling.temperature,
        cfg.optim,
        cfg.num_steps,
        cfg.mesh,
        cfg.lora,
        num_token_rows,
    )
    num_rows = cfg.prompts_per_step * cfg.sampling.num_samples
    check_rows("GrpoRun.prompts_per_step * sampling.num_samples", num_rows, places)
    sizes = PackedSizes.of(longest + cfg.sampling.max_new_tokens, num_rows, places)
    # 3. Resume, or begin.
    params = policy.params
    if cfg.lora is not None:
        params = add_adapter(policy, cfg.lora, jax.random.key(cfg.seed))
        digest = base_digest(policy)
        claim_base(workdir, AdapterRecord(lora=cfg.lora, base=cfg.model, digest=digest))
    _, frozen = split(params)
    state = begin_state(params, optimizer, places)
    describe_policy(workdir, policy)
    with (
        Checkpoints(workdir) as checkpoints,
        Verifier(cfg.num_workers, cfg.verify_seconds) as verifier,
    ):
        latest = checkpoints.latest()
        if latest is not None:
            state = checkpoints.restore(latest, state)
        begin = int(state.step)
        # With refreshes this is exchanged at once: saves, so resumes too, fall on a refresh.
        behaviour = policy.params
        # 4. The loop.
        with MetricsFile(workdir, resume_from=begin) as metrics_file, _bar(cfg, begin) as bar:
            for step in range(begin, cfg.num_steps):
                if cfg.refresh_every is not None and step % cfg.refresh_every == 0:
                    behaviour = merge(join(jax.device_get(state.params), frozen))
                chosen = choose_problems(problems, cfg.prompts_per_step, seed=cfg.seed, step=step)
                rollouts = sample_step(
                    cfg, engine, [requests[p.id] for p in chosen], behaviour, step
                )
                batch, signal = prepare(cfg, rollouts, chosen, verifier, sizes)
                state, metrics = step_fn(state, place_batch(batch, places))
                metrics_file.write(step + 1, metrics | signal)
                bar.set_postfix(right=f"{signal['accuracy']:.2f}", tokens=f"{signal['tokens']:.1f}")
                if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.num_steps:
                    checkpoints.save(state)
                bar.update()


@functools.lru_cache(maxsize=4)
def program(
    model: ModelConfig,
    preset: V2 | Plus | PlusLinear,
    temperature: float,
    optim: OptimConfig,
    num_steps: int,
    mesh: MeshConfig,
    lora: LoraConfig | None,
    num_token_rows: int,
) -> Program:
    """Optimizer, shardings and compiled step; runs of one process that agree on them share it."""
    optimizer = make_optimizer(optim, num_steps)
    places = state_shardings(model, optimizer, make_mesh(mesh), lora=lora, num_rows=num_token_rows)
    step_fn = compile_step(loss_of(model, preset, temperature), optimizer, places)
    return optimizer, places, step_fn


def check_problems(cfg: GrpoRun, model: ModelConfig, requests: list[Request]) -> None:
    """Refuses, before the first step, problems that a later step would stumble over."""
    if len(requests) < cfg.prompts_per_step:
        raise ValueError(
            f"GrpoRun.prompts_per_step={cfg.prompts_per_step}, but there are {len(requests)}"
            " problems. Lower it, or give more problems."
        )
    room = model.max_positions - cfg.sampling.max_new_tokens
    beyond = [request.id for request in requests if len(request.prompt_ids) > room]
    if beyond:
        raise ValueError(
            f"{len(beyond)} prompts leave no room for max_new_tokens={cfg.sampling.max_new_tokens}"
            f" within the model's {model.max_positions} positions: {', '.join(beyond[:10])}. Lower"
            " GrpoRun.sampling.max_new_tokens, or leave those problems out."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSizes:
    """Shapes of the update's packed rows."""

    row_length: int  # a multiple of 128 that holds any rollout
    row_quantum: int  # an eighth of the rollouts: eight programs at most, in practice one or two

    @classmethod
    def of(cls, longest: int, num_rollouts: int, places: TrainState) -> "PackedSizes":
        """For rollouts of up to `longest` tokens, prompt included; rows divide over the mesh."""
        shape = places.step.mesh.shape
        shards = shape["data"] * shape["fsdp"]
        quantum = shards * max(1, num_rollouts // (8 * shards))
        return cls(row_length=-(-longest // 128) * 128, row_quantum=quantum)


def sample_step(
    cfg: GrpoRun, engine: Engine, requests: list[Request], behaviour: Params, step: int
) -> list[Rollout]:
    """One step's rollouts; their draws are named by (seed, step, prompt, sample)."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), step)
    modes = group_modes(cfg.rollouts, cfg.sampling.num_samples)
    routing = dataclasses.replace(cfg.sampling.routing, modes=modes)
    return engine.sample(requests, key, params=behaviour, routing=routing)


def prepare(
    cfg: GrpoRun,
    rollouts: list[Rollout],
    problems: list[Problem],
    verifier: Verifier,
    sizes: "PackedSizes",
) -> tuple[RolloutBatch, Metrics]:
    """The update's batch, and what the rollouts were like."""
    correct = judge(rollouts, {p.id: p.answer for p in problems}, verifier)
    lengths = np.asarray([rollout.num_tokens for rollout in rollouts], np.int32)
    advantages, metrics = cfg.preset.advantages(
        jnp.asarray(correct), jnp.asarray(lengths), group_size=cfg.sampling.num_samples
    )
    batch = build_batch(
        rollouts,
        np.asarray(advantages),
        row_length=sizes.row_length,
        row_quantum=sizes.row_quantum,
        max_tokens=cfg.sampling.max_new_tokens,
    )
    modes = group_modes(cfg.rollouts, cfg.sampling.num_samples)
    # Not by who chose the first token: a switch that replaces EASY leaves a forced one there.
    routed = [r for r in rollouts if modes[r.sample] == "auto"]
    signal = {
        "accuracy": float(np.mean(correct)),
        "tokens": float(np.mean(lengths)),
        "truncated": float(np.mean([r.finish_reason == "length" for r in rollouts])),
        "no_route": float(np.mean([r.route == "none" for r in rollouts])),
    }
    if routed:
        signal["easy_share"] = float(np.mean([r.route == "short" for r in routed]))
    return batch, metrics | signal


def _bar(cfg: GrpoRun, begin: int) -> tqdm:
    return tqdm(
        total=cfg.num_steps, initial=begin, desc="grpo", unit="step", file=sys.stderr, leave=False
    )
