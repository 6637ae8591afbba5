"""Every program of a run, with the shapes that it is called with and where these lie.

Lives here: the lists for stage 1, stage 2 and an evaluation. Not here: the programs, which are
those that the run calls (`training`, `sampling`); what the sampler adds (`plan/sampler.py`) and the
policies beside a run's state (`plan/policies.py`); compiling (`plan/compiled.py`).

Shapes come from the code that makes the arrays: a batch is laid out from nothing, or from rollouts
that all have their greatest length. What a run holds beside a program's own arguments is listed
too, for that decides what fits.

Left out, since each needs less than one that is here: the birth of the state, smaller states of the
sampler, the copy at a refresh.
"""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from l2s_jax.data.packing import build_row
from l2s_jax.data.pipeline import stack
from l2s_jax.evaluation.benchmark import EvalRun
from l2s_jax.model.config import ModelConfig
from l2s_jax.objectives.logprobs import num_parts
from l2s_jax.plan.planned import Planned, place
from l2s_jax.plan.policies import Others, taken_over, type_of, weights_of
from l2s_jax.plan.sampler import Asked, Sampler, reshard_program
from l2s_jax.plan.subject import (
    PROMPT_TOKENS,
    Subject,
    longest_prompt,
    num_token_rows,
    prompts_of,
)
from l2s_jax.plan.topologies import Topology
from l2s_jax.sharding import make_mesh
from l2s_jax.training import grpo, sft
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.rollouts import build_batch, group_modes
from l2s_jax.training.scoring import Scorer
from l2s_jax.training.sft import SftRun
from l2s_jax.training.speed import training_flops
from l2s_jax.training.state import abstract_state
from l2s_jax.training.step import batch_places
from l2s_jax.types import Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The programs of a run on a topology, and what was assumed."""

    programs: list[Planned]
    notes: tuple[str, ...]


def programs_of(
    cfg: Any, subject: Subject, topology: Topology, samplers: "dict[Any, Sampler] | None" = None
) -> Programs:
    """The programs of a run.

    Args:
      samplers: kept from call to call, for runs that differ only in their training.
    """
    if isinstance(cfg, SftRun):
        return of_sft(cfg, subject, topology)
    if isinstance(cfg, GrpoRun):
        return of_grpo(cfg, subject, topology, {} if samplers is None else samplers)
    if isinstance(cfg, EvalRun):
        return of_eval(cfg, subject, topology)
    raise TypeError(f"{type(cfg).__name__} is no run of stage 1 or 2, nor an evaluation")


def head_parts(batch: Any, mesh: Mesh) -> tuple[int]:
    """How often the loss's loop over the positions of a row runs where all are wanted."""
    return (num_parts(batch.tokens.shape[1] // mesh.shape["context"]),)


# ---- stage 1 ----


def of_sft(cfg: SftRun, subject: Subject, topology: Topology) -> Programs:
    """The update, and the pass over what is held out."""
    mesh = make_mesh(cfg.mesh, topology.devices)
    model = dataclasses.replace(subject.model, dtype=cfg.dtype, remat=cfg.remat)
    rows, ids = num_token_rows(cfg, subject), sft.route_ids(subject.policy)
    optimizer, places, step = sft.program_of(cfg, model, mesh, rows, ids)
    state = abstract_state(
        model, optimizer, mesh, lora=cfg.lora, num_rows=rows, weights=cfg.optim.weights
    )
    batch = stack([build_row([], cfg.row_length)] * cfg.batch_rows)
    batch = place(batch, batch_places(batch, places))
    programs = [
        Planned(
            name="update",
            trace=lambda: step.program.trace(*step.arguments(state, batch)),
            arguments={"state": state, "batch": batch},
            beside={},
            mesh=mesh,
            trips=head_parts(batch, mesh),
            model_flops=training_flops(model, [cfg.row_length] * cfg.batch_rows),
        )
    ]
    if cfg.validation is not None:
        score = sft.scorer(model, mesh, ids, cfg.num_microbatches)
        programs.append(
            Planned(
                name="validation",
                trace=lambda: score.trace(state.params, state.frozen, batch),
                arguments={"params": state.params, "frozen": state.frozen, "batch": batch},
                beside={"optimizer": state.opt_state},
                mesh=mesh,
                trips=head_parts(batch, mesh),
                model_flops=training_flops(model, [cfg.row_length] * cfg.batch_rows) / 3,
            )
        )
    notes = subject.notes
    if cfg.mixing is not None:
        programs += pilot_programs(cfg, subject, topology, model, mesh, state)
        notes += (f"mixing: the longest held-out prompt is taken as {PROMPT_TOKENS} tokens",)
    return Programs(programs=programs, notes=notes)


def pilot_programs(
    cfg: SftRun, subject: Subject, topology: Topology, model: ModelConfig, mesh: Mesh, state: Any
) -> list[Planned]:
    """The sampler's, where held-out questions are answered between two steps."""
    assert cfg.mixing is not None
    asked = Asked(
        sampling=cfg.mixing.sampling, num_prompts=cfg.mixing.num_problems, longest=PROMPT_TOKENS
    )
    policy = dataclasses.replace(subject.policy, model=model)
    weights, beside = taken_over(state, cfg.lora, model, mesh)
    sampler = Sampler(policy, cfg.mesh, topology, asked, kept=type_of(weights))
    made = reshard_program(model, mesh, weights, beside | {"sampler weights": sampler.params})
    return [made, *sampler.programs({"weights": weights} | beside)]


# ---- stage 2 ----


def of_grpo(
    cfg: GrpoRun, subject: Subject, topology: Topology, samplers: "dict[Any, Sampler]"
) -> Programs:
    """The sampler's programs, the pass over others' log-probs if there is one, the update."""
    mesh = make_mesh(cfg.mesh, topology.devices)
    model = dataclasses.replace(subject.model, dtype=cfg.dtype)
    trained_model = dataclasses.replace(model, remat=cfg.remat)
    rows = num_token_rows(cfg, subject)
    optimizer, places, step = grpo.program_of(cfg, trained_model, mesh, rows)
    longest, notes = longest_prompt(cfg, subject)
    batch = rollout_batch(cfg, model, places, longest)
    state = abstract_state(
        trained_model, optimizer, mesh, lora=cfg.lora, num_rows=rows, weights=cfg.optim.weights
    )
    others = Others.of(cfg, model, mesh, state)
    sampled_as = (cfg.mesh, cfg.sampling.max_rows)
    if sampled_as not in samplers:
        asked = Asked(
            sampling=cfg.sampling,
            num_prompts=cfg.prompts_per_step,
            longest=longest,
            modes=group_modes(cfg.rollouts, cfg.sampling.num_samples),
        )
        policy = dataclasses.replace(subject.policy, model=model)
        kept = type_of(others.behaviour)
        samplers[sampled_as] = Sampler(policy, cfg.mesh, topology, asked, kept=kept)
    sampler = samplers[sampled_as]
    num_rollouts = cfg.prompts_per_step * cfg.sampling.num_samples
    lengths = [longest + cfg.sampling.max_new_tokens] * num_rollouts
    at_work = {"sampler weights": sampler.params, "sampler state": sampler.state}
    update = Planned(
        name="update",
        trace=lambda: step.program.trace(*step.arguments(state, batch)),
        arguments={"state": state, "batch": batch},
        beside=others.beside_state | (at_work if goes_ahead(cfg, topology) else {}),
        mesh=mesh,
        trips=head_parts(batch, mesh),
        model_flops=training_flops(model, lengths),
    )
    programs = [
        reshard_program(
            model,
            mesh,
            others.behaviour,
            others.beside_behaviour | {"sampler weights": sampler.params},
        ),
        *sampler.programs({"behaviour": others.behaviour} | others.beside_behaviour),
    ]
    if cfg.preset.needs_reference or cfg.preset.needs_sampler_logp:
        scorer = Scorer(model, cfg.sampling.temperature, places, cfg.num_microbatches)
        programs.append(
            Planned(
                name="log-probs",
                trace=lambda: scorer.program.trace(others.behaviour, batch),
                arguments={"behaviour": others.behaviour, "batch": batch},
                beside=others.beside_behaviour | (at_work if goes_ahead(cfg, topology) else {}),
                mesh=mesh,
                trips=head_parts(batch, mesh),
                model_flops=training_flops(model, lengths) / 3,
            )
        )
    return Programs(programs=[*programs, update], notes=(*subject.notes, *notes))


def goes_ahead(cfg: Any, topology: Topology) -> bool:
    """True where the run would sample during its updates."""
    return isinstance(cfg, GrpoRun) and topology.num_hosts == 1 and cfg.goes_ahead_to(1)


def rollout_batch(cfg: GrpoRun, model: ModelConfig, places: Any, longest: int) -> Any:
    """The batch of a step whose rollouts are all as long as they may be."""
    group, new = cfg.sampling.num_samples, cfg.sampling.max_new_tokens
    num = cfg.prompts_per_step * group
    sizes = grpo.packed_sizes(cfg, model, longest, places.step.mesh)
    rollout = Rollout(
        id="",
        sample=0,
        prompt_ids=np.zeros(longest, np.int32),
        token_ids=np.zeros(new, np.int32),
        logp=np.zeros(new, np.float32),
        free=np.ones(new, bool),
        text=None,
        route="none",
        p_easy=None,
        finish_reason="length",
    )
    batch = build_batch(
        [
            dataclasses.replace(rollout, prompt_ids=np.full(longest, n // group, np.int32))
            for n in range(num)
        ],
        np.zeros(num, np.float32),
        row_length=sizes.row_length,
        row_quantum=sizes.row_quantum,
        max_tokens=new,
        num_microbatches=cfg.num_microbatches,
    )
    return place(batch, batch_places(batch, places))


# ---- an evaluation ----


def of_eval(cfg: EvalRun, subject: Subject, topology: Topology) -> Programs:
    """The sampler's programs; the weights as they were loaded go before the first answer."""
    mesh = make_mesh(cfg.mesh, topology.devices)
    policy = subject.policy if cfg.dtype is None else subject.policy.computed_in(cfg.dtype)
    num_prompts, longest, notes = prompts_of(cfg, subject)
    asked = Asked(
        sampling=cfg.sampling, num_prompts=num_prompts, longest=longest, modes=cfg.modes[:1]
    )
    kept = cfg.dtype or "float32"
    sampler = Sampler(policy, cfg.mesh, topology, asked, kept=kept)
    loaded = weights_of(policy.model, mesh, kept)
    made = reshard_program(policy.model, mesh, loaded, {"sampler weights": sampler.params})
    return Programs(programs=[made, *sampler.programs({})], notes=(*subject.notes, *notes))
