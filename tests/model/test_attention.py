import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.attention import attend, attend_cached, visible
from l2s_jax.model.cache import LayerCache


def attend_by_loops(q, k, v, mask):
    out = np.zeros_like(q)
    shared = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b, t])
        dots = np.array([q[b, t, h] @ k[b, s, h // shared] for s in seen]) / np.sqrt(q.shape[3])
        probs = np.exp(dots - dots.max())
        probs /= probs.sum()
        out[b, t, h] = sum(p * v[b, s, h // shared] for p, s in zip(probs, seen, strict=True))
    return out


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_visible_by_loops(seed):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 4, (2, 12)), axis=1)
    if seed % 2:
        segments = segments[:, ::-1]  # padding on the right
    branches = rng.integers(0, 3, (2, 12))
    got = visible(jnp.asarray(segments), jnp.asarray(branches))
    for b, t, s in np.ndindex(2, 12, 12):
        same = segments[b, t] == segments[b, s] and segments[b, s] > 0
        path = branches[b, s] in (0, branches[b, t])
        assert bool(got[b, t, s]) == (t == s or (s < t and same and path)), (b, t, s)


def test_a_branch_sees_the_trunk_and_itself_only():
    seen = visible(jnp.ones((1, 5), int), jnp.array([[0, 1, 1, 2, 2]]))[0]
    assert np.flatnonzero(seen[2]).tolist() == [0, 1, 2]
    assert np.flatnonzero(seen[4]).tolist() == [0, 3, 4]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attend_by_loops(heads, kv_heads):
    q, k, v = normal(0, 2, 7, heads, 8), normal(1, 2, 7, kv_heads, 8), normal(2, 2, 7, kv_heads, 8)
    segments = jnp.array([[0, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
    mask = visible(segments, jnp.zeros_like(segments))
    got = attend(*map(jnp.asarray, (q, k, v)), mask)
    np.testing.assert_allclose(got, attend_by_loops(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("group", [1, 3])
def test_grouped_prompts_equal_repeated_prompts(group):
    num_prompts, prompt, tail, heads, kv_heads, size = 2, 5, 4, 4, 2, 8
    batch = num_prompts * group
    q, k, v = normal(0, batch, 1, heads, size), *normal(1, 2, batch, 1, kv_heads, size)
    prompt_k, prompt_v = normal(2, 2, num_prompts, prompt, kv_heads, size)
    tail_k, tail_v = normal(3, 2, batch, tail, kv_heads, size)
    prompt_mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    lengths = np.arange(batch) % (tail + 1)
    tail_mask = np.arange(tail)[None, :] < lengths[:, None]
    cache = LayerCache(
        *map(jnp.asarray, (prompt_k, prompt_v, prompt_mask, tail_k, tail_v, tail_mask))
    )
    got = attend_cached(*map(jnp.asarray, (q, k, v)), cache)

    def whole(prompts, tails, own):
        return np.concatenate([np.repeat(prompts, group, axis=0), tails, own], axis=1)

    mask = whole(prompt_mask, tail_mask, np.ones((batch, 1), bool))[:, None]
    want = attend_by_loops(q, whole(prompt_k, tail_k, k), whole(prompt_v, tail_v, v), mask)
    np.testing.assert_allclose(got, want, atol=2e-6)
