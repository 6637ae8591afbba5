import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.seen import Seen, alone, visible
from tests.model.attention_cases import sees_by_loops


@pytest.mark.parametrize("seed", range(4))
def test_visible_by_loops(seed):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 4, (2, 12)), axis=1)
    if seed % 2:
        segments = segments[:, ::-1]  # padding on the right
    branches = rng.integers(0, 3, (2, 12))
    got = visible(Seen(jnp.asarray(segments), jnp.asarray(branches)))
    trunks = visible(Seen(jnp.asarray(segments)))
    for b, t, s in np.ndindex(2, 12, 12):
        assert bool(got[b, t, s]) == sees_by_loops(segments[b], branches[b], t, s), (b, t, s)
        assert bool(trunks[b, t, s]) == sees_by_loops(segments[b], np.zeros(12), t, s), (b, t, s)


def test_a_branch_sees_the_trunk_and_itself_only():
    seen = visible(Seen(jnp.ones((1, 5), int), jnp.array([[0, 1, 1, 2, 2]])))[0]
    assert np.flatnonzero(seen[2]).tolist() == [0, 1, 2]
    assert np.flatnonzero(seen[4]).tolist() == [0, 3, 4]


def test_padding_is_alone_by_its_id():
    ids = np.asarray(alone(Seen(jnp.array([[0, 0, 1, 1, 2, 0]]))))[0]
    assert ids[2:5].tolist() == [1, 1, 2]
    assert len(set(ids.tolist())) == 5  # the two tokens of segment 1 share theirs
