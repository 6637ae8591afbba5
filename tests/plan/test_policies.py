"""The policies that a run of stage 2 holds: what is planned, and the arrays of a run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from l2s_jax.model.lora import LoraConfig
from l2s_jax.objectives.presets import arm, v2
from l2s_jax.plan.memory import tree_bytes
from l2s_jax.plan.policies import Others as PlannedOthers
from l2s_jax.sharding import make_mesh
from l2s_jax.training.adapter import add_adapter, kept_as, token_ids_of
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.policies import Others
from l2s_jax.training.scoring import Scorer
from l2s_jax.training.state import abstract_state, begin_state, state_shardings
from tests.training.stage2 import grpo_run
from tests.training.tiny import MESHES, taught_policy

ADAPTER = LoraConfig(rank=2, base="bfloat16")
PART = LoraConfig(rank=2, targets=("q_proj", "up_proj"))


def held_on_first(tree: Any) -> int:
    """Bytes on the first device of arrays that may share their memory."""
    first, parts = jax.devices()[0], {}
    for leaf in (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)):
        for shard in leaf.addressable_shards:
            if shard.device == first:
                parts[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return sum(parts.values())


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("preset", [v2(), arm()], ids=["v2", "arm"])
@pytest.mark.parametrize("refresh_every", [None, 1])
@pytest.mark.parametrize(
    ("lora", "weights"), [(None, "bfloat16"), (ADAPTER, "float32"), (PART, "float32")]
)
def test_policies_of_a_run_are_the_arrays_to_the_byte(lora, weights, refresh_every, preset, name):
    mesh = make_mesh(MESHES[name])
    optim = OptimConfig(weights=weights)
    cfg = grpo_run(preset=preset, lora=lora, refresh_every=refresh_every, optim=optim)
    # As the run makes them.
    policy, optimizer = taught_policy(), make_optimizer(optim, 10)
    num_rows = len(token_ids_of(policy.triggers)) if lora is not None else 0
    places = state_shardings(policy.model, optimizer, mesh, lora=lora, num_rows=num_rows)
    scorer = Scorer(policy.model, 1.0, places, 1)
    loaded = jax.tree.map(lambda leaf: jnp.asarray(leaf, kept_as(lora)), policy.params)
    policy = dataclasses.replace(policy, params=scorer.place(loaded))
    params = policy.params
    if lora is not None:
        params = add_adapter(policy, lora, jax.random.key(0))
    state = begin_state(params, optimizer, places, weights=weights)
    others = Others(preset, policy.params, scorer)
    del loaded, params, policy
    if cfg.refreshes_at(0):
        others.refresh(state)
    # As they are planned.
    shapes = abstract_state(
        taught_policy().model, optimizer, mesh, lora=lora, num_rows=num_rows, weights=weights
    )
    planned = PlannedOthers.of(cfg, taught_policy().model, mesh, shapes)
    assert tree_bytes(shapes) == held_on_first(state)
    assert tree_bytes(planned.behaviour) == held_on_first(others.behaviour)
    held = held_on_first((state, vars(others)))
    assert tree_bytes(shapes) + tree_bytes(planned.beside_state) == held
    assert tree_bytes(planned.behaviour) + tree_bytes(planned.beside_behaviour) == held
