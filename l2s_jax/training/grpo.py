"""Stage 2: rollouts, verification, advantages, a clipped update.

Lives here: `GrpoRun` and its loop. Not here: objectives (`objectives`), what a step gathers before
its update (`training/gather.py`), the loss's program (`training/scoring.py`), the sampler
(`sampling`).

The paper samples from the SFT policy and holds every ratio against it. `refresh_every` = None is
that; a number lets the sampler take over the current weights every so many steps. Between two
refreshes the rollouts of a step do not depend on the update before it, and are made during it.
"""

import dataclasses
import functools
import pathlib
from typing import ClassVar

import jax
from jax.sharding import Mesh

from l2s_jax.config import to_json
from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.model.config import DTypeName, ModelConfig, Remat
from l2s_jax.model.lora import LoraConfig
from l2s_jax.model.routes import attend_on
from l2s_jax.objectives.objective import Objective
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import Request, SamplingConfig, ask
from l2s_jax.sharding import MeshConfig, host_mesh, make_mesh
from l2s_jax.tokens.automaton import route_table
from l2s_jax.training.adapter import (
    AdapterRecord,
    add_adapter,
    base_digest,
    claim_base,
    kept_as,
    token_ids_of,
)
from l2s_jax.training.ahead import Ahead
from l2s_jax.training.asking import Asking, AskNothing, check_asking
from l2s_jax.training.checkpoint import Checkpoints
from l2s_jax.training.completions import CompletionsConfig, CompletionsFile
from l2s_jax.training.gather import Gathered, Gatherer, PackedSizes
from l2s_jax.training.guard import Guard
from l2s_jax.training.hosts import alone
from l2s_jax.training.metrics import LogConfig, RunLog
from l2s_jax.training.optim import OptimConfig, make_optimizer, schedule
from l2s_jax.training.policies import Others
from l2s_jax.training.policy import describe_policy, load_policy
from l2s_jax.training.refill import Refill
from l2s_jax.training.retention import KeepConfig
from l2s_jax.training.rollouts import RolloutSource, group_modes
from l2s_jax.training.scoring import Scorer, loss_of
from l2s_jax.training.speed import Clock, training_flops
from l2s_jax.training.state import begin_state, state_shardings
from l2s_jax.training.step import Program, check_rows, compile_step, place_batch
from l2s_jax.training.stop import Stopped, StopSignal
from l2s_jax.types import Problem
from l2s_jax.verify.math import Verifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoRun:
    """A whole run of stage 2."""

    model: str  # workdir or Hugging Face folder of the stage 1 policy
    problems: ArithmeticProblems | JsonlProblems
    preset: Objective
    rollouts: RolloutSource = "auto"
    asking: Asking = AskNothing()  # what prompts ask for: a level of brevity, a number of tokens
    refill: Refill | None = None  # others for prompts whose samples all earned the same; None: not
    sampling: SamplingConfig = SamplingConfig(num_samples=8)
    prompts_per_step: int = 32
    num_microbatches: int = 1  # parts of an update that go through the model in turn
    num_steps: int = 100
    refresh_every: int | None = None  # steps between two policies of the sampler; None: never
    ahead: bool = True  # sample during the update where its result is not needed; takes more memory
    lora: LoraConfig | None = None  # train an adapter beside the frozen model, not the model
    dtype: DTypeName = "float32"  # of the computation, sampling included
    remat: Remat = "none"  # what the backward pass computes again: less memory, more time
    optim: OptimConfig = OptimConfig(peak_lr=1e-6)
    mesh: MeshConfig = MeshConfig()
    verify_seconds: float = 5.0  # bound on one symbolic decision
    num_workers: int = 2
    seed: int = 0
    save_every: int = 50
    keep: KeepConfig = KeepConfig()  # which checkpoints stay on disk
    max_skips: int = 5  # steps in a row without a finite loss and gradient; so many end the run
    completions: CompletionsConfig = CompletionsConfig()  # what is kept to be read
    log: LogConfig = LogConfig()

    # Between two starts.
    MAY_CHANGE: ClassVar = (
        "mesh",
        "num_workers",
        "save_every",
        "keep",
        "max_skips",
        "ahead",
        "completions",
        "log",
    )

    def __post_init__(self):
        for name in (
            "prompts_per_step num_microbatches num_steps save_every num_workers max_skips"
        ).split():
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
        check_whole(self.sampling)
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
        if self.preset.design_probability is not None and self.rollouts == "auto":
            raise ValueError(
                "GrpoRun.preset trains markers that were forced by design, but rollouts='auto'"
                " forces none. Set rollouts to forced_pair."
            )
        if self.preset.design_probability not in (None, 0.5):
            raise ValueError(
                f"GrpoRun.preset.design_probability={self.preset.design_probability}: rollouts="
                f"{self.rollouts!r} forces each route on half of those that it forces. Set 0.5."
            )
        check_asking(self.asking, self.preset, self.sampling)
        schedule(self.optim, self.num_steps)  # refuses a warm-up that outlasts the run

    def refreshes_at(self, step: int) -> bool:
        """True where the sampler takes over the trained weights before this step."""
        return self.refresh_every is not None and step % self.refresh_every == 0

    def goes_ahead_to(self, step: int) -> bool:
        """True where this step's rollouts may be made during the update before it."""
        # Devices that meet in two programs, and several hosts, must start them in one order, which
        # threads do not keep. The sampler's devices meet where its weights are cut.
        allowed = self.ahead and alone() and self.mesh.tensor == 1
        return allowed and step < self.num_steps and not self.refreshes_at(step)


