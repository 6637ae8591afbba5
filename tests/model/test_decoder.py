"""The whole stack against transformers, and its routes against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.model.cache import (
    Cache,
    Shared,
    append,
    close,
    empty,
    empty_tail,
    extend,
    most_pages,
)
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import (
    abstract_params,
    forward,
    forward_cached,
    init_params,
    logits,
    unstacked,
)
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.seen import Seen, visible
from l2s_jax.sharding import MeshConfig, batch_sharding, make_mesh, replicated, shardings
from tests.model.test_config import TINY
from tests.tiny_models import FAMILIES, make_folder, make_model, torch_logits

BIASES = {
    "qwen2": {"": {}},
    "qwen3": {"": {}, "-biases": {"attention_bias": True}},
    "llama": {"": {}, "-biases": {"attention_bias": True, "mlp_bias": True}},
}
KINDS = {
    f"{family}{name}-{tied}": {"family": family, **fields, "tie_word_embeddings": tied == "tied"}
    for family in FAMILIES
    for name, fields in BIASES[family].items()
    for tied in ("tied", "untied")
}


def of_kind(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp(kind)
    return make_folder(folder, **KINDS[kind]), *load_hf(folder)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(transformers' model, our config, our parameters) of the same weights, every kind."""
    return of_kind(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=[kind for kind in KINDS if "biases" not in kind])
def plain_pair(request, tmp_path_factory):
    """Every family, tied and untied, as its makers publish it."""
    return of_kind(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=["qwen2-tied", "llama-biases-untied"])
def two_pairs(request, tmp_path_factory):
    """One kind with the least and one with the most parameters, for our own routes."""
    return of_kind(request.param, tmp_path_factory)


@functools.partial(jax.jit, static_argnums=0)
def full_logits(cfg, params, tokens_BT, positions_BT, segments_BT):
    hidden_BTD = forward(cfg, params, tokens_BT, positions_BT, seen=Seen(segments_BT))
    return logits(params, hidden_BTD)


def random_tokens(seed, *shape, vocab=96):
    return np.random.default_rng(seed).integers(0, vocab, shape, dtype=np.int32)


def ones(tokens_BT):
    return np.ones_like(tokens_BT)


def from_zero(tokens_BT):
    return np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape).copy()


# These three share one shape, so that a kind is compiled once.


def test_distant_positions(pair):
    model, cfg, params = pair
    tokens_BT = random_tokens(1, 3, 40)
    ends = np.array([39, 8_191, 30_000])  # the first row is a plain text from 0
    positions_BT = np.linspace(0, ends, 40).astype(np.int32).T.copy()
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
    np.testing.assert_allclose(np.asarray(got)[real_BT], want[real_BT], atol=2e-4, rtol=0)


