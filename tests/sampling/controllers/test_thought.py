"""Thoughts that end: against transcripts written by hand, and the tempered stop by definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.controllers.thought import (
    ThoughtConfig,
    begin_thoughts,
    make_thoughts,
    temper_end,
)
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Knobs, Request, SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from tests.sampling.tiny import VOCAB, scripted_policy, trained_logp

pytestmark = pytest.mark.filterwarnings("ignore:temperature 0 is greedy")  # scripts are greedy

A, B, END, CLOSE, WAIT, HM, STOP = 10, 11, 12, 13, 14, 15, 0
FREE_RUN = RoutingConfig(modes=("free",))
ONE = make_mesh(MeshConfig(), jax.devices()[:1])


def policy_that_says(**next_of):
    """After token `a`, the token next_of["a"], with a likely second choice of A."""
    names = {"A": A, "B": B, "END": END, "CLOSE": CLOSE, "WAIT": WAIT, "HM": HM}
    table = np.full((VOCAB, VOCAB), -20.0)
    table[:, A] = 3.0
    for name, follows in next_of.items():
        table[names[name], follows] = 8.0
    return scripted_policy("added", table)


def written(policy, prompt, budget=10, knobs=(), **changes):
    cfg = SamplingConfig(
        temperature=0.0, max_new_tokens=budget, max_rows=1, routing=FREE_RUN, **changes
    )
    request = Request(id="a", prompt_ids=(prompt,), knobs=knobs)
    [rollout] = Engine(policy, cfg, ONE).sample([request], jax.random.key(0))
    return rollout


def test_a_thought_is_closed_at_its_bound():
    policy = policy_that_says(A=B, B=A, END=STOP)
    thought = ThoughtConfig(ends=(END,), closing=(CLOSE, END), max_tokens=3)
    rollout = written(policy, A, thought=thought)
    assert rollout.token_ids.tolist() == [B, A, B, CLOSE, END, STOP]
    assert rollout.free.tolist() == [True, True, True, False, False, True]
    # The log-prob of a forced token is the policy's own.
    np.testing.assert_allclose(rollout.logp, trained_logp(policy, [rollout], 1.0)[0], atol=1e-5)


def test_a_thought_that_has_ended_is_not_closed_again():
    policy = policy_that_says(A=END, END=B, B=A)
    thought = ThoughtConfig(ends=(END,), closing=(END,), max_tokens=4)
    rollout = written(policy, A, thought=thought, budget=9)
    assert rollout.token_ids.tolist() == [END, B, A, END, B, A, END, B, A]
    assert rollout.free.all()


def test_an_early_end_gives_way_to_wait():
    policy = policy_that_says(A=END, HM=END, END=STOP)
    thought = ThoughtConfig(ends=(END,), wait=(WAIT, HM), num_waits=2)
    rollout = written(policy, A, thought=thought)
    assert rollout.token_ids.tolist() == [WAIT, HM, WAIT, HM, END, STOP]
    assert rollout.free.tolist() == [False, False, False, False, True, True]
    np.testing.assert_allclose(rollout.logp, trained_logp(policy, [rollout], 1.0)[0], atol=1e-5)


def test_a_bound_holds_after_waits():
    policy = policy_that_says(A=END, HM=END, END=STOP)
    thought = ThoughtConfig(ends=(END,), wait=(WAIT, HM), num_waits=9, closing=(END,), max_tokens=4)
    rollout = written(policy, A, thought=thought)
    assert rollout.token_ids.tolist() == [WAIT, HM, WAIT, HM, END, STOP]
    assert not rollout.free[4]


def test_each_completion_has_its_own_bounds():
    policy = policy_that_says(A=B, B=A, END=STOP)
    thought = ThoughtConfig(ends=(END,), closing=(END,), max_tokens=5)
    knobs = (Knobs(max_thought=1), Knobs(), Knobs(max_thought=3), Knobs(prefix_ids=()))
    cfg = SamplingConfig(
        num_samples=4,
        temperature=0.0,
        max_new_tokens=10,
        max_rows=4,
        thought=thought,
        prefix_ids=(CLOSE,),
        routing=FREE_RUN,
    )
    request = Request(id="a", prompt_ids=(A,), knobs=knobs)
    rollouts = Engine(policy, cfg, ONE).sample([request], jax.random.key(0))
    assert [r.token_ids.tolist() for r in rollouts] == [
        [CLOSE, END, STOP],
        [CLOSE, A, B, A, B, END, STOP],
        [CLOSE, A, B, END, STOP],
        [B, A, B, A, B, END, STOP],
    ]


def test_a_prefix_opens_every_completion():
    policy = policy_that_says(A=B, B=A, CLOSE=END, END=STOP)
    rollout = written(policy, A, prefix_ids=(B, CLOSE))
    assert rollout.token_ids.tolist() == [B, CLOSE, END, STOP]
    assert rollout.free.tolist() == [False, False, True, True]
    np.testing.assert_allclose(rollout.logp, trained_logp(policy, [rollout], 1.0)[0], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_banned_is_never_drawn(temperature):
    policy = policy_that_says(A=B, B=B)
    cfg = SamplingConfig(
        num_samples=8,
        temperature=temperature,
        max_new_tokens=12,
        max_rows=8,
        banned_ids=(B, STOP),
        routing=FREE_RUN,
    )
    rollouts = Engine(policy, cfg, ONE).sample(
        [Request(id="a", prompt_ids=(A,))], jax.random.key(0)
    )
    assert not {B, STOP} & {int(i) for r in rollouts for i in r.token_ids}
    for rollout, logp in zip(rollouts, trained_logp(policy, rollouts, 1.0), strict=True):
        np.testing.assert_allclose(rollout.logp, logp, atol=1e-5)  # of the policy, bans unknown


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0, 50.0])
def test_the_tempered_end_by_definition(tau):
    logits_BV = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32) * 3
    thoughts = make_thoughts(ThoughtConfig(ends=(2, 5), stop_tau=tau))
    state = begin_thoughts(4).replace(closed=jnp.array([False, True, False, False]))
    got_BV = jax.nn.softmax(temper_end(thoughts, state, jnp.asarray(logits_BV)))
    for row, (logits_V, closed) in enumerate(zip(logits_BV, state.closed, strict=True)):
        p = np.exp(logits_V.astype(np.float64))
        p /= p.sum()
        if not closed:
            p[2] = p[2] ** (1 / tau)
        np.testing.assert_allclose(got_BV[row], p / p.sum(), rtol=1e-4)


def test_a_hot_stop_ends_the_thought():
    policy = policy_that_says(A=B, B=A, END=STOP)
    hot = ThoughtConfig(ends=(END,), stop_tau=1e5)
    assert written(policy, A, thought=hot).token_ids.tolist() == [END, STOP]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": ()}, "ends is empty"),
        ({"max_tokens": 0}, "max_tokens=0: at least 1"),
        ({"max_tokens": 3}, r"closing=\(\): with max_tokens=3"),
        ({"max_tokens": 3, "closing": (END, CLOSE)}, "its last id is one of ends"),
        ({"num_waits": 2}, "num_waits=2, wait="),
        ({"stop_tau": 0.0}, "stop_tau=0.0: above 0"),
    ],
)
def test_mistakes_name_their_cure(changes, message):
    with pytest.raises(ValueError, match=message):
        ThoughtConfig(**{"ends": (END,)} | changes)


def test_knobs_beyond_the_arrays_are_refused():
    policy = policy_that_says(A=B)
    with pytest.raises(ValueError, match=r"'a': Knobs.max_new_tokens=11; arrays are made for 10"):
        written(policy, A, knobs=(Knobs(max_new_tokens=11),))
    with pytest.raises(ValueError, match=r"Knobs.prefix_ids=\(1, 1, 1, 1, 1\); .* made for 4"):
        written(policy, A, knobs=(Knobs(prefix_ids=(1,) * 5),))
    with pytest.raises(ValueError, match="has 2 knobs for 1 samples"):
        written(policy, A, knobs=(Knobs(), Knobs()))
    with pytest.raises(ValueError, match=r"top_p=2.0"):
        written(policy, A, knobs=(Knobs(top_p=2.0),))
