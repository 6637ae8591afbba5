"""The sampler's programs: weights made ready, a load of prompts, and all that is written on them.

Lives here: `Sampler`, known from what it is asked. Not here: the programs (`sampling`), what a run
holds beside them (`plan/programs.py`).
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from l2s_jax.model.config import DTypeName, ModelConfig
from l2s_jax.model.decoder import Params, unstacked
from l2s_jax.plan.planned import Planned, Trees, place
from l2s_jax.plan.policies import weights_of
from l2s_jax.plan.topologies import Topology, one_host
from l2s_jax.sampling import load, loop
from l2s_jax.sampling.controllers.routing import Mode
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import Request, SamplingConfig
from l2s_jax.sampling.serve import Desk
from l2s_jax.sampling.state import state_places
from l2s_jax.sampling.weights import reshard_layer, reshard_rest
from l2s_jax.sharding import MeshConfig, host_mesh, make_mesh
from l2s_jax.training.speed import training_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What all hosts together are asked for at a time."""

    sampling: SamplingConfig
    num_prompts: int
    longest: int  # tokens of the longest prompt
    modes: tuple[Mode, ...] = ()  # of each prompt's samples; none: as `sampling` says


class Sampler:
    """The sampler's programs, on the devices of one host; all hosts have the same.

    Args:
      policy: needs no weights.
      kept: the type of the weights that the sampler takes over.
    """

    def __init__(
        self,
        policy: Policy,
        mesh: MeshConfig,
        topology: Topology,
        asked: Asked,
        *,
        kept: DTypeName = "float32",
    ):
        self._model, self._mesh = policy.model, sampler_mesh(mesh, topology)
        engine = Engine(policy, asked.sampling, self._mesh)
        share = -(-asked.num_prompts // topology.num_hosts)
        requests = [Request(id=str(n), prompt_ids=(0,) * asked.longest) for n in range(share)]
        routing = asked.sampling.routing
        if asked.modes:
            routing = dataclasses.replace(routing, modes=asked.modes)
        queue, sizes = engine.queue(requests, routing), engine.sizes(requests)
        desk = Desk(queue, sizes, self._mesh.shape["data"] * self._mesh.shape["fsdp"])
        self._begin = load.begin.trace(self._model, self._mesh, sizes.as_static())
        shapes = self._begin.out_info
        self.state = place(shapes, state_places(shapes, self._mesh))
        self._load = described(desk.next_load())
        self._steering = described(engine.steering(routing, queue.jobs))
        self._until = described(desk.until(sizes.rows, None))
        self._key = jax.eval_shape(lambda: jax.random.key(0))
        self.params = sampler_weights(
            self._model, self._mesh, weights_of(self._model, self._mesh, kept)
        )
        self._max_tokens, self._page, self._longest = sizes.max_tokens, sizes.page, asked.longest
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


def reshard_program(model: ModelConfig, mesh: Mesh, weights: Params, beside: Trees) -> Planned:
    """A layer's weights from the training layout into the sampler's, when all others are there."""
    program = reshard_layer(model, mesh, jax.tree.structure(weights["layers"]))
    return Planned(
        name="reshard a layer",
        trace=lambda: program.trace(weights["layers"], 0),
        arguments={"weights": weights},
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