def test_packed_segments_equal_separate_runs(pair):
    """Rows cut in other ways; the last tokens of each are padding."""
    model, cfg, params = pair
    tokens_BT = random_tokens(3, 3, 40)
    sizes = np.array([(11, 1, 20, 8), (2, 30, 7, 1), (13, 13, 13, 1)])
    segments_BT = np.stack([np.repeat([1, 2, 3, 0], row) for row in sizes]).astype(np.int32)
    positions_BT = np.stack([np.concatenate([np.arange(size) for size in row]) for row in sizes])
    got = full_logits(cfg, params, tokens_BT, positions_BT.astype(np.int32), segments_BT)
    for row in range(3):
        for segment in (1, 2, 3):
            here = segments_BT[row] == segment
            want = torch_logits(model, tokens_BT[row : row + 1, here])[0]
            np.testing.assert_allclose(np.asarray(got)[row, here], want, atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_pass_over_8192_tokens(tmp_path, family):
    size = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    model = make_folder(tmp_path, family=family, **size)
    cfg, params = load_hf(tmp_path)
    tokens_BT = random_tokens(4, 1, 8192)
    got = full_logits(cfg, params, tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    np.testing.assert_allclose(got, torch_logits(model, tokens_BT), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("num_kv", "head_dim"), [(1, 8), (4, 8), (2, 64)])
def test_other_groupings_and_head_sizes(tmp_path, num_kv, head_dim):
    model = make_folder(tmp_path, num_key_value_heads=num_kv, hidden_size=4 * head_dim)
    cfg, params = load_hf(tmp_path)
    tokens_BT = random_tokens(0, 2, 20)
    got = full_logits(cfg, params, tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    np.testing.assert_allclose(got, torch_logits(model, tokens_BT), atol=2e-4, rtol=0)


WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "vocab_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module", params=FAMILIES)
def wide(request, tmp_path_factory):
    """A model as wide and spread as real ones start, its logits as peaked as theirs (about 3.6).

    The weights are numbers of bfloat16, as on the Hub, so that only the computation differs.
    """
    import torch

    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(family=request.param, spread=None, head_dim=64, **WIDE)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        for weight in model.parameters():  # not model.to(bfloat16): it rounds the rotary rates too
            weight.copy_(weight.to(torch.bfloat16))
    model.save_pretrained(folder)
    return model, *load_hf(folder)


def log_softmax(logits_BTV):
    logits_BTV = np.asarray(logits_BTV, np.float64)
    shifted_BTV = logits_BTV - logits_BTV.max(axis=-1, keepdims=True)
    return shifted_BTV - np.log(np.exp(shifted_BTV).sum(axis=-1, keepdims=True))


def test_a_wide_model_in_float32_and_in_bfloat16(wide):
    """Logits within 2e-4 in float32; mean KL to transformers' float32 within 1e-3 in bfloat16."""
    model, cfg, params = wide
    tokens_BT = random_tokens(8, 2, 40, vocab=2048)
    inputs = (tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    want = torch_logits(model, tokens_BT)
    assert 3 < want.std() < 5
    np.testing.assert_allclose(full_logits(cfg, params, *inputs), want, atol=2e-4, rtol=0)
    rounded = full_logits(dataclasses.replace(cfg, dtype="bfloat16"), params, *inputs)
    p_BTV, q_BTV = log_softmax(want), log_softmax(rounded)
    kl_BT = (np.exp(p_BTV) * (p_BTV - q_BTV)).sum(axis=-1)
    assert 0 < kl_BT.mean() <= 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wide_model_of_every_weight_random(tmp_path, family):
    """Weights seven times as large as real ones start with: sums of large terms that cancel."""
    size = WIDE | {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    model = make_folder(tmp_path, family=family, **size | {"vocab_size": 512, "head_dim": 32})
    cfg, params = load_hf(tmp_path)
    tokens_BT = random_tokens(9, 2, 64, vocab=512)
    got = full_logits(cfg, params, tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    np.testing.assert_allclose(got, torch_logits(model, tokens_BT), atol=2e-4, rtol=0)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def prefill(cfg, params, tokens_NP, lengths_N, group, tail):
    """(cache, logits after the last prompt token of each row) of right-padded prompts."""
    index_NP = jnp.broadcast_to(jnp.arange(tokens_NP.shape[1])[None], tokens_NP.shape)
    real_NP = (index_NP < lengths_N[:, None]).astype(jnp.int32)
    mask = visible(Seen(real_NP))
    nothing = empty(
        (cfg.num_layers, *lengths_N.shape, cfg.num_kv_heads, 16, cfg.head_dim), cfg.dtype
    )
    hidden, kv = forward_cached(
        cfg, params, tokens_NP, index_NP, mask_BTT=mask, cache=Cache(nothing)
    )
    last = jnp.take_along_axis(hidden, (lengths_N - 1)[:, None, None], axis=1)[:, 0]
    stored = dataclasses.replace(extend(nothing, kv, jnp.int32(0)), lengths=lengths_N)
    seat = jnp.arange(group * len(lengths_N))
    shared = Shared(stored, seat.reshape(-1, group), seat)
    page = max(4, tail // 2)
    shape = (cfg.num_layers, len(seat), cfg.num_kv_heads, page, cfg.head_dim)
    cache = Cache(empty_tail(shape, most_pages(page, tail), cfg.compute_dtype), (shared,))
    return cache, jnp.repeat(logits(params, last), group, axis=0)


@functools.partial(jax.jit, static_argnums=0)
def decode_step(cfg, params, cache, tokens_B, positions_B, active_B):
    mask = jnp.ones((*tokens_B.shape, 1, 1), bool)
    hidden, kv = forward_cached(
        cfg, params, tokens_B[:, None], positions_B[:, None], mask_BTT=mask, cache=cache
    )
    cache = dataclasses.replace(cache, tail=close(append(cache.tail, kv, active_B, active_B)))
    return cache, logits(params, hidden[:, 0])


PROMPT_LENGTHS = np.array([9, 5])


def test_greedy_continuation_is_that_of_transformers(plain_pair):
    import torch

    model, cfg, params = plain_pair
    tokens_NP, lengths_N = random_tokens(3, 2, 9), jnp.asarray(PROMPT_LENGTHS)
    params = unstacked(cfg, params)
    cache, logits_BV = prefill(cfg, params, tokens_NP, lengths_N, 1, 64)
    chosen = []
    for step in range(64):
        chosen.append(np.asarray(jnp.argmax(logits_BV, axis=-1)))
        cache, logits_BV = decode_step(
            cfg, params, cache, jnp.asarray(chosen[-1]), lengths_N + step, jnp.ones(2, bool)
        )
    left = np.stack([np.roll(ids, 9 - n) for ids, n in zip(tokens_NP, PROMPT_LENGTHS, strict=True)])
    real = np.arange(9)[None, :] >= 9 - PROMPT_LENGTHS[:, None]
    want = model.generate(
        torch.as_tensor(left, dtype=torch.long),
        attention_mask=torch.as_tensor(real.astype(np.int64)),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(np.stack(chosen, axis=1), want[:, 9:].numpy())


def test_cached_decode_equals_full_forward(two_pairs):
    """Three rows per prompt, some beginning later, against one full pass over each row."""
    _, cfg, params = two_pairs
    tokens_NP, lengths_N = random_tokens(3, 2, 9), jnp.asarray(PROMPT_LENGTHS)
    group, steps = 3, 7
    apart = unstacked(cfg, params)
    cache, _ = prefill(cfg, apart, tokens_NP, lengths_N, group, steps)
    rows = np.arange(2 * group)
    more_BT = random_tokens(4, 2 * group, steps)
    written = [[] for _ in rows]
    for step in range(steps):
        active_B = step >= rows % 3 * 2
        filled_B = np.array([len(row) for row in written])
        positions_B = jnp.asarray(np.repeat(PROMPT_LENGTHS, group) + filled_B)
        cache, logits_BV = decode_step(
            cfg, apart, cache, jnp.asarray(more_BT[:, step]), positions_B, jnp.asarray(active_B)
        )
        for row in np.flatnonzero(active_B):
            written[row].append((more_BT[row, step], np.asarray(logits_BV[row])))
    for row in rows:
        prompt = tokens_NP[row // group, : PROMPT_LENGTHS[row // group]]
        path = np.concatenate([prompt, [token for token, _ in written[row]]])[None].astype(np.int32)
        want = full_logits(cfg, params, path, from_zero(path), ones(path))[0, len(prompt) :]
        got = np.stack([values for _, values in written[row]])
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_one_device_and_eight_agree(two_pairs, axes):
    _, cfg, params = two_pairs
    mesh = make_mesh(MeshConfig(**{"data": 1} | axes))
    tokens_BT = random_tokens(5, 8, 12)
    inputs = (tokens_BT, from_zero(tokens_BT), ones(tokens_BT))
    want = full_logits(cfg, params, *inputs)
    spread = jax.device_put(params, shardings(abstract_params(cfg), mesh))
    got = full_logits(cfg, spread, *(jax.device_put(x, batch_sharding(mesh)) for x in inputs))
    np.testing.assert_allclose(jax.device_put(got, replicated(mesh)), want, atol=2e-5, rtol=0)
    kernel = spread["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size * axes.get("data", 1)


def test_fresh_parameters_have_the_shapes_of_loaded_ones(two_pairs):
    _, cfg, params = two_pairs
    fresh = nn.unbox(jax.jit(lambda key: init_params(cfg, key))(jax.random.key(0)))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_no_gradient(remat):
    cfg = ModelConfig(**TINY)
    params = nn.unbox(jax.jit(lambda key: init_params(cfg, key))(jax.random.key(0)))
    tokens_BT = jnp.asarray(random_tokens(6, 2, 10))
    inputs = (tokens_BT, jnp.asarray(from_zero(tokens_BT)), jnp.ones_like(tokens_BT))

    def grads(cfg: ModelConfig):
        return jax.jit(jax.grad(lambda p: jnp.mean(full_logits(cfg, p, *inputs) ** 2)))(params)

    for a, b in zip(
        jax.tree.leaves(grads(cfg)),
        jax.tree.leaves(grads(dataclasses.replace(cfg, remat=remat))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
