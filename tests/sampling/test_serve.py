"""Serving a queue: who shares the batch, and when, changes no draw; nobody waits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params, init_params, unstacked
from l2s_jax.sampling import load, loop
from l2s_jax.sampling.controllers.thought import ThoughtConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import Knobs, Request, SamplingConfig
from l2s_jax.sampling.serve import Sizes
from l2s_jax.sampling.state import jobs_of
from l2s_jax.sampling.weights import sampling_weights
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from tests.sampling.test_engine import (
    KEY,
    PAGE,
    ROUTINGS,
    make_engine,
    make_requests,
    routed,
)
from tests.sampling.test_engine import same_draws as same_draws_within
from tests.sampling.tiny import VOCAB, full_logits, random_policy, trained_logp

# Other row counts are other matrix shapes, which round differently; 200 tokens add that up.
same_draws = functools.partial(same_draws_within, atol=1e-4)


@functools.cache
def roomy_policy() -> Policy:
    """The random policy with room for long prompts; it knows no triggers and never stops."""
    policy = random_policy()
    model = dataclasses.replace(policy.model, max_positions=4_096)
    return dataclasses.replace(policy, model=model, tokenizer=None, triggers=None)


@pytest.mark.parametrize("spelling", ["added", "plain"])
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_a_queue_draws_what_one_batch_draws(spelling, routing):
    policy, requests = random_policy(spelling), make_requests(25, seed=1)
    asked = {"routing": ROUTINGS[routing]}
    key = jax.random.key(KEY)
    whole = make_engine(policy, max_rows=100, **asked).sample(requests, key)
    queue = make_engine(policy, max_rows=8, **asked)
    same_draws(queue.sample(requests, key), whole)
    assert queue.served.loads > 3 and queue.served.steps < queue.served.row_steps / 7
    assert queue.served.tokens == sum(r.num_tokens for r in whole)


def test_draws_do_not_depend_on_the_page():
    requests, key = make_requests(25, seed=1), jax.random.key(KEY)
    whole = make_engine(max_rows=100, page=16).sample(requests, key)
    same_draws(make_engine(max_rows=8, page=3).sample(requests, key), whole)


def test_a_queue_on_eight_devices():
    requests, key = make_requests(40, seed=2), jax.random.key(KEY)
    whole = make_engine(max_rows=160).sample(requests, key)
    spread = make_engine(max_rows=32, num_devices=8)
    same_draws(spread.sample(requests, key), whole)
    backwards = spread.sample(requests[::-1], key)
    same_draws(sorted(backwards, key=order_of(requests)), whole)


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"tensor": 2},
        {"data": 2, "tensor": 4},
    ],  # heads: 4 and 2
    ids=str,
)
@pytest.mark.parametrize("routing", ["one mode each", "replace"])
def test_heads_and_vocabulary_over_a_tensor_axis(axes, routing):
    """Each data shard's loop ends by itself, its tensor shards together."""
    requests, key = make_requests(24, seed=3), jax.random.key(KEY)
    routing = ROUTINGS[routing]
    whole = make_engine(max_rows=96, routing=routing).sample(requests, key)
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | axes
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: int(np.prod(list(sizes.values())))])
    cfg = SamplingConfig(num_samples=4, max_rows=16, max_new_tokens=14, routing=routing)
    engine = Engine(random_policy(), cfg, mesh, PAGE)
    same_draws(engine.sample(requests, key), whole)
    assert engine.served.loads > 1


def test_sampling_weights_are_cut_over_tensor_alone():
    policy = random_policy()
    model = dataclasses.replace(policy.model, dtype="bfloat16")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    trained = jax.device_put(policy.params, shardings(abstract_params(model), mesh))
    placed = sampling_weights(model, mesh, trained)
    kernel = placed["layer_1"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.spec == PartitionSpec(None, "tensor")
    assert placed["final_norm"]["scale"].dtype == jnp.float32
    want = policy.params["layers"]["mlp"]["up_proj"]["kernel"][1].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(kernel, np.float32), np.asarray(want, np.float32))


def order_of(requests):
    place = {request.id: n for n, request in enumerate(requests)}
    return lambda rollout: (place[rollout.id], rollout.sample)


def long_requests(number, seed=0, group=4, longest=200):
    """Budgets of a few tokens for most completions and of many for some."""
    rng = np.random.default_rng(seed)
    budgets = np.where(rng.random((number, group)) < 0.7, 5, longest) - rng.integers(0, 4)
    return [
        dataclasses.replace(request, knobs=tuple(Knobs(max_new_tokens=int(b)) for b in budgets[n]))
        for n, request in enumerate(make_requests(number, seed))
    ]


@functools.cache
def long_engine(max_rows):
    cfg = SamplingConfig(
        num_samples=4, max_rows=max_rows, max_new_tokens=200, routing=routed("free")
    )
    return Engine(roomy_policy(), cfg, make_mesh(MeshConfig(), jax.devices()[:1]))


