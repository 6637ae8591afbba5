"""What programs move, read from the compiler's text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from l2s_jax.plan.hlo import shape_bytes, traffic
from l2s_jax.sharding import MeshConfig, make_mesh

SIZE = 64 * 1024


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def test_shapes():
    assert shape_bytes("f32[3,4]{1,0}") == 48
    assert shape_bytes("(bf16[8]{0:T(8,128)(2,1)}, pred[5], s32[])") == 16 + 5 + 4
    assert shape_bytes("bf16[8]{0:T(8,128)(2,1)S(1)}") == 0
    assert shape_bytes("bf16[8]{0:T(8,128)(2,1)S(1)}", fast=True) == 16


def test_what_is_read_and_written():
    x = jnp.ones(SIZE)
    assert traffic(compiled(lambda x: x * 2 + 1, x)).num_bytes == 8 * SIZE


def test_a_slice_moves_what_it_takes():
    table = jnp.ones((1000, 128))
    found = traffic(compiled(lambda t, i: jax.lax.dynamic_slice_in_dim(t, i, 8) * 2, table, 3))
    assert 2 * 8 * 128 * 4 <= found.num_bytes <= 4 * 8 * 128 * 4 + 64


def test_loops_count_as_often_as_they_run():
    x = jnp.ones(SIZE)

    def repeated(x, length):
        return jax.lax.scan(lambda c, _: (jnp.sin(c) * 2, None), x, length=length)[0]

    few, many = (traffic(compiled(lambda x, n=n: repeated(x, n), x)).num_bytes for n in (3, 30))
    np.testing.assert_allclose(many - few, 27 * 8 * SIZE, rtol=0.02)

    def until(x):
        return jax.lax.while_loop(lambda c: c[0] < 1e9, lambda c: jnp.sin(c) * 2, x)

    def nested(x):
        return jax.lax.while_loop(lambda c: c[0] < 1e9, until, x)

    few, many = (traffic(compiled(until, x), while_trips=(n,)).num_bytes for n in (3, 30))
    np.testing.assert_allclose(many - few, 27 * 8 * SIZE, rtol=0.02)
    few, many = (traffic(compiled(nested, x), while_trips=(2, n)).num_bytes for n in (3, 30))
    np.testing.assert_allclose(many - few, 2 * 27 * 8 * SIZE, rtol=0.02)


@pytest.mark.parametrize("axis, size", [("fsdp", 4), ("tensor", 2)])
def test_exchanges_between_devices(axis, size):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    cut = NamedSharding(mesh, PartitionSpec(axis))
    x = jax.device_put(jnp.ones((SIZE,)), cut)
    [gather] = traffic(
        compiled(
            lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec())), x
        )
    ).collectives
    assert (gather.kind, gather.size, gather.count) == ("all-gather", size, 1)
    assert gather.num_bytes == 4 * SIZE
    steps = {"fsdp": [(0, 2, 4, 6), (1, 3, 5, 7)], "tensor": [(0, 1), (2, 3), (4, 5), (6, 7)]}
    assert list(gather.groups) == steps[axis]
    [total] = traffic(compiled(jnp.sum, x)).collectives
    assert (total.kind, total.size, total.num_bytes) == ("all-reduce", size, 4)


TPU = """HloModule jit_f, is_scheduled=true

%gathering (p.1: bf16[2,8]) -> bf16[8,8] {
  %p.1 = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g.1 = bf16[8,8]{1,0} all-gather(%p.1), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%waiting (p.2: bf16[2,8]) -> bf16[8,8] {
  %p.2 = bf16[2,8]{1,0} parameter(0)
  ROOT %g.2 = bf16[8,8]{1,0} all-gather(%p.2), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%body (state: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %state = (s32[], bf16[2,8]{1,0}) parameter(0)
  %x = bf16[2,8]{1,0} get-tuple-element(%state), index=1, frontend_attributes={note="{
}}"}
  %start = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%gathering
  %done = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%waiting
  ROOT %out = (s32[], bf16[2,8]{1,0}) tuple(%x, %x)
}

%condition (state.1: (s32[], bf16[2,8])) -> pred[] {
  %state.1 = (s32[], bf16[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state.1), index=0
  %end = s32[]{:T(128)} constant(24)
  ROOT %more = pred[]{:T(512)} compare(%i, %end), direction=LT
}

ENTRY %main (start.1: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %start.1 = (s32[], bf16[2,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[2,8]{1,0}) while(%start.1), condition=%condition, body=%body
}
"""


def test_a_tpu_s_text():
    """Its start and end of one exchange count once; its loops say how often only by a bound."""
    [gather] = traffic(TPU).collectives
    assert (gather.kind, gather.count, gather.num_bytes) == ("all-gather", 24, 2 * 64)
    assert gather.groups == ((0, 1, 2, 3), (4, 5, 6, 7))
