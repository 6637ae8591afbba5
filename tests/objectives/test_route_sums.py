"""What a batch says of the router, against loops over full distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.route_sums import (
    CHOICES,
    PREFIX,
    ROUTES,
    RouteIds,
    choice_sums,
    confusion,
    kind_sums,
    readable,
)

B, T, D, V = 6, 9, 5, 11
IDS = RouteIds(easy=3, long=7)


def random_batch(seed):
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(size=(B, T, D)) * 2, rng.normal(size=(V, D))
    head[[IDS.easy, IDS.long]] *= 3  # or else they would seldom be likelier than all the rest
    targets = rng.integers(0, V, (B, T))
    routing = rng.random((B, T)) < 0.5
    targets[routing] = rng.choice([IDS.easy, IDS.long], routing.sum())
    weights = rng.choice([0.0, 1.0, 2.5], (B, T))
    return hidden, head, targets, routing, weights, rng.random((B, T)) < 0.4


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("seed", range(4))
def test_choices_by_definition(seed):
    hidden, head, targets, routing, _, _ = random_batch(seed)
    logp = log_softmax(hidden @ head.T)
    want = {f"{PREFIX}{r}_as_{c}": 0 for r in ROUTES for c in CHOICES}
    for b, t in np.argwhere(routing):
        p = np.exp(logp[b, t])
        options = [p[IDS.easy], p[IDS.long], 1 - p[IDS.easy] - p[IDS.long]]
        route = "easy" if targets[b, t] == IDS.easy else "long"
        want[f"{PREFIX}{route}_as_{CHOICES[int(np.argmax(options))]}"] += 1
    said = np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    said = np.where(routing, said, np.nan)  # nothing else is read
    got = choice_sums(
        jnp.asarray(hidden, jnp.float32),
        jnp.asarray(head[[IDS.easy, IDS.long]], jnp.float32),
        jnp.asarray(said, jnp.float32),
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(routing),
        IDS,
    )
    assert {name: float(value) for name, value in got.items()} == want
    assert len([n for n in want.values() if n]) >= 4  # the case is not trivial


@pytest.mark.parametrize("seed", range(3))
def test_losses_by_kind_by_definition(seed):
    hidden, head, targets, _, weights, easy = random_batch(seed)
    logp = np.take_along_axis(log_softmax(hidden @ head.T), targets[..., None], -1)[..., 0]
    logp[weights == 0] = -np.inf  # padding may
    want = dict.fromkeys(("nll_easy", "weight_easy", "nll_regular", "weight_regular"), 0.0)
    for b, t in np.argwhere(weights):
        kind = "easy" if easy[b, t] else "regular"
        want[f"nll_{kind}"] -= weights[b, t] * logp[b, t]
        want[f"weight_{kind}"] += weights[b, t]
    arrays = [jnp.asarray(a, jnp.float32) for a in (logp, weights)]
    whole = kind_sums(*arrays, jnp.asarray(easy))
    for name, value in want.items():
        np.testing.assert_allclose(whole[PREFIX + name], value, rtol=1e-5)
    halves = [
        kind_sums(*(a[h] for a in arrays), jnp.asarray(easy)[h]) for h in np.split(np.arange(B), 2)
    ]
    for name, value in whole.items():
        np.testing.assert_allclose(halves[0][name] + halves[1][name], value, rtol=1e-5)


def test_sums_train_nothing():
    hidden, head, targets, routing, weights, easy = map(jnp.asarray, random_batch(0))
    head_CD = head[jnp.array([3, 7])].astype(jnp.float32)

    def total(hidden):
        logp = hidden.sum(axis=-1)
        sums = kind_sums(logp, weights.astype(jnp.float32), easy)
        sums |= choice_sums(hidden, head_CD, logp, targets.astype(jnp.int32), routing, IDS)
        return sum(sums.values())

    assert not np.any(jax.grad(total)(hidden.astype(jnp.float32)))


def test_means_are_told_of_what_was_there():
    counts = {"easy_as_easy": 5.0, "easy_as_long": 2.0, "long_as_long": 3.0, "long_as_neither": 6.0}
    sums = {"nll_easy": 6.0, "weight_easy": 4.0, "nll_regular": 0.0, "weight_regular": 0.0}
    metrics = {PREFIX + name: value for name, value in (counts | sums).items()}
    told = readable(metrics | {"loss": 1.0})
    assert told == {"loss": 1.0, "nll_easy": 1.5, "route_accuracy": 8 / 16}
    assert confusion(metrics) == {
        "easy": {"easy": 5, "long": 2, "neither": 0},
        "long": {"easy": 0, "long": 3, "neither": 6},
    }
    assert readable({"loss": 1.0}) == {"loss": 1.0}