def test_rows_are_given_up_as_work_runs_out():
    requests, key = long_requests(24), jax.random.key(KEY)
    engine = long_engine(16)
    rollouts = engine.sample(requests, key)
    budgets = [knob.max_new_tokens for request in requests for knob in request.knobs]
    assert [r.num_tokens for r in rollouts] == budgets
    same_draws(rollouts, long_engine(4).sample(requests, key))  # so few are never given up
    assert loop.shrink._cache_size() > 0
    full = 16 * engine.served.steps  # row-steps without giving any up
    assert engine.served.row_steps < full
    assert engine.served.wasted_fraction < 0.2 < 1 - engine.served.tokens / full


def test_thoughts_are_kept_when_rows_are_given_up():
    """The bound of a thought that began in the large batch holds in the small one."""
    thought = ThoughtConfig(ends=(31,), closing=(30, 31), max_tokens=150)
    cfg = dataclasses.replace(long_engine(16).cfg, thought=thought, banned_ids=(31,))
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    requests, key = long_requests(24), jax.random.key(KEY)
    engine = Engine(roomy_policy(), cfg, one)
    rollouts = engine.sample(requests, key)
    assert engine.served.row_steps < 16 * engine.served.steps
    never = Engine(roomy_policy(), dataclasses.replace(cfg, max_rows=4), one)
    same_draws(rollouts, never.sample(requests, key))
    closed = [r for r in rollouts if r.num_tokens > 152]
    assert closed and all(r.token_ids[150:152].tolist() == [30, 31] for r in closed)


def test_declared_row_sizes_are_all_that_is_compiled():
    engine, key = long_engine(16), jax.random.key(KEY)
    engine.sample(long_requests(24), key)
    sizes = Sizes(rows=16, group=4, prompts=16, width=16, max_tokens=200, stops=(1, 1))
    assert sizes.row_sizes == [16, 12, 8, 4]
    before = loop.run._cache_size()
    for seed in range(1, 4):
        engine.sample(long_requests(24, seed), jax.random.key(seed))
    assert loop.run._cache_size() - before <= len(sizes.row_sizes) - 1  # the whole was there
    programs = loop.run._cache_size()
    for seed in range(4, 7):
        engine.sample(long_requests(24, seed), jax.random.key(seed))
    assert loop.run._cache_size() <= max(programs, before + len(sizes.row_sizes) - 1)


def test_idle_rows_draw_plainly():
    """One row that is greedy or truncates makes the search over the vocabulary that of all."""
    sizes = Sizes(rows=8, group=4, prompts=6, width=32, max_tokens=14, stops=(1, 1))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    draw = jobs_of(load.begin(random_policy().model, mesh, sizes.as_static())).draw
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for name, value in plain.items():
        assert getattr(draw, name).tolist() == [value] * 8


def test_every_completion_has_its_own_knobs():
    """A row asked for in a mixed batch draws what it draws where all are asked for the same."""
    knobs = (
        Knobs(temperature=0.0),
        Knobs(temperature=0.5, top_k=3, max_new_tokens=6),
        Knobs(top_p=0.5, mode="force-long"),
        Knobs(min_p=0.3, mode="auto", threshold=0.0),
    )
    requests = [dataclasses.replace(request, knobs=knobs) for request in make_requests()]
    mixed = make_engine().sample(requests, jax.random.key(KEY))
    for sample, knob in enumerate(knobs):
        alike = [dataclasses.replace(request, knobs=(knob,) * 4) for request in requests]
        alone = make_engine().sample(alike, jax.random.key(KEY))
        same_draws(mixed[sample::4], alone[sample::4])
    assert {r.num_tokens <= 6 for r in mixed[1::4]} == {True}
    assert {r.route for r in mixed[2::4]} == {"long"} and {r.route for r in mixed[3::4]} == {
        "short"
    }


def test_what_is_reported_of_every_token():
    """Both log-probs and the entropy, against the training forward's logits."""
    asked = {"top_k": 5, "temperature": 0.8, "routing": routed("auto")}
    rollouts = make_engine(entropy=True, **asked).sample(make_requests(), jax.random.key(KEY))
    plain = make_engine(**asked).sample(make_requests(), jax.random.key(KEY))
    same_draws(rollouts, plain)
    assert all(r.entropy is None for r in plain)
    policy = random_policy()
    for rollout in rollouts:
        ids = np.concatenate([rollout.prompt_ids, rollout.token_ids]).astype(np.int32)
        padded = jnp.asarray(np.pad(ids, (0, 64 - len(ids)))[None])
        _, logits_BTV = full_logits(policy.model, policy.params, padded, jnp.array([len(ids)]))
        start = len(rollout.prompt_ids) - 1
        for place, token in enumerate(rollout.token_ids):
            z = np.asarray(logits_BTV[0, start + place], np.float64) / 0.8
            p = np.exp(z - z.max())
            p /= p.sum()
            kept = np.where(p >= np.sort(p)[-5], p, 0)
            assert abs(rollout.logp[place] - np.log(p[token])) < 1e-4
            assert abs(rollout.entropy[place] + np.sum(p * np.log(p))) < 1e-4
            if kept[token]:
                assert abs(rollout.kept_logp[place] - np.log(kept[token] / kept.sum())) < 1e-4
            else:
                assert not rollout.free[place] and rollout.kept_logp[place] == -np.inf


