"""Bytes on a device: exactly those of the arrays, and what the compiler adds."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from l2s_jax.plan.memory import Memory, memory_of, refused_bytes, tree_bytes
from l2s_jax.plan.topologies import GIB
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.state import abstract_state, begin_state, state_shardings
from l2s_jax.training.step import batch_places, place_batch
from tests.training.tiny import MESHES, make_batches, taught_policy


def on_first(tree):
    """Bytes of the parts that the first device really holds."""
    first = jax.devices()[0]
    parts = (s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards)
    return sum(s.data.nbytes for s in parts if s.device == first)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MESHES)
def test_planned_arguments_are_the_arrays_to_the_byte(name, weights):
    policy, optimizer = taught_policy(), make_optimizer(OptimConfig(), 10)
    mesh = make_mesh(MESHES[name])
    places = state_shardings(policy.model, optimizer, mesh)
    state = begin_state(policy.params, optimizer, places, weights=weights)
    batch = make_batches()[0]
    planned = abstract_state(policy.model, optimizer, mesh, weights=weights)
    assert tree_bytes(planned) == on_first(state)
    shapes = jax.tree.map(
        lambda array, place: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
        batch,
        batch_places(batch, places),
    )
    assert tree_bytes(shapes) == on_first(place_batch(batch, places))


def test_what_a_compiled_program_takes():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)

    def twice(x):
        return jnp.sin(x @ x) @ x

    compiled = jax.jit(twice).lower(x).compile()
    found = memory_of(compiled, {"x": x}, {"other": (x, x)})
    one = 256 * 256 * 4
    assert (found.arguments, found.padding, found.results) == (one, 0, one)
    assert found.beside == 2 * one and found.temporaries >= one
    assert found.peak == 4 * one + found.temporaries
    donated = jax.jit(twice, donate_argnums=0).lower(x).compile()
    assert memory_of(donated, {"x": x}, {}).results == 0


def test_a_key_is_two_words():
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert tree_bytes(key) == 8


def test_what_the_compiler_says_when_it_is_too_much():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm."
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (240.00G) exceeds available HBM (15.75G)."
    )
    assert refused_bytes(used) == int(21.5 * GIB)
    assert refused_bytes(temporaries) == 240 * GIB
    assert refused_bytes("INTERNAL: a bug of 3.0G of 4.0G hbm") is None


def test_a_mesh_of_one_holds_all():
    policy, optimizer = taught_policy(), make_optimizer(OptimConfig(), 10)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    whole = abstract_state(policy.model, optimizer, one)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(whole))
    assert tree_bytes(whole) == total
    parts = Memory(arguments=total, padding=1, temporaries=2, results=3, beside=4)
    assert dataclasses.replace(parts, arguments=0).peak == 10
