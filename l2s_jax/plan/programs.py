"""Every program of a run, with the shapes that it is called with and where these lie.

Lives here: `Planned`, and the lists for stage 1 and stage 2. Not here: the programs, which are
those that the run calls (`training`, `sampling`); the policies beside a run's state
(`plan/policies.py`); compiling (`plan/compiled.py`).

Shapes come from the code that makes the arrays: a batch is laid out from nothing, or from rollouts
that all have their greatest length. What a run holds beside a program's own arguments is listed
too, for that decides what fits.

Left out, since each needs less than one that is here: the birth of the state, smaller states of the
sampler, the copy at a refresh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from l2s_jax.data.packing import build_row
from l2s_jax.data.pipeline import stack
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import unstacked
from l2s_jax.objectives.logprobs import num_parts
from l2s_jax.plan.policies import Others, Trees, place, weights_of
from l2s_jax.plan.subject import Subject, longest_prompt, num_token_rows
from l2s_jax.plan.topologies import Topology, one_host
from l2s_jax.sampling import load, loop
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Request
from l2s_jax.sampling.serve import Desk
from l2s_jax.sampling.state import state_places
from l2s_jax.sampling.weights import reshard_layer, reshard_rest
from l2s_jax.sharding import MeshConfig, host_mesh, make_mesh
from l2s_jax.training import grpo, sft
from l2s_jax.training.adapter import kept_as
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.rollouts import build_batch, group_modes
from l2s_jax.training.scoring import Scorer
from l2s_jax.training.sft import SftRun
from l2s_jax.training.speed import training_flops
from l2s_jax.training.state import abstract_state
from l2s_jax.training.step import batch_places
from l2s_jax.types import Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A program and what it is called with."""

    name: str
    trace: Callable[[], jax.stages.Traced]
    arguments: Trees
    beside: Trees  # what else lies on the devices while it runs
    mesh: Mesh
    trips: tuple[int, ...] = ()  # of a loop that data ends, at the most; then of one in it
    model_flops: float | None = None  # work that the model asks for, whoever does it


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
    raise TypeError(f"{type(cfg).__name__} is no run of stage 1 or 2")


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
    return Programs(programs=programs, notes=subject.notes)


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
    sampled_as = (cfg.mesh, cfg.sampling.max_rows)
    if sampled_as not in samplers:
        samplers[sampled_as] = Sampler(cfg, subject, topology, longest)
    sampler = samplers[sampled_as]
    others = Others.of(cfg, model, mesh, state)
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


class Sampler:
    """The sampler's programs, on the devices of one host; all hosts have the same."""

    def __init__(self, cfg: GrpoRun, subject: Subject, topology: Topology, longest: int):
        self._model = dataclasses.replace(subject.model, dtype=cfg.dtype)
        self._mesh = sampler_mesh(cfg.mesh, topology)
        policy = dataclasses.replace(subject.policy, model=self._model)
        engine = Engine(policy, cfg.sampling, self._mesh)
        share = -(-cfg.prompts_per_step // topology.num_hosts)
        requests = [Request(id=str(n), prompt_ids=(0,) * longest) for n in range(share)]
        modes = group_modes(cfg.rollouts, cfg.sampling.num_samples)
        routing = dataclasses.replace(cfg.sampling.routing, modes=modes)
        queue, sizes = engine.queue(requests, routing), engine.sizes(requests)
        desk = Desk(queue, sizes, self._mesh.shape["data"] * self._mesh.shape["fsdp"])
        self._begin = load.begin.trace(self._model, self._mesh, sizes.as_static())
        shapes = self._begin.out_info
        self.state = place(shapes, state_places(shapes, self._mesh))
        self._load = described(desk.next_load())
        self._steering = described(engine.steering(routing, queue.jobs))
        self._until = described(desk.until(sizes.rows, None))
        self._key = jax.eval_shape(lambda: jax.random.key(0))
        kept = weights_of(self._model, self._mesh, kept_as(cfg.lora))
        self.params = sampler_weights(self._model, self._mesh, kept)
        self._max_tokens, self._page, self._longest = sizes.max_tokens, sizes.page, longest
        self._rows = sizes.rows * desk.shards

    def programs(self, beside: Trees) -> list[Planned]:
        """Room for the rows, a load of prompts, and all that is written on them."""
        held = {"sampler weights": self.params, "sampler state": self.state}
        prompts = [self._longest] * self._load.lengths.shape[0]
        written = [self._longest + self._max_tokens] * self._rows
        # A prompt's logits are taken at its last token alone.
        unread = 2 * self._model.width * self._model.vocab_size * (sum(prompts) - len(prompts))
        forward = training_flops(self._model, prompts) / 3 - unread
        return [
            Planned(
                name="sampler begins",
                trace=lambda: self._begin,
                arguments={},
                beside=beside | {"sampler weights": self.params},
                mesh=self._mesh,
            ),
            Planned(
                name="prefill",
                trace=lambda: load.load.trace(
                    self._model, self._mesh, self.params, self.state, self._load
                ),
                arguments=held | {"prompts": self._load},
                beside=beside,
                mesh=self._mesh,
                trips=(-(-self._longest // load.CHUNK),),
                model_flops=forward,
            ),
            Planned(
                name="decode",
                trace=lambda: loop.run.trace(
                    self._model,
                    self._mesh,
                    self.params,
                    self.state,
                    self._steering,
                    self._until,
                    self._key,
                ),
                arguments=held | {"steering": self._steering},
                beside=beside,
                mesh=self._mesh,
                trips=(-(-self._max_tokens // self._page), self._page),
                model_flops=training_flops(self._model, written) / 3
                - training_flops(self._model, [self._longest] * self._rows) / 3,
            ),
        ]


def sampler_mesh(cfg: MeshConfig, topology: Topology) -> Mesh:
    """The mesh on which a host samples."""
    among_all = host_mesh(make_mesh(cfg, topology.devices))
    if topology.num_hosts == 1:
        return among_all
    return make_mesh(MeshConfig(tensor=among_all.shape["tensor"]), one_host(topology).devices)


def reshard_program(model: ModelConfig, mesh: Mesh, behaviour: Any, beside: Trees) -> Planned:
    """A layer's weights from the training layout into the sampler's, when all others are there."""
    program = reshard_layer(model, mesh, jax.tree.structure(behaviour["layers"]))
    return Planned(
        name="reshard a layer",
        trace=lambda: program.trace(behaviour["layers"], 0),
        arguments={"behaviour": behaviour},
        beside=beside,
        mesh=mesh,
    )


def sampler_weights(model: ModelConfig, mesh: Mesh, weights: Any) -> Any:
    """A policy's parameters as the sampler reads them.

    Args:
      weights: as they are kept.
    """

    def made(traced: jax.stages.Traced) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            traced.out_info,
        )

    def take(stacked: Any, layer: int) -> Any:
        return made(reshard_layer(model, mesh, jax.tree.structure(stacked)).trace(stacked, layer))

    def rest(others: Any) -> Any:
        return made(reshard_rest(model, mesh, jax.tree.structure(others)).trace(others))

    return unstacked(model, weights, take, rest)


def described(tree: Any) -> Any:
    """Shapes and types of arrays that a program is given wherever they are."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