@pytest.mark.parametrize("length", [1, 127, 512, 513, 1_100])
def test_long_prompts_are_read_in_chunks(length):
    policy = roomy_policy()
    ids = np.random.default_rng(length).integers(0, VOCAB, length)
    request = Request(id="a", prompt_ids=tuple(ids.tolist()))
    cfg = SamplingConfig(num_samples=2, max_rows=2, max_new_tokens=5, routing=routed("free"))
    engine = Engine(policy, cfg, make_mesh(MeshConfig(), jax.devices()[:1]))
    rollouts = engine.sample([request, Request(id="b", prompt_ids=(3, 1))], jax.random.key(KEY))
    width = 2_048 if length > 500 else 256
    for rollout, logp in zip(rollouts, trained_logp(policy, rollouts, 1.0, width), strict=True):
        np.testing.assert_allclose(rollout.logp, logp, atol=1e-4)


def test_stop_sequences_end_a_completion_behind_their_last_id():
    policy, requests = roomy_policy(), make_requests(4)
    free = {"routing": routed("free"), "max_rows": 16}
    whole = make_engine(policy, **free).sample(requests, jax.random.key(KEY))
    stops = (
        (int(whole[0].token_ids[3]), int(whole[0].token_ids[4])),
        (int(whole[5].token_ids[2]),),
    )
    cut = make_engine(policy, stop_sequences=stops, **free).sample(requests, jax.random.key(KEY))
    for one, other in zip(cut, whole, strict=True):
        ids = whole_ids = other.token_ids.tolist()
        ends = [
            place + len(stop)
            for stop in stops
            for place in range(len(ids))
            if tuple(whole_ids[place : place + len(stop)]) == stop
        ]
        assert one.token_ids.tolist() == ids[: min(ends, default=len(ids))]
        assert (one.finish_reason == "stop") == bool(ends)


def test_logits_that_are_no_numbers_end_their_row_alone():
    """Token 5's embedding is broken: who writes it ends there, marked; the others go on."""
    policy = random_policy()
    table = policy.params["embed"]["embedding"].at[5].set(jnp.nan)
    broken = policy.params | {"embed": {"embedding": table}}
    requests = [r for r in make_requests(30, seed=4) if 5 not in r.prompt_ids]
    engine = make_engine(max_rows=8, routing=routed("free"))
    whole = engine.sample(requests, jax.random.key(KEY))
    with pytest.warns(UserWarning, match="completions ended because the model's logits were not"):
        marked = engine.sample(requests, jax.random.key(KEY), params=broken)
    for one, other in zip(marked, whole, strict=True):
        ids = other.token_ids.tolist()
        hit = 5 in ids[:-1]
        assert one.token_ids.tolist() == (ids[: ids.index(5) + 1] if hit else ids)
        assert one.finish_reason == ("non_finite" if hit else other.finish_reason)
    assert engine.served.not_finite == sum(5 in r.token_ids[:-1] for r in whole) > 3


def test_greedy_groups_are_warned_of():
    with pytest.warns(UserWarning, match="the 4 samples of a prompt will be the same"):
        make_engine(temperature=0.0, routing=routed("auto"))
    make_engine(temperature=0.0, routing=ROUTINGS["one mode each"])


def test_a_cache_beyond_its_bound_is_refused():
    engine = make_engine(cache_gib=1e-6)
    with pytest.raises(
        ValueError, match=r"takes 0\.\d+ GiB per device, above SamplingConfig\.cache"
    ):
        engine.sample(make_requests(), jax.random.key(KEY))


def test_cache_bytes_are_those_of_the_arrays():
    model = random_policy().model
    sizes = Sizes(rows=8, group=4, prompts=6, width=32, max_tokens=14, stops=(1, 1))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = load.begin(model, mesh, sizes.as_static())
    tail, prompts = state.cache.tail, state.prompts.stored
    arrays = jax.tree.leaves([(held.k, held.v) for held in (tail, tail.pages, prompts)])
    assert sizes.cache_bytes(model) == sum(a.nbytes for a in arrays)


def count_flops(lowered):
    return lowered.compile().cost_analysis()["flops"]


def test_the_prompt_is_read_once_however_many_samples():
    """Compiled FLOPs of a load do not grow with the group."""
    model = ModelConfig(
        vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_width=64
    )
    params = unstacked(model, nn.unbox(init_params(model, jax.random.key(0))))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def flops(group):
        sizes = Sizes(rows=4 * group, group=group, prompts=4, width=64, max_tokens=16, stops=(1, 1))
        state = load.begin(model, mesh, sizes.as_static())
        jobs = jax.tree.map(lambda leaf: leaf[: 4 * group], state.jobs)
        ticket = jnp.arange(4 * group)
        prompts = jnp.ones((4, 64), jnp.int32)
        asked = load.Load(prompts, jnp.full(4, 64), jnp.arange(4), jobs, ticket)
        return count_flops(load.load.lower(model, mesh, params, state, asked))

    assert flops(8) <= 1.1 * flops(1)
