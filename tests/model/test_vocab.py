import functools
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params, init_params
from l2s_jax.model.vocab import add_rows, grow_table
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from tests.model.test_config import TINY

SHAPE = re.compile(r"(?:f32|bf16)\[([\d,]+)\]")
NUM_REAL = 90  # of 96 rows: six are padding


def make(tied):
    cfg = ModelConfig(**TINY, tied=tied)
    return cfg, nn.unbox(jax.jit(lambda key: init_params(cfg, key))(jax.random.key(0)))


def tables(params):
    """Embedding, and head where there is one, a row per entry."""
    rows = [np.asarray(params["embed"]["embedding"])]
    return rows + ([np.asarray(params["lm_head"]).T] if "lm_head" in params else [])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("first", [90, 94, 96])  # in the padding, over its end, past it
def test_new_rows_are_means_and_old_rows_stay(tied, first):
    cfg, params = make(tied)
    starts = {first: (3, 4, 4), first + 1: (), first + 2: (7,), first + 3: (1, 2)}
    grown_cfg, grown = add_rows(params, cfg, starts, NUM_REAL)
    assert grown_cfg.vocab_size == max(96, first + 4)
    assert len(tables(grown)) == (1 if tied else 2)
    for before, after in zip(tables(params), tables(grown), strict=True):
        assert after.shape == (grown_cfg.vocab_size, 32)
        for new, pieces in starts.items():
            rows = before[list(pieces)] if pieces else before[:NUM_REAL]
            np.testing.assert_allclose(after[new], rows.mean(axis=0), atol=1e-7)
        kept = [row for row in range(96) if row not in starts]
        np.testing.assert_array_equal(after[kept], before[kept])
    assert grown["layers"] is params["layers"]


def sharded(tied, mesh_cfg, dtype="float32"):
    """(config, parameters on one device, the same parameters cut over eight)."""
    cfg, params = make(tied)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    places = shardings(abstract_params(cfg), make_mesh(mesh_cfg))
    return cfg, params, jax.device_put(params, places)


@pytest.mark.parametrize(
    ("mesh_cfg", "dtype"),
    [(MeshConfig(fsdp=8), "float32"), (MeshConfig(fsdp=2, tensor=4), "bfloat16")],
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("first", [92, 96])  # free rows, and a table that grows from 96 to 100
def test_tables_stay_cut_over_eight_devices(mesh_cfg, first, tied, dtype):
    cfg, params, cut = sharded(tied, mesh_cfg, dtype)
    starts = {first + n: pieces for n, pieces in enumerate([(3, 4, 4), (), (7,), (1, 2)])}
    want_cfg, want = add_rows(params, cfg, starts, NUM_REAL)
    got_cfg, got = add_rows(cut, cfg, starts, NUM_REAL)
    assert got_cfg == want_cfg

    atol = 1e-7 if dtype == "float32" else 1e-3  # a mean summed in another order
    for name in ("embed", "lm_head")[: 1 if tied else 2]:
        mine, whole, before = (jax.tree.leaves(tree[name])[0] for tree in (got, want, cut))
        assert mine.sharding == before.sharding and mine.dtype == before.dtype
        np.testing.assert_allclose(np.float32(mine), np.float32(whole), atol=atol)
    assert got["layers"] is cut["layers"]
    assert len(got["embed"]["embedding"].sharding.device_set) == 8


@pytest.mark.parametrize("first", [90, 96])
def test_no_device_ever_holds_the_whole_table(first):
    cfg, _, cut = sharded(True, MeshConfig(tensor=4, fsdp=2))
    table = cut["embed"]["embedding"]
    starts = {first + n: () for n in range(4)}
    grow = functools.partial(grow_table, starts=starts, num_real=NUM_REAL)
    program = jax.jit(grow, out_shardings=table.sharding).lower(table).compile().as_text()
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in SHAPE.findall(program)]
    # Its part is a quarter of the rows and half of the width; growing lends a few rows more.
    assert max(sizes) < 1.2 * (cfg.vocab_size + 4) // 4 * cfg.width // 2


def test_rows_that_devices_cannot_share_are_refused():
    cfg, _, cut = sharded(True, MeshConfig(tensor=8))
    with pytest.raises(ValueError, match=r"grows to 100 rows, which the 8 devices.*mesh\.tensor"):
        add_rows(cut, cfg, {96 + n: () for n in range(4)}, NUM_REAL)
    grown, _ = add_rows(cut, cfg, {90: ()}, NUM_REAL)  # a free row needs no room
    assert grown == cfg


def test_no_new_tokens_change_nothing():
    cfg, params = make(True)
    assert add_rows(params, cfg, {}, NUM_REAL) == (cfg, params)


@pytest.mark.parametrize(
    ("starts", "num_real", "message"),
    [
        ({89: ()}, 90, r"new token ids \[89\] belong to real tokens"),
        ({96: (), 98: ()}, 90, r"new token ids \[96, 98\] leave rows without a start"),
        ({90: (1, 90)}, 90, r"new token id 90 starts from ids \[90\]"),
        ({90: (-1,)}, 90, r"starts from ids \[-1\]"),
        ({97: ()}, 97, "num_real=97: the table has 96 rows"),
    ],
)
def test_refusals(starts, num_real, message):
    cfg, params = make(True)
    with pytest.raises(ValueError, match=message):
        add_rows(params, cfg, starts, num_real)
