"""A checkpoint with an adapter, exported leaf by leaf, is the merged model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.export.adapter import merging
from l2s_jax.export.hf import export_checkpoint
from l2s_jax.model.hf.names import flatten
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.lora import LoraConfig, init_adapter, merge
from l2s_jax.sampling.policy import Policy
from l2s_jax.training.policy import save_policy
from tests.export.tiny import policy_parts


def adapted(tied):
    """A policy's parts with an adapter that changes every adapted weight and two rows."""
    parts = policy_parts(tied=tied)
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    key = jax.random.key(3)
    adapter = init_adapter(parts["model"], lora, parts["params"], key, token_ids=[64, 67])
    adapter = jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else leaf + 0.25, adapter)
    return parts | {"params": parts["params"] | {"lora": adapter}}


@pytest.mark.parametrize("tied", [True, False])
def test_leaf_by_leaf_is_merge(tied):
    params = adapted(tied)["params"]
    leaves = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    fetch = merging(lambda path: leaves[path].copy(), leaves)
    want = flatten(merge(params))
    for path, leaf in want.items():
        np.testing.assert_allclose(fetch(path), leaf, rtol=1e-6, err_msg=path)
    plain = merging(lambda path: leaves[path].copy(), list(want))
    for path in want:
        np.testing.assert_array_equal(plain(path), leaves[path])
    changed = {path for path in want if not np.array_equal(plain(path), fetch(path))}
    assert changed == {
        "embed.embedding",
        "layers.attention.q_proj.kernel",
        "layers.mlp.down_proj.kernel",
    } | (set() if tied else {"lm_head"})


def test_an_exported_adapter_is_merged(tmp_path):
    parts = adapted(tied=False)
    save_policy(tmp_path / "run", Policy(**parts))
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    _, params = load_hf(tmp_path / "out")
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6),
        params,
        merge(parts["params"]),
    )
