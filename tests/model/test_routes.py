"""Every route to attention over whole sequences, against the definition in loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.blockwise import attend_blocks
from l2s_jax.model.fused import attend_fused, attend_gpu, fusible
from l2s_jax.model.routes import attend_on, cut
from l2s_jax.model.seen import Seen
from l2s_jax.model.splash import BRANCHES, attend_splash
from l2s_jax.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from tests.model.attention_cases import CASES, Case, attend_by_loops

ROUTES = {
    "blocks": attend_blocks,
    "splash": functools.partial(attend_splash, interpret=True),
    "fused": functools.partial(attend_fused, implementation="xla"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(arrays, segments and branches, output and gradients by loops)"""
    case = CASES[request.param]
    (q, k, v, grad), ids = case.arrays(), (case.segment_ids, case.branches)
    return (q, k, v, grad), ids, attend_by_loops(q, k, v, grad, *ids)


def seen_of(ids):
    """Branches are left out where there are none, as a caller may."""
    segment_ids, branches = (jnp.asarray(x, jnp.int32) for x in ids)
    return Seen(segment_ids, branches if bool(jnp.any(branches > 0)) else None)


def with_gradients(attend, arrays, seen):
    @jax.jit
    def both(q, k, v, grad, seen):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, seen), q, k, v)
        return out, *back(grad)

    q, k, v, grad = arrays
    return both(q, k, v, grad, seen)


@pytest.mark.parametrize("route", ROUTES)
def test_outputs_and_gradients_by_loops(case, route):
    arrays, ids, want = case
    got = with_gradients(ROUTES[route], arrays, seen_of(ids))
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_trunks_alone_need_no_branches_and_may_have_them():
    q, k, v, _ = CASES["packed and padded"].arrays()
    ids = jnp.asarray(CASES["packed and padded"].segment_ids, jnp.int32)
    for attend in map(jax.jit, ROUTES.values()):
        without, zeros = Seen(ids), Seen(ids, jnp.zeros_like(ids))
        np.testing.assert_allclose(attend(q, k, v, zeros), attend(q, k, v, without), atol=1e-6)


def test_splash_gives_no_number_for_a_branch_that_it_cannot_say():
    case = CASES["branched"]
    branches = jnp.asarray(case.branches, jnp.int32).at[0, 50:55].set(BRANCHES)
    q, k, v, _ = case.arrays()
    out = jax.jit(ROUTES["splash"])(q, k, v, Seen(jnp.asarray(case.segment_ids), branches))
    np.testing.assert_array_equal(np.isnan(out).any((2, 3)), np.asarray(branches == BRANCHES))


@pytest.mark.parametrize("route", ["blocks", "splash"])
@pytest.mark.parametrize("tensor", [2, 4])
def test_cut_over_rows_and_heads(route, tensor):
    """With four devices on the heads there are more of them than key-value heads."""
    case = CASES["packed and padded"]
    arrays = [jnp.tile(x, (2, 1, 1, 1)) for x in case.arrays()]
    seen = Seen(jnp.asarray(np.tile(case.segment_ids, (2, 1)), jnp.int32))
    mesh = make_mesh(MeshConfig(data=8 // tensor // 2, fsdp=2, tensor=tensor))
    placed = jax.device_put((arrays, seen), batch_sharding(mesh))
    got = with_gradients(cut(ROUTES[route], mesh), *placed)
    for ours, theirs in zip(got, with_gradients(attend_blocks, arrays, seen), strict=True):
        np.testing.assert_allclose(jax.device_put(ours, replicated(mesh)), theirs, atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_the_last_queries_alone(route):
    """What a device computes where the mesh cuts time: its own queries over all that is before."""
    case = Case(
        rows=(((1, 0, 40), (1, 1, 100), (1, 2, 30), (2, 0, 60), (0, 0, 26)),),
        heads=2,
        kv_heads=1,
        size=64,
    )
    (q, k, v, grad), seen = case.arrays(), seen_of((case.segment_ids, case.branches))
    later = grad.at[:, :128].set(0.0)
    want = with_gradients(attend_blocks, (q, k, v, later), seen)
    got = with_gradients(ROUTES[route], (q[:, 128:], k, v, later[:, 128:]), seen)
    np.testing.assert_allclose(got[0], want[0][:, 128:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], want[1][:, 128:], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got[2:], want[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_heads_that_the_mesh_cannot_share_are_refused():
    q, k, v, _ = CASES["branched"].arrays()
    seen = Seen(jnp.asarray(CASES["branched"].segment_ids))
    attend = cut(attend_blocks, make_mesh(MeshConfig(data=1, fsdp=1, tensor=2), jax.devices()[:2]))
    with pytest.raises(ValueError, match=r"MeshConfig.tensor=2 cannot share 3 query"):
        attend(q, k, v, seen)


def test_a_cpu_takes_blocks():
    assert attend_on(make_mesh(MeshConfig())) is attend_blocks


def test_what_cudnn_cannot_do_goes_by_blocks():
    """All that can be said without a GPU: float32 never reaches cuDNN, which would refuse it."""
    q, k, v, _ = CASES["padded on the left"].arrays()
    seen = Seen(jnp.asarray(CASES["padded on the left"].segment_ids))
    np.testing.assert_array_equal(attend_gpu(q, k, v, seen), attend_blocks(q, k, v, seen))
    assert fusible(jnp.zeros((1, 4, 2, 64), jnp.bfloat16))
    for shape in ((1, 5, 2, 64), (1, 4, 2, 60), (1, 4, 2, 256)):
        assert not fusible(jnp.zeros(shape, jnp.bfloat16))
