import jax
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import init_params
from l2s_jax.model.vocab import add_rows
from tests.model.test_config import TINY

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
