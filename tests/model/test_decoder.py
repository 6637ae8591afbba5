"""The whole stack against transformers, and its routes against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.model import cache as caches
from l2s_jax.model.attention import visible
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params, forward, init_params, logits
from l2s_jax.model.hf.read import load_hf
from l2s_jax.sharding import MeshConfig, batch_sharding, make_mesh, replicated, shardings
from tests.model.test_config import TINY
from tests.tiny_models import make_folder, torch_logits

KINDS = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(transformers' model, our config, our parameters) of the same weights."""
    folder = tmp_path_factory.mktemp(request.param)
    return make_folder(folder, **KINDS[request.param]), *load_hf(folder)


@functools.partial(jax.jit, static_argnums=0)
def full_logits(cfg, params, tokens_BT, positions_BT, segments_BT):
    mask_BTT = visible(segments_BT, jnp.zeros_like(segments_BT))
    hidden_BTD, _ = forward(cfg, params, tokens_BT, positions_BT, mask_BTT=mask_BTT)
    return logits(params, hidden_BTD)


def random_tokens(seed, *shape):
    return np.random.default_rng(seed).integers(0, 96, shape, dtype=np.int32)


def ones(tokens_BT):
    return np.ones_like(tokens_BT)


def from_zero(tokens_BT):
    return np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape).copy()


