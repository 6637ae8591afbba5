"""Adapters: by definition, at birth, merged, and what gradient reaches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import forward, head, head_rows, init_params, logits
from l2s_jax.model.hf.names import flatten
from l2s_jax.model.layers import Linear
from l2s_jax.model.lora import (
    TARGETS,
    LoraConfig,
    abstract_adapter,
    init_adapter,
    join,
    merge,
    part_of,
    split,
)
from l2s_jax.model.seen import Seen
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from tests.training.tiny import assert_trees_equal

IDS = (28, 3, 31)


@functools.cache
def model(tied=True) -> ModelConfig:
    return ModelConfig(
        vocab_size=32,
        width=16,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        ffn_width=24,
        tied=tied,
        qkv_bias=True,
        mlp_bias=True,
    )


@functools.cache
def base(tied=True):
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(model(tied), jax.random.key(0)))
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 2 else leaf, params)


def noisy(adapter, seed=1, size=0.3):
    """The adapter after some training: nothing of it is zero."""
    rng = np.random.default_rng(seed)

    def move(path, leaf):
        trained = path[-1].key in ("a", "b", "token_rows", "head_rows")
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        return leaf + np.float32(size) * noise if trained else leaf

    return jax.tree_util.tree_map_with_path(move, adapter)


def adapted(lora, token_ids=IDS, tied=True, trained=True):
    """The base with an adapter under "lora"."""
    key = jax.random.key(7)
    adapter = init_adapter(model(tied), lora, base(tied), key, token_ids=token_ids)
    return base(tied) | {"lora": noisy(adapter) if trained else adapter}


@functools.partial(jax.jit, static_argnums=0)
def all_logits(cfg, params):
    tokens = np.random.default_rng(0).integers(0, 32, (2, 24), dtype=np.int32)
    positions = jnp.broadcast_to(jnp.arange(24), (2, 24))
    seen = Seen(jnp.ones((2, 24), int))
    hidden = forward(cfg, params, jnp.asarray(tokens), positions, seen=seen)
    return logits(params, hidden)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_layer_by_definition(use_rslora):
    """out[o] = sum_i x[i] W[i, o] + bias[o] + scale * sum_z (sum_i x[i] a[i, z]) b[z, o]."""
    rng = np.random.default_rng(0)
    x, kernel, bias, a, b = (
        rng.normal(size=shape) for shape in ((2, 3, 5), (5, 4), (4,), (5, 2), (2, 4))
    )
    scale = LoraConfig(rank=2, alpha=3.0, use_rslora=use_rslora).scale
    want = np.zeros((2, 3, 4))
    for i, j, o in itertools.product(range(2), range(3), range(4)):
        want[i, j, o] = bias[o]
        for n in range(5):
            change = sum(a[n, z] * b[z, o] for z in range(2))
            share = 3 / np.sqrt(2) if use_rslora else 3 / 2
            want[i, j, o] += x[i, j, n] * (kernel[n, o] + share * change)
    layer = Linear(4, ("width", "ffn"), jnp.float32, use_bias=True)
    leaves = {"params": {"kernel": kernel, "bias": bias}, "lora": {"a": a, "b": b, "scale": scale}}
    leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), leaves)
    np.testing.assert_allclose(layer.apply(leaves, jnp.asarray(x, jnp.float32)), want, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_merge_by_definition(tied):
    params = adapted(LoraConfig(rank=2, alpha=5.0, targets=("v_proj", "down_proj")), tied=tied)
    merged, before = flatten(merge(params)), flatten(base(tied))
    want = {path: np.array(leaf, np.float64) for path, leaf in before.items()}
    for part, name in (("attention", "v_proj"), ("mlp", "down_proj")):
        leaves = jax.tree.map(np.asarray, params["lora"]["layers"][part][name])
        kernel = want[f"layers.{part}.{name}.kernel"]
        for layer, i, o in np.ndindex(*kernel.shape):
            for z in range(2):
                kernel[layer, i, o] += 2.5 * leaves["a"][layer, i, z] * leaves["b"][layer, z, o]
    for row, i in enumerate(IDS):
        want["embed.embedding"][i] = params["lora"]["token_rows"][row]
        if not tied:
            want["lm_head"][:, i] = params["lora"]["head_rows"][row]
    assert set(merged) == set(want)
    for path, leaf in merged.items():
        np.testing.assert_allclose(leaf, want[path], rtol=1e-5, atol=1e-6, err_msg=path)
        touched = any(name in path for name in ("v_proj", "down_proj", "embed", "lm_head"))
        if not touched:
            assert leaf is before[path], path  # not even copied


@pytest.mark.parametrize(
    ("targets", "tied"), [(TARGETS, True), (TARGETS, False), *(((t,), True) for t in TARGETS)]
)
def test_merged_computes_what_the_adapter_does(targets, tied):
    params = adapted(LoraConfig(rank=3, alpha=4.0, targets=targets), tied=tied)
    got, plain = all_logits(model(tied), params), all_logits(model(tied), base(tied))
    scale = float(jnp.max(jnp.abs(got)))
    assert float(jnp.max(jnp.abs(got - plain))) > 1e-2 * scale  # or else there is nothing to see
    merged = all_logits(model(tied), merge(params))
    np.testing.assert_allclose(got, merged, atol=3e-6 * scale, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_some_rows_of_the_head(tied):
    """Those of an adapter and others, in any order; of a model without one, too."""
    params, some = adapted(LoraConfig(rank=2), tied=tied), [IDS[1], 0, IDS[0], 5]
    assert 0 not in IDS and 5 not in IDS
    for one in (params, base(tied)):
        np.testing.assert_array_equal(head_rows(one, some), head(one)[jnp.asarray(some)])


@pytest.mark.parametrize("tied", [True, False])
def test_at_birth_it_changes_nothing(tied):
    params = adapted(LoraConfig(rank=4), tied=tied, trained=False)
    got, want = (all_logits(model(tied), p) for p in (params, base(tied)))
    # Two programs: the compiler may add up a head that was written to in another order.
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)
    assert_trees_equal(merge(params), base(tied))


def test_a_weight_in_bfloat16_is_rounded_once():
    params = adapted(LoraConfig(rank=4))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base())
    merged = merge(half | {"lora": params["lora"]})
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    want = merge(wide | {"lora": params["lora"]})
    assert_trees_equal(merged, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), want))


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_reaches_the_adapter_and_nothing_else(tied):
    params = adapted(LoraConfig(rank=2), tied=tied)
    grad = jax.grad(lambda p: jnp.sum(all_logits(model(tied), p) ** 2), allow_int=True)(params)
    trained, _ = split(params)
    for path, leaf in flatten(trained).items():
        assert float(jnp.max(jnp.abs(flatten(grad)[path]))) > 0, path
        assert leaf.dtype == jnp.float32
    for path, leaf in flatten(grad["lora"]).items():
        if path.endswith("scale"):
            assert not leaf.any(), path
    # A row that the adapter replaces is dead in the base.
    assert not grad["embed"]["embedding"][jnp.asarray(IDS)].any()
    names = {path.split(".")[-1] for path in flatten(trained)}
    assert names == {"a", "b", "token_rows"} | (set() if tied else {"head_rows"})


def test_split_and_join():
    params = adapted(LoraConfig(rank=2, targets=("q_proj",)))
    trained, frozen = split(params)
    assert not set(flatten(trained)) & set(flatten(frozen))
    assert set(flatten(trained)) | set(flatten(frozen)) == set(flatten(params))
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(params)
    assert_trees_equal(join(trained, frozen), params)
    assert "layers" in frozen and "a" not in flatten(frozen)
    # Without an adapter all is trained.
    assert split(base()) == (base(), {}) and join(base(), {}) == base()
    assert merge(base()) is base()


def test_the_start_is_that_of_peft():
    """a uniform within 1 / sqrt(inputs), b zero; another key, another a."""
    lora = LoraConfig(rank=8, targets=("down_proj", "q_proj"))
    one, two = (init_adapter(model(), lora, base(), jax.random.key(s)) for s in (0, 1))
    for name, inputs in (("down_proj", 24), ("q_proj", 16)):
        leaves = one["layers"][part_of(name)][name]
        a, bound = np.asarray(leaves["a"]), 1 / np.sqrt(inputs)
        assert a.shape == (3, inputs, 8) and np.abs(a).max() < bound
        np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.1)
        assert not leaves["b"].any() and np.all(leaves["scale"] == 4.0)
        assert not np.array_equal(a, two["layers"][part_of(name)][name]["a"])
    assert not np.array_equal(*(one["layers"][p][n]["a"][:, :16] for p, n in PAIRS))


PAIRS = (("mlp", "down_proj"), ("attention", "q_proj"))


def test_it_is_laid_out_as_its_layers():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = shardings(abstract_adapter(model(False), LoraConfig(rank=2), 3), mesh)
    down = places["layers"]["mlp"]["down_proj"]
    assert down["a"].spec == PartitionSpec(None, "tensor", None)
    assert down["b"].spec == PartitionSpec(None, None, "fsdp")
    assert places["head_rows"].spec == PartitionSpec(None, "fsdp")
    adapter = init_adapter(
        model(False), LoraConfig(rank=2), base(False), jax.random.key(0), token_ids=IDS
    )
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), adapter)
    want = nn.unbox(abstract_adapter(model(False), LoraConfig(rank=2), 3))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), want)
    jax.device_put(adapter, places)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"LoraConfig\.rank=0: at least 1"),
        ({"alpha": 0.0}, r"LoraConfig\.alpha=0\.0"),
        ({"alpha": float("inf")}, r"LoraConfig\.alpha=inf"),
        ({"targets": ()}, "at least one of q_proj, k_proj"),
        ({"targets": ("q_proj", "q_proj")}, "each once"),
        ({"targets": ("lm_head",)}, "lm_head.*down_proj"),
    ],
)
def test_faulty_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


@pytest.mark.parametrize("ids", [(3, 32), (-1,), (3, 3)])
def test_faulty_token_ids(ids):
    with pytest.raises(ValueError, match="each once, and below the model's 32 rows"):
        init_adapter(model(), LoraConfig(), base(), jax.random.key(0), token_ids=ids)
