"""Blocked log-probs against their definition in float64, and their gradients against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2s_jax.objectives.logprobs import (
    OwnRows,
    even_block,
    num_parts,
    parts_needed,
    token_logp,
)


def inputs(seed=0, rows=2, time=5, width=8, words=37, scale=1.0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, time, width)).astype(np.float32) * scale
    head = rng.normal(size=(words, width)).astype(np.float32)
    targets = rng.integers(0, words, (rows, time)).astype(np.int32)
    targets[0, :2] = 0, words - 1  # both ends of the vocabulary
    return hidden, head, targets


def by_definition(hidden, head, targets, temperature):  # float64, one position at a time
    logp = np.zeros(targets.shape)
    for b, t in np.ndindex(*targets.shape):
        logits = head.astype(np.float64) @ hidden[b, t].astype(np.float64) / temperature[b]
        everything = logits - logits.max()
        everything -= np.log(np.sum(np.exp(everything)))
        logp[b, t] = everything[targets[b, t]]
    return logp


# 37 words: one block, blocks that divide nothing, of one word, all but one word, exact halves.
@pytest.mark.parametrize(("words", "block"), [(37, 64), (37, 8), (37, 1), (37, 36), (38, 19)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_definition(words, block, temperature):
    hidden, head, targets = inputs(words=words)
    logp = token_logp(
        jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets),
        temperature=temperature, block=block,
    )  # fmt: skip
    want = by_definition(hidden, head, targets, [temperature] * 2)
    np.testing.assert_allclose(logp, want, atol=1e-5)


@pytest.mark.parametrize("block", [64, 8])
def test_temperature_per_row_may_be_traced(block):
    hidden, head, targets = inputs(1)
    temperature = np.array([0.5, 2.0], np.float32)
    logp = jax.jit(
        lambda temperature_B: token_logp(
            jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets),
            temperature=temperature_B, block=block,
        )
    )(temperature)  # fmt: skip
    want = by_definition(hidden, head, targets, temperature)
    np.testing.assert_allclose(logp, want, atol=1e-5)


def gradients_by_definition(hidden, head, targets, weights, temperature):
    """Of the weighted sum of log-probs: (onehot - probability) times the other factor, float64."""
    hidden_grad, head_grad = np.zeros(hidden.shape), np.zeros(head.shape)
    for b, t in np.ndindex(*targets.shape):
        h, w = hidden[b, t].astype(np.float64), head.astype(np.float64)
        logits = w @ h / temperature
        prob = np.exp(logits - logits.max())
        error = -prob / prob.sum()
        error[targets[b, t]] += 1
        hidden_grad[b, t] = weights[b, t] / temperature * (error @ w)
        head_grad += weights[b, t] / temperature * np.outer(error, h)
    return hidden_grad, head_grad


def blocked_gradients(hidden, head, targets, weights, **arguments):
    def loss(hidden, head):
        return jnp.sum(weights * token_logp(hidden, head, targets, temperature=0.7, **arguments))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, head)


@pytest.mark.parametrize("block", [64, 8, 1, 36])
def test_gradients_equal_their_definition(block):
    hidden, head, targets = inputs(2)
    weights = np.random.default_rng(3).normal(size=targets.shape).astype(np.float32)
    arrays = [jnp.asarray(a) for a in (hidden, head, targets, weights)]
    got = blocked_gradients(*arrays, block=block)
    want = gradients_by_definition(hidden, head, targets, weights, 0.7)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_gradients_equal_those_of_all_logits_at_once():
    """The straight formula, differentiated by jax."""
    hidden, head, targets = (jnp.asarray(a) for a in inputs(9, rows=3, time=11, words=300))
    weights = jnp.asarray(np.random.default_rng(3).normal(size=targets.shape), jnp.float32)

    def straight(hidden, head):
        logits = jnp.einsum("btd,vd->btv", hidden, head) / 0.7
        logp = jax.nn.log_softmax(logits, axis=-1)
        return jnp.sum(weights * jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0])

    got = blocked_gradients(hidden, head, targets, weights, block=128)
    for one, other in zip(got, jax.grad(straight, argnums=(0, 1))(hidden, head), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("time", "counts"),  # how many positions each row wants
    [(7, [0]), (7, [7, 0, 3]), (300, [0]), (300, [128, 5]), (300, [129]), (300, [300, 0])],
)  # fmt: skip
def test_only_what_is_wanted_is_made(time, counts):
    """The rest may hold anything, and is what the definition gives with it cut out."""
    hidden, head, targets = inputs(10, rows=len(counts), time=time, words=19)
    rng = np.random.default_rng(4)
    wanted = np.stack([rng.permutation(time) < count for count in counts])
    # As a mean's: a sum over 300 positions would be compared beyond what float32 holds.
    scale = 1 / max(counts[0], 1)
    weights = scale * np.random.default_rng(3).normal(size=targets.shape).astype(np.float32)
    poisoned = np.where(wanted[..., None], hidden, np.nan)
    arrays = tuple(map(jnp.asarray, (poisoned, head, targets)))
    logp = token_logp(*arrays, wanted_BT=jnp.asarray(wanted), block=8)
    want = by_definition(hidden, head, targets, [1.0] * len(counts))
    np.testing.assert_allclose(logp, np.where(wanted, want, 0), atol=1e-5)
    got = blocked_gradients(*arrays, jnp.asarray(weights), wanted_BT=jnp.asarray(wanted), block=8)
    want = gradients_by_definition(hidden, head, targets, weights * wanted, 0.7)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("time", "parts"), [(7, 1), (128, 1), (129, 2), (300, 3), (600, 4), (4096, 4)]
)
def test_as_many_parts_as_the_fullest_row_needs(time, parts):
    assert num_parts(time) == parts
    length = -(-time // parts)
    for num_wanted in {0, 1, length, length + 1, time - 1, time} & {*range(time + 1)}:
        wanted = jax.random.permutation(jax.random.key(0), jnp.arange(time) < num_wanted)
        wanted_BT = jnp.stack([jnp.arange(time) < num_wanted // 2, wanted])
        assert int(parts_needed(wanted_BT)) == -(-num_wanted // length)


@pytest.mark.parametrize("ids", [[], [36, 0, 7, 8], [*range(8)]])  # the last are a whole block
@pytest.mark.parametrize("block", [64, 8])
def test_rows_of_an_adapter_stand_for_those_of_the_table(ids, block):
    hidden, head, targets = inputs(12)
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(len(ids), head.shape[1])).astype(np.float32) * 3
    weights = rng.normal(size=targets.shape).astype(np.float32)
    whole = head.copy()
    whole[ids] = rows
    arrays = tuple(map(jnp.asarray, (hidden, head, targets)))
    own = OwnRows(ids=jnp.asarray(ids, jnp.int32), rows=jnp.asarray(rows))
    logp = token_logp(*arrays, own=own, block=block)
    want = by_definition(hidden, whole, targets, [1.0] * 2)
    np.testing.assert_allclose(logp, want, atol=1e-5)

    def loss(hidden, rows):
        own = OwnRows(ids=jnp.asarray(ids, jnp.int32), rows=rows)
        logp = token_logp(hidden, arrays[1], arrays[2], own=own, temperature=0.7, block=block)
        return jnp.sum(weights * logp)

    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(arrays[0], own.rows)
    want = gradients_by_definition(hidden, whole, targets, weights, 0.7)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1][ids], atol=1e-5)


def test_an_adapter_needs_no_gradient_as_large_as_the_head():
    words, width = 50_000, 64
    shapes = (
        jax.ShapeDtypeStruct((2, 16, width), jnp.float32),
        jax.ShapeDtypeStruct((words, width), jnp.float32),
        jax.ShapeDtypeStruct((2, 16), jnp.int32),
        jax.ShapeDtypeStruct((4, width), jnp.float32),
    )

    def loss(hidden, head, targets, rows):
        own = OwnRows(ids=jnp.arange(4), rows=rows)
        return token_logp(hidden, head, targets, own=own, block=1024).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 3))).lower(*shapes).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None, "this backend reports no memory"
    assert analysis.temp_size_in_bytes < words * width * 4 / 10


@pytest.mark.parametrize(
    ("words", "most", "want"),
    [(37, 64, 37), (64, 64, 64), (151_936, 8192, 8064), (128_256, 8192, 8064), (300, 128, 128),
     (37, 8, 8), (38, 19, 19), (37, 1, 1)],
)  # fmt: skip
def test_blocks_are_nearly_alike(words, most, want):
    block = even_block(words, most)
    assert block == want
    assert -(-words // block) == -(-words // most)  # never more of them


def test_large_logits_stay_finite():
    hidden, head, targets = inputs(5, scale=1e3)
    logp = token_logp(jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets), block=8)
    want = by_definition(hidden, head, targets, [1.0] * 2)
    np.testing.assert_allclose(logp, want, rtol=1e-5, atol=5e-3)


@pytest.mark.parametrize("block", [64, 8])
def test_ids_outside_the_vocabulary_are_finite_and_leak_no_gradient(block):
    hidden, head, targets = (jnp.asarray(a) for a in inputs(6))
    bad = targets.at[1, 3].set(-100).at[1, 4].set(10**6)
    kept = jnp.asarray(targets == bad)

    def loss(head, targets):
        logp = token_logp(hidden, head, targets, block=block)
        assert logp.shape == targets.shape
        return jnp.sum(jnp.where(kept, logp, 0.0))

    assert np.isfinite(token_logp(hidden, head, bad, block=block)).all()
    np.testing.assert_allclose(jax.grad(loss)(head, bad), jax.grad(loss)(head, targets), atol=1e-6)


def test_bfloat16_inputs_accumulate_in_float32():
    hidden, head, targets = (jnp.asarray(a) for a in inputs(7))
    hidden, head = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)

    def loss(hidden, head):
        return token_logp(hidden, head, targets, block=8).sum()

    logp = token_logp(hidden, head, targets, block=8)
    assert logp.dtype == jnp.float32
    rounded_hidden, rounded_head = (np.asarray(a.astype(jnp.float32)) for a in (hidden, head))
    want = by_definition(rounded_hidden, rounded_head, np.asarray(targets), [1.0] * 2)
    np.testing.assert_allclose(logp, want, atol=1e-5)  # the inputs are rounded, the sums are not
    for grad, exact in zip(
        jax.grad(loss, argnums=(0, 1))(hidden, head),
        jax.grad(loss, argnums=(0, 1))(hidden.astype(jnp.float32), head.astype(jnp.float32)),
        strict=True,
    ):
        assert grad.dtype == jnp.bfloat16
        np.testing.assert_allclose(grad.astype(jnp.float32), exact, rtol=2e-2, atol=2e-2)


def test_sharded_inputs_give_the_same_gradients():
    hidden, head, targets = (jnp.asarray(a) for a in inputs(8, rows=4, words=40))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "tensor"))

    def place(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    def loss(hidden, head, targets):
        return token_logp(hidden, head, targets, block=12).sum()

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    want = grad(hidden, head, targets)
    got = grad(place(hidden, "data"), place(head, "tensor", None), place(targets, "data"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_blocks_need_a_fraction_of_the_memory():
    words, block = 16_384, 512
    hidden = jax.ShapeDtypeStruct((4, 64, 16), jnp.float32)
    head = jax.ShapeDtypeStruct((words, 16), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def temporaries(block):
        def loss(hidden, head, targets):
            return token_logp(hidden, head, targets, block=block).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, targets).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None, "this backend reports no memory"
        return analysis.temp_size_in_bytes

    assert temporaries(block) <= temporaries(words) / 8


@pytest.mark.parametrize(
    ("arguments", "says"), [({"temperature": 0.0}, "temperature=0.0"), ({"block": 0}, "block=0")]
)
def test_impossible_arguments_are_named(arguments, says):
    hidden, head, targets = (jnp.asarray(a) for a in inputs())
    with pytest.raises(ValueError, match=says):
        token_logp(hidden, head, targets, **arguments)
