"""Branches of rows at work: what they write, and that nobody notices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.sampling.controllers.thought import ThoughtConfig
from l2s_jax.sampling.fork import close_thoughts, fork
from l2s_jax.sampling.requests import Request
from l2s_jax.sampling.serve import Watch
from tests.sampling.test_engine import KEY, make_engine, make_requests, routed, same_draws
from tests.sampling.tiny import random_policy, trained_logp

SCRIPT = (7, 9)
FREE_RUN = routed("free")


def nobody_stops():
    return dataclasses.replace(random_policy(), tokenizer=None)


class Probe:
    """Forks every row, and remembers what its job had written then and what the branches wrote."""

    def __init__(self, temperature=0.0, branches=2, max_tokens=6, stops=(-1,)):
        self.seen = []
        self.temperature, self.branches = temperature, branches
        self.max_tokens, self.stops = max_tokens, stops

    def __call__(self, program, state):
        found = fork(
            program.model,
            program.mesh,
            program.params,
            state,
            jnp.asarray(SCRIPT),
            jnp.asarray(self.stops),
            jnp.float32(self.temperature),
            jax.random.key(5),
            branches=self.branches,
            max_tokens=self.max_tokens,
        )
        jobs = np.asarray(state.jobs.row_id), np.asarray(state.results.tokens)
        # A device counts its seats from 0.
        shards, (rows,) = state.num_steps.shape[0], state.last.shape
        first_seat = np.arange(rows) // (rows // shards) * (len(jobs[0]) // shards)
        seats = np.asarray(state.prompts.seat) + first_seat
        lengths = np.asarray(state.cache.tail.lengths)
        for row in np.flatnonzero(active_rows(state)):
            seat = seats[row]
            written = jobs[1][seat, : lengths[row]]
            branches = jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), found)
            self.seen.append((int(jobs[0][seat]), written, branches))
        idle = ~active_rows(state)
        assert not np.asarray(found.lengths)[idle].any()
        return state


def active_rows(state):
    jobs = state.status.shape[0] // state.num_steps.shape[0]
    return np.asarray(state.prompts.seat) < jobs


def prompts_by_row_id(rollouts):
    from l2s_jax.sampling.requests import row_id

    return {row_id(r.id, r.sample): r for r in rollouts}


@pytest.mark.parametrize("max_rows", [8, 24])
def test_a_greedy_branch_is_a_request_that_starts_there(max_rows):
    policy, requests, probe = nobody_stops(), make_requests(6), Probe()
    engine = make_engine(policy, routing=FREE_RUN, max_rows=max_rows)
    rollouts = engine.sample(requests, jax.random.key(KEY), watch=Watch(every=5, look=probe))
    same_draws(rollouts, engine.sample(requests, jax.random.key(KEY)))  # nobody noticed
    known = prompts_by_row_id(rollouts)
    assert len(probe.seen) > 40 and {len(w) for _, w, _ in probe.seen} >= {5, 10}
    starts = [
        (*known[name].prompt_ids.tolist(), *written.tolist(), *SCRIPT)
        for name, written, _ in probe.seen
    ]
    again = [Request(id=str(n), prompt_ids=ids) for n, ids in enumerate(starts)]
    fresh = make_engine(
        policy, routing=FREE_RUN, num_samples=1, temperature=0.0, max_new_tokens=4
    ).sample(again, jax.random.key(0))
    for (_, _, branches), rollout in zip(probe.seen, fresh, strict=True):
        want = [*SCRIPT, *rollout.token_ids.tolist()]
        assert branches.tokens.tolist() == [want, want] and branches.lengths.tolist() == [6, 6]
        np.testing.assert_allclose(branches.logp[0, 2:], rollout.logp, atol=1e-4)


def test_sampled_branches_have_the_policys_log_probs():
    policy, probe = nobody_stops(), Probe(temperature=1.0, branches=3)
    engine = make_engine(policy, routing=FREE_RUN, num_devices=2)
    rollouts = engine.sample(
        make_requests(6), jax.random.key(KEY), watch=Watch(every=4, look=probe)
    )
    known = prompts_by_row_id(rollouts)
    sequences, logp = [], []
    for name, written, branches in probe.seen[:60]:
        for m in range(3):
            prompt = np.concatenate([known[name].prompt_ids, written])
            sequences.append(
                dataclasses.replace(
                    known[name],
                    prompt_ids=prompt,
                    token_ids=branches.tokens[m],
                    logp=branches.logp[m],
                )
            )
            logp.append(branches.logp[m])
    for got, want in zip(logp, trained_logp(policy, sequences, 1.0), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    draws = {tuple(branches.tokens[m, 2:]) for _, _, branches in probe.seen for m in range(3)}
    assert len(draws) > len(probe.seen)  # the branches of a row differ


def test_a_branch_ends_at_its_stop():
    policy, every = nobody_stops(), np.arange(32)
    probe = Probe(stops=tuple(every.tolist()))
    make_engine(policy, routing=FREE_RUN).sample(
        make_requests(2), jax.random.key(KEY), watch=Watch(every=5, look=probe)
    )
    for _, _, branches in probe.seen:  # the script's ids are stops too, and do not end it
        assert branches.lengths.tolist() == [3, 3] and branches.stopped.all()


def test_an_observer_may_close_thoughts():
    """Early exit: rows that the observer is content with write their closing phrase next."""
    policy = nobody_stops()
    thought = ThoughtConfig(ends=(31,), closing=(30, 31), max_tokens=99)

    def content_at_once(program, state):
        return close_thoughts(state, state.cache.tail.lengths == 4)

    engine = make_engine(policy, routing=FREE_RUN, thought=thought)
    plain = engine.sample(make_requests(), jax.random.key(KEY))
    closed = engine.sample(
        make_requests(), jax.random.key(KEY), watch=Watch(every=4, look=content_at_once)
    )
    for one, other in zip(closed, plain, strict=True):
        assert one.token_ids[:4].tolist() == other.token_ids[:4].tolist()
        if 31 not in other.token_ids[:4]:
            assert one.token_ids[4:6].tolist() == [30, 31] and not one.free[4:6].any()


def test_no_tail_is_copied():
    """The program's scratch memory does not hold the tails, let alone one for each branch."""
    policy, sizes = nobody_stops(), []

    def measure(program, state):
        lowered = fork.lower(
            program.model,
            program.mesh,
            program.params,
            state,
            jnp.asarray(SCRIPT),
            jnp.asarray([-1]),
            jnp.float32(0),
            jax.random.key(0),
            branches=4,
            max_tokens=6,
        )
        tail = state.cache.tail
        sizes.append(
            (
                lowered.compile().memory_analysis().temp_size_in_bytes,
                sum(a.nbytes for a in jax.tree.leaves((tail.pages.k, tail.pages.v))),
            )
        )
        return state

    model = dataclasses.replace(policy.model, max_positions=8192)
    policy = dataclasses.replace(policy, model=model)
    engine = make_engine(policy, page=128, routing=FREE_RUN, max_new_tokens=2_000, max_rows=24)
    from l2s_jax.sampling.requests import Knobs

    requests = [
        dataclasses.replace(r, knobs=(Knobs(max_new_tokens=4),) * 4) for r in make_requests()
    ]
    engine.sample(requests, jax.random.key(KEY), watch=Watch(every=3, look=measure))
    scratch, tails = sizes[0]
    assert scratch < tails