def run(cfg: GrpoRun, workdir: str | pathlib.Path) -> None:
    """Trains, or goes on training, in `workdir`; returns when the last step is on disk.

    A SIGTERM or SIGINT ends it early by `Stopped`, with a checkpoint of the steps done.
    """
    with StopSignal() as stop:
        train(cfg, pathlib.Path(workdir), stop)


def check_whole(sampling: SamplingConfig) -> None:
    """Refuses draws from a part of the policy: the ratios' old log-probs are those of the whole."""
    thought = sampling.thought
    cuts = {
        "temperature": sampling.temperature == 0,
        "top_k": sampling.top_k > 0,
        "top_p": sampling.top_p < 1,
        "min_p": sampling.min_p > 0,
        "banned_ids": bool(sampling.banned_ids),
        "thought": thought is not None and thought.stop_tau != 1,
    }
    found = [f"{name}={getattr(sampling, name)}" for name, cut in cuts.items() if cut]
    if found:
        raise ValueError(
            f"GrpoRun.sampling: {', '.join(found)}. Ratios need draws from the whole policy: set a"
            " temperature above 0, top_k=0, top_p=1, min_p=0, no banned_ids, thought.stop_tau=1."
        )


def train(cfg: GrpoRun, workdir: pathlib.Path, stop: StopSignal) -> None:
    """The run's stages."""
    # 1. Who is refined, on what.
    mesh = make_mesh(cfg.mesh)
    policy = load_policy(cfg.model, mesh=mesh, dtype=kept_as(cfg.lora)).computed_in(cfg.dtype)
    if policy.tokenizer is None or policy.triggers is None:
        raise ValueError(
            f"GrpoRun.model={cfg.model}: this model does not know the triggers. Train stage 1"
            " first with `l2s sft` and give its workdir."
        )
    problems = cfg.problems.load()
    longest = check_problems(cfg, policy, problems)
    # 2. One program on a mesh.
    num_token_rows = len(token_ids_of(policy.triggers)) if cfg.lora is not None else 0
    decoder = dataclasses.replace(policy.model, remat=cfg.remat)
    optimizer, places, step_fn = program_of(cfg, decoder, mesh, num_token_rows)
    sizes = packed_sizes(cfg, policy.model, longest, mesh)
    # 3. Resume, or begin.
    params = policy.params
    if cfg.lora is not None:
        params = add_adapter(policy, cfg.lora, jax.random.key(cfg.seed))
        digest = base_digest(cfg.model, policy)
        claim_base(workdir, AdapterRecord(lora=cfg.lora, base=cfg.model, digest=digest))
    state = begin_state(params, optimizer, places, weights=cfg.optim.weights)
    describe_policy(workdir, policy)
    scorer = Scorer(policy.model, cfg.sampling.temperature, places, cfg.num_microbatches)
    others = Others(cfg.preset, policy.params, scorer)
    del params
    policy = dataclasses.replace(policy, params={})  # whoever needs the weights has them
    with (
        Checkpoints(workdir, cfg=cfg, keep=cfg.keep) as checkpoints,
        Verifier(cfg.num_workers, cfg.verify_seconds) as verifier,
    ):
        found = checkpoints.restore(state)
        if found is not None:
            state = found.state
            if found.behaviour is not None:
                others.sample_from(found.behaviour, state)
        begin = int(state.step)
        gather = make_gatherer(cfg, policy, problems, sizes, verifier, stop)
        guard, clock = Guard(workdir, cfg.max_skips), Clock()
        numbers: dict[str, float] = {}
        ahead = Ahead(
            lambda step: gather(step, others.behaviour, ahead.also(stop.watch()), ahead.check)
        )
        stop.hold()
        # 4. The loop.
        with (
            RunLog(
                workdir,
                name="grpo",
                num_steps=cfg.num_steps,
                resume_from=begin,
                cfg=cfg.log,
                config=to_json(cfg),
            ) as log,
            CompletionsFile(workdir, cfg.completions, resume_from=begin) as completions,
            ahead,
        ):
            for step in range(begin, cfg.num_steps):
                if cfg.refreshes_at(step):
                    others.refresh(state)
                try:
                    with stop.interruptible(), clock.part("waiting"):
                        gathered = ahead.take(step)
                except Stopped:
                    if step > begin:
                        # Before a refresh the sampler's weights are about to be what is trained.
                        kept = None if cfg.refreshes_at(step) else others.trained
                        checkpoints.save(state, {"metrics": numbers}, behaviour=kept)
                    raise
                if cfg.goes_ahead_to(step + 1):
                    ahead.begin(step + 1)
                else:
                    gather.engine.forget()  # the update has more use for the memory
                with clock.part("score"):
                    batch, gap = others.score(place_batch(gathered.batch, places))
                with clock.part("update"):
                    state, metrics = step_fn(state, batch)
                    guard.watch(step + 1, batch, metrics)
                    guard.settle()  # no look ahead here: the next step's rollouts take its time
                    numbers = log.write(step + 1, metrics | gathered.metrics | gap)
                completions.write(step + 1, gathered.groups.rollouts, gathered.facts)
                log.speed(step + 1, speed_of(clock, policy.model, gathered))
                log.show(right=f"{numbers['accuracy']:.2f}", tokens=f"{numbers['tokens']:.1f}")
                if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.num_steps:
                    checkpoints.save(state, {"metrics": numbers})
                log.advance()