def test_plain_logits_are_those_of_transformers(pair):
    model, cfg, params = pair
    tokens_BT = random_tokens(0, 2, 40)
    got = full_logits(cfg, params, tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    np.testing.assert_allclose(got, torch_logits(model, tokens_BT), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("num_kv", "head_dim"), [(1, 8), (4, 8), (2, 64)])
def test_other_groupings_and_head_sizes(tmp_path, num_kv, head_dim):
    model = make_folder(tmp_path, num_key_value_heads=num_kv, hidden_size=4 * head_dim)
    cfg, params = load_hf(tmp_path)
    tokens_BT = random_tokens(0, 2, 20)
    got = full_logits(cfg, params, tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    np.testing.assert_allclose(got, torch_logits(model, tokens_BT), atol=2e-4, rtol=0)


def test_distant_positions(pair):
    model, cfg, params = pair
    tokens_BT = random_tokens(1, 2, 40)
    positions_BT = np.broadcast_to(np.linspace(0, 30_000, 40).astype(np.int32), (2, 40)).copy()
    got = full_logits(cfg, params, tokens_BT, positions_BT, ones(tokens_BT))
    want = torch_logits(model, tokens_BT, position_ids=positions_BT)
    np.testing.assert_allclose(got, want, atol=2e-4, rtol=0)


def test_left_padded_batch(pair):
    model, cfg, params = pair
    lengths_B = np.array([40, 23, 1])
    tokens_BT = random_tokens(2, 3, 40)
    real_BT = np.arange(40)[None, :] >= 40 - lengths_B[:, None]
    positions_BT = np.maximum(np.cumsum(real_BT, axis=1) - 1, 0).astype(np.int32)
    got = full_logits(cfg, params, tokens_BT, positions_BT, real_BT.astype(np.int32))
    mask = real_BT.astype(np.int64)
    want = torch_logits(model, tokens_BT, attention_mask=mask, position_ids=positions_BT)
    np.testing.assert_allclose(got[real_BT], want[real_BT], atol=2e-4, rtol=0)


def test_packed_segments_equal_separate_runs(pair):
    model, cfg, params = pair
    parts = [random_tokens(seed, 1, length) for seed, length in enumerate((11, 1, 20))]
    tokens_BT = np.concatenate([*parts, random_tokens(9, 1, 8)], axis=1)  # ends in padding
    sizes = [part.shape[1] for part in parts] + [8]
    segments_BT = np.repeat([1, 2, 3, 0], sizes)[None].astype(np.int32)
    positions_BT = np.concatenate([np.arange(size) for size in sizes])[None].astype(np.int32)
    got = full_logits(cfg, params, tokens_BT, positions_BT, segments_BT)
    start = 0
    for part in parts:
        want = torch_logits(model, part)
        here = got[:, start : start + part.shape[1]]
        np.testing.assert_allclose(here, want, atol=2e-4, rtol=0)
        start += part.shape[1]


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def prefill(cfg, params, tokens_NP, real_NP, group, tail):
    """(cache, logits after the last prompt token of each row)."""
    segments_NP = real_NP.astype(jnp.int32)
    positions_NP = jnp.maximum(jnp.cumsum(segments_NP, axis=1) - 1, 0)
    mask = visible(segments_NP, jnp.zeros_like(segments_NP))
    hidden, (k, v) = forward(cfg, params, tokens_NP, positions_NP, mask_BTT=mask)
    last = jnp.repeat(logits(params, hidden[:, -1]), group, axis=0)
    return caches.begin(k, v, real_NP, group=group, tail=tail), last


@functools.partial(jax.jit, static_argnums=0)
def decode_step(cfg, params, cache, tokens_B, positions_B, active_B):
    hidden, (k, v) = forward(cfg, params, tokens_B[:, None], positions_B[:, None], cache=cache)
    return caches.append(cache, k, v, active_B), logits(params, hidden[:, 0])


def left_padded_prompts():
    lengths_N = np.array([9, 5])
    return random_tokens(3, 2, 9), np.arange(9)[None, :] >= 9 - lengths_N[:, None], lengths_N


def test_greedy_continuation_is_that_of_transformers(pair):
    import torch

    model, cfg, params = pair
    tokens_NP, real_NP, lengths_N = left_padded_prompts()
    cache, logits_BV = prefill(cfg, params, tokens_NP, real_NP, 1, 32)
    chosen = []
    for step in range(32):
        chosen.append(np.asarray(jnp.argmax(logits_BV, axis=-1)))
        positions_B = jnp.asarray(lengths_N + step)
        cache, logits_BV = decode_step(
            cfg, params, cache, jnp.asarray(chosen[-1]), positions_B, jnp.ones(2, bool)
        )
    want = model.generate(
        torch.as_tensor(tokens_NP, dtype=torch.long),
        attention_mask=torch.as_tensor(real_NP.astype(np.int64)),
        max_new_tokens=32,
        do_sample=False,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(np.stack(chosen, axis=1), want[:, 9:].numpy())


def test_cached_decode_equals_full_forward(pair):
    """Three rows per prompt, some pausing on the way, against one full pass over each row."""
    _, cfg, params = pair
    tokens_NP, real_NP, lengths_N = left_padded_prompts()
    group, steps = 3, 7
    cache, _ = prefill(cfg, params, tokens_NP, real_NP, group, steps)
    rows = np.arange(2 * group)
    more_BT = random_tokens(4, 2 * group, steps)
    written = [[] for _ in rows]
    for step in range(steps):
        active_B = (rows + step) % 3 > 0
        filled_B = np.array([len(row) for row in written])
        positions_B = jnp.asarray(np.repeat(lengths_N, group) + filled_B)
        cache, logits_BV = decode_step(
            cfg, params, cache, jnp.asarray(more_BT[:, step]), positions_B, jnp.asarray(active_B)
        )
        for row in np.flatnonzero(active_B):
            written[row].append((more_BT[row, step], np.asarray(logits_BV[row])))
    for row in rows:
        prompt = tokens_NP[row // group][real_NP[row // group]]
        path = np.concatenate([prompt, [token for token, _ in written[row]]])[None].astype(np.int32)
        want = full_logits(cfg, params, path, from_zero(path), ones(path))[0, len(prompt) :]
        got = np.stack([values for _, values in written[row]])
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_one_device_and_eight_agree(pair, axes):
    _, cfg, params = pair
    mesh = make_mesh(MeshConfig(**{"data": 1} | axes))
    tokens_BT = random_tokens(5, 8, 12)
    inputs = (tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    want = full_logits(cfg, params, *inputs)
    spread = jax.device_put(params, shardings(abstract_params(cfg), mesh))
    got = full_logits(cfg, spread, *(jax.device_put(x, batch_sharding(mesh)) for x in inputs))
    np.testing.assert_allclose(jax.device_put(got, replicated(mesh)), want, atol=2e-5, rtol=0)
    kernel = spread["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size * axes.get("data", 1)


def test_fresh_parameters_have_the_shapes_of_loaded_ones(pair):
    _, cfg, params = pair
    fresh = nn.unbox(jax.jit(lambda key: init_params(cfg, key))(jax.random.key(0)))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


def test_rematerialisation_changes_no_gradient():
    cfg = ModelConfig(**TINY)
    params = nn.unbox(jax.jit(lambda key: init_params(cfg, key))(jax.random.key(0)))
    tokens_BT = jnp.asarray(random_tokens(6, 2, 10))
    inputs = (tokens_BT, jnp.asarray(from_zero(tokens_BT)), jnp.ones_like(tokens_BT))

    def grads(cfg: ModelConfig):
        return jax.jit(jax.grad(lambda p: jnp.mean(full_logits(cfg, p, *inputs) ** 2)))(params)

    for a, b in zip(
        jax.tree.leaves(grads(cfg)),
        jax.tree.leaves(grads(dataclasses.replace(cfg, remat=True))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
