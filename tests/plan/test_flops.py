"""Arithmetic counted in a trace, against what one would count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from l2s_jax.model.seen import Seen
from l2s_jax.model.splash import attend_splash
from l2s_jax.plan.flops import count_flops
from l2s_jax.sharding import MeshConfig, make_mesh

A, B = jnp.ones((4, 8)), jnp.ones((8, 16))
ONE = 2 * 4 * 8 * 16  # of A @ B


def flops(function, *args, **options):
    return count_flops(jax.make_jaxpr(function)(*args), **options)


def test_a_product_is_two_operations_for_each_multiplication():
    assert flops(lambda a, b: a @ b, A, B) == ONE
    assert (
        flops(
            lambda a, b: jnp.einsum("gij,gjk->gik", a, b), jnp.ones((3, 4, 8)), jnp.ones((3, 8, 16))
        )
        == 3 * ONE
    )
    assert flops(jnp.add, A, A) == 0


def test_gradients_take_two_more():
    def loss(a, b):
        return jnp.sum(jnp.square(a @ b))

    assert flops(jax.grad(loss, (0, 1)), A, B) == 3 * ONE
    again = flops(jax.grad(jax.checkpoint(loss), (0, 1)), A, B)
    assert again == 4 * ONE  # what is computed again counts


def test_loops_are_multiplied_out():
    square = jnp.ones((8, 8))

    def scanned(a):
        return jax.lax.scan(lambda c, _: (c @ square, None), a, length=5)[0]

    def unknown(a):
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ square, a)

    assert flops(scanned, A) == 5 * 2 * 4 * 8 * 8

    def nested(a):
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, unknown, a)

    assert flops(unknown, A, while_trips=(7,)) == 7 * 2 * 4 * 8 * 8
    assert flops(nested, A, while_trips=(3, 7)) == 3 * 7 * 2 * 4 * 8 * 8


def test_the_dearest_branch_counts():
    def either(yes, a, b):
        return jax.lax.cond(yes, lambda: a @ b @ b.T @ b, lambda: a @ b)

    assert flops(either, True, A, B) == 3 * ONE


def test_a_program_by_device_counts_for_all_of_them():
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    rows = PartitionSpec("data")
    for axes, shards in (({"data"}, 4), ({"data", "tensor"}, 8)):
        inside = jax.shard_map(
            lambda a, b: a @ b,
            mesh=mesh,
            in_specs=(rows, PartitionSpec()),
            out_specs=rows,
            axis_names=axes,
        )
        assert flops(jax.jit(inside), A, B) == ONE / 4 * shards


@pytest.mark.parametrize("length", [512, 2048])
def test_a_causal_kernel_does_half_of_its_square(length):
    q, k = jnp.ones((2, length, 4, 64), jnp.bfloat16), jnp.ones((2, length, 2, 64), jnp.bfloat16)
    seen = Seen(jnp.ones((2, length), jnp.int32))
    blocks = length // 512
    square = 2 * 4 * 2 * 2 * length**2 * 64
    got = flops(lambda q, k: attend_splash(q, k, k, seen), q, k)
    np.testing.assert_allclose(got, square * (blocks + 1) / (2 * blocks), rtol=0.01)