def packed_sizes(cfg: GrpoRun, model: ModelConfig, longest: int, mesh: Mesh) -> PackedSizes:
    """The update's rows, for prompts of up to `longest` tokens."""
    return PackedSizes.of(
        prompt=longest,
        completion=cfg.sampling.max_new_tokens,
        group=cfg.sampling.num_samples,
        width=model.width,
        num_rollouts=cfg.prompts_per_step * cfg.sampling.num_samples // cfg.num_microbatches,
        mesh=mesh,
    )


def make_gatherer(
    cfg: GrpoRun,
    policy: Policy,
    problems: list[Problem],
    sizes: PackedSizes,
    verifier: Verifier,
    stop: StopSignal,
) -> Gatherer:
    """What makes the run's steps."""
    assert policy.triggers is not None
    return Gatherer(
        engine=Engine(policy, cfg.sampling, host_mesh(make_mesh(cfg.mesh))),
        verifier=verifier,
        stop=stop,
        problems=problems,
        table=route_table(policy.triggers, policy.tokenizer, policy.model.vocab_size),
        preset=cfg.preset,
        sizes=sizes,
        source=cfg.rollouts,
        asking=cfg.asking,
        refill=cfg.refill,
        prompts_per_step=cfg.prompts_per_step,
        num_microbatches=cfg.num_microbatches,
        num_steps=cfg.num_steps,
        seed=cfg.seed,
    )


def speed_of(clock: Clock, model: ModelConfig, gathered: Gathered) -> dict[str, float]:
    """What a step cost; sampling counts as one forward pass over what is kept."""
    lengths = [len(r.prompt_ids) + r.num_tokens for r in gathered.groups.rollouts]
    for name, seconds in gathered.seconds.items():
        clock.seconds[name] = seconds
    numbers = clock.lap(
        tokens=int(gathered.batch.tokens.size) + gathered.num_row_steps,
        useful_tokens=sum(r.num_tokens for r in gathered.groups.rollouts),
        flops=training_flops(model, lengths) * 4 / 3,
    )
    wasted = 1 - gathered.num_sampled / max(1, gathered.num_row_steps)
    return numbers | {"wasted_fraction": wasted}


def program_of(cfg: GrpoRun, model: ModelConfig, mesh: Mesh, num_token_rows: int) -> Program:
    """A run's `program`; refuses rollouts that the mesh cannot share evenly."""
    made = program(
        model,
        cfg.preset,
        cfg.sampling.temperature,
        cfg.optim,
        cfg.num_steps,
        mesh,
        cfg.lora,
        num_token_rows,
        cfg.num_microbatches,
    )
    check_rows(
        "GrpoRun.prompts_per_step * sampling.num_samples",
        cfg.prompts_per_step * cfg.sampling.num_samples,
        made[1],
        num_microbatches=cfg.num_microbatches,
    )
    return made


@functools.lru_cache(maxsize=4)
def program(
    model: ModelConfig,
    preset: Objective,
    temperature: float,
    optim: OptimConfig,
    num_steps: int,
    mesh: Mesh,
    lora: LoraConfig | None,
    num_token_rows: int,
    num_microbatches: int,
) -> Program:
    """Optimizer, shardings and compiled step; runs of one process that agree on them share it."""
    optimizer = make_optimizer(optim, num_steps)
    places = state_shardings(model, optimizer, mesh, lora=lora, num_rows=num_token_rows)
    step_fn = compile_step(
        loss_of(model, preset, temperature, attend_on(mesh), mesh),
        optimizer,
        places,
        num_microbatches=num_microbatches,
    )
    return optimizer, places, step_fn


def check_problems(cfg: GrpoRun, policy: Policy, problems: list[Problem]) -> int:
    """Tokens of the longest prompt; refuses problems that a later step would stumble over."""
    if len(problems) < cfg.prompts_per_step:
        raise ValueError(
            f"GrpoRun.prompts_per_step={cfg.prompts_per_step}, but there are {len(problems)}"
            " problems. Lower it, or give more problems."
        )
    assert policy.tokenizer is not None
    variants = [
        dataclasses.replace(problem, question=question)
        for problem in problems
        for question in cfg.asking.questions(problem, cfg.num_steps)
    ]
    requests: list[Request] = ask(variants, policy.tokenizer)
    room = policy.model.max_positions - cfg.sampling.max_new_tokens
    beyond = list(dict.fromkeys(r.id for r in requests if len(r.prompt_ids) > room))
    if beyond:
        raise ValueError(
            f"{len(beyond)} prompts leave no room for max_new_tokens={cfg.sampling.max_new_tokens}"
            f" within the model's {policy.model.max_positions} positions: {', '.join(beyond[:10])}."
            " Lower GrpoRun.sampling.max_new_tokens, or leave those problems out."
        )
    return max(len(request.prompt_ids) for request in requests)
