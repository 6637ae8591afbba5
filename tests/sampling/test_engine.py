"""The sampler against the training forward, and against itself however it is asked."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.hf.origin import Origin
from l2s_jax.sampling import load, loop
from l2s_jax.sampling.controllers.routing import MODES, RoutingConfig
from l2s_jax.sampling.controllers.thought import ThoughtConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Knobs, Request, SamplingConfig, ask, row_id
from l2s_jax.sampling.serve import Watch
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from l2s_jax.tokens.tokenizer import from_hf
from l2s_jax.types import Problem
from tests.sampling.tiny import VOCAB, full_logits, random_policy, trained_logp

pytestmark = pytest.mark.filterwarnings("ignore:temperature 0 is greedy")  # some ask for it

# One shape for nearly every test, so that each program compiles once.
SIZE = {"num_samples": 4, "max_rows": 24, "max_new_tokens": 14}
KEY = 11
PAGE = 8  # so that a completion goes over pages


def make_requests(number=6, seed=0, longest=16):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, number)
    return [
        Request(id=f"p{n}", prompt_ids=tuple(rng.integers(0, VOCAB, length).tolist()))
        for n, length in enumerate(lengths)
    ]


def make_engine(policy=None, num_devices=1, page=PAGE, **changes):
    mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
    return Engine(policy or random_policy(), SamplingConfig(**(SIZE | changes)), mesh, page)


def sample(requests, policy=None, key=KEY, **changes):
    return make_engine(policy, **changes).sample(requests, jax.random.key(key))


def routed(mode, **changes):
    return RoutingConfig(modes=(mode,), **changes)


def same_draws(first, second, atol=1e-5):
    """The same tokens, and log-probs up to what another matrix shape rounds differently."""
    assert [(r.id, r.sample) for r in first] == [(r.id, r.sample) for r in second]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_array_equal(a.free, b.free)
        np.testing.assert_allclose(a.logp, b.logp, atol=atol)
        assert (a.route, a.finish_reason, a.text) == (b.route, b.finish_reason, b.text)


ROUTINGS = {
    **{mode: routed(mode) for mode in MODES},
    "gate at 0": routed("auto", threshold=0.0),
    "gate at 0.5": routed("auto", threshold=0.5),
    "replace": routed("auto", threshold=0.3, switch="replace"),
    "replace, force-short": routed("force-short", switch="replace"),
    "one mode each": RoutingConfig(modes=MODES),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("spelling", ["added", "plain"])
def test_log_probs_are_those_of_the_training_forward(spelling, routing, temperature):
    policy = random_policy(spelling)
    rollouts = sample(make_requests(), policy, temperature=temperature, routing=ROUTINGS[routing])
    assert any(r.free.any() for r in rollouts)
    for rollout, want in zip(rollouts, trained_logp(policy, rollouts, temperature), strict=True):
        # Forced tokens included: they report what the policy thought of them.
        assert np.abs(rollout.logp - want).max() <= 1e-4


def test_the_random_policy_is_a_fair_judge():
    """Both routes, both endings and many different tokens occur in the tests of this file."""
    rollouts = sample(make_requests(), routing=ROUTINGS["gate at 0.5"])
    assert {r.route for r in rollouts} == {"short", "long"}
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    assert len(np.unique(np.concatenate([r.token_ids for r in rollouts]))) > VOCAB // 2
    assert len({r.num_tokens for r in rollouts}) > 3


@pytest.mark.parametrize("routing", ["auto", "gate at 0.5", "replace", "one mode each"])
def test_draws_do_not_depend_on_the_company(routing):
    requests, asked = make_requests(), {"routing": ROUTINGS[routing]}
    whole = sample(requests, **asked)
    by_id = {(r.id, r.sample): r for r in whole}
    shuffled = [requests[i] for i in (3, 0, 5, 1, 4, 2)]
    again = sample(shuffled, **asked)
    same_draws(again, [by_id[r.id, s] for r in shuffled for s in range(4)])
    same_draws(sample(requests, max_rows=8, **asked), whole)  # three batches
    same_draws(sample([requests[2]], **asked), [by_id["p2", s] for s in range(4)])
    same_draws(sample(requests, **asked), whole)  # and once more


def test_draws_do_not_depend_on_the_group():
    requests = make_requests()
    alone = sample(requests, num_samples=1)
    same_draws(alone, [r for r in sample(requests) if r.sample == 0])


@pytest.mark.parametrize("routing", ["auto", "replace"])
def test_draws_do_not_depend_on_the_devices(routing):
    requests, asked = make_requests(), {"routing": ROUTINGS[routing]}
    same_draws(sample(requests, num_devices=8, **asked), sample(requests, **asked))


def test_samples_ids_and_keys_name_different_draws():
    requests = make_requests(1)
    rollouts = sample(requests)
    assert len({tuple(r.token_ids.tolist()) for r in rollouts}) == 4
    renamed = [dataclasses.replace(requests[0], id="other")]
    for others in (sample(renamed), sample(requests, key=KEY + 1)):
        assert [r.token_ids.tolist() for r in others] != [r.token_ids.tolist() for r in rollouts]
    assert row_id("a", 1) != row_id("a", 2) != row_id("b", 2)


def test_two_temperatures_in_one_process_differ():
    requests = make_requests()
    hot, cold = (sample(requests, temperature=t) for t in (2.0, 0.2))
    assert np.mean([r.logp.mean() for r in cold]) > np.mean([r.logp.mean() for r in hot]) + 0.5


def test_greedy_is_the_argmax_of_the_full_forward():
    policy, requests = random_policy(), make_requests()
    rollouts = sample(requests, temperature=0.0, routing=routed("free"))
    [stop] = policy.tokenizer.stop_ids
    for request, rollout in zip(requests, rollouts[::4], strict=True):
        ids = list(request.prompt_ids)
        while len(ids) < len(request.prompt_ids) + SIZE["max_new_tokens"]:
            row = np.zeros((1, 64), np.int32)
            row[0, : len(ids)] = ids
            _, logits_BTV = full_logits(policy.model, policy.params, row, np.array([len(ids)]))
            ids.append(int(logits_BTV[0, len(ids) - 1].argmax()))
            if ids[-1] == stop:
                break
        assert rollout.token_ids.tolist() == ids[len(request.prompt_ids) :]
    for first, other in zip(rollouts[::4], rollouts[1::4], strict=True):
        np.testing.assert_array_equal(first.token_ids, other.token_ids)


@pytest.mark.parametrize("spelling", ["added", "plain"])
def test_replace_goes_on_as_if_easy_had_never_been(spelling):
    policy, requests = random_policy(spelling), make_requests()
    short = policy.triggers.short
    replace = routed("auto", threshold=0.0, switch="replace")
    got = sample(requests, policy, temperature=0.0, routing=replace)
    given = [Request(id=r.id, prompt_ids=r.prompt_ids + short) for r in requests]
    want = sample(given, policy, temperature=0.0, routing=routed("free"))
    for a, b in zip(got, want, strict=True):
        assert a.route == "short"
        assert tuple(a.token_ids[: len(short)].tolist()) == short
        rest = a.token_ids[len(short) :]
        np.testing.assert_array_equal(rest, b.token_ids[: len(rest)])
        np.testing.assert_allclose(a.logp[len(short) :], b.logp[: len(rest)], atol=1e-4)
        assert not a.free[: len(short)].any() and a.free[len(short) :].all()


def test_the_stop_token_is_part_of_the_completion():
    policy = random_policy()
    [stop] = policy.tokenizer.stop_ids
    assert policy.tokenizer.pad_id == stop  # so no mask may be read off token values
    requests = [
        dataclasses.replace(r, prompt_ids=(stop, *r.prompt_ids[:14])) for r in make_requests()
    ]
    rollouts = sample(requests, policy)
    for rollout in rollouts:
        places = np.flatnonzero(rollout.token_ids == stop).tolist()
        if rollout.finish_reason == "stop":
            assert places == [rollout.num_tokens - 1]
            assert rollout.free[-1]  # the policy chose to stop
            ids = rollout.token_ids[:-1].tolist()
        else:
            assert places == [] and rollout.num_tokens == SIZE["max_new_tokens"]
            ids = rollout.token_ids.tolist()
        assert rollout.text == policy.tokenizer.decode(ids)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout, want in zip(rollouts, trained_logp(policy, rollouts, 1.0), strict=True):
        np.testing.assert_allclose(rollout.logp, want, atol=1e-4)


def test_a_completion_that_stops_at_once():
    """Every token but one stops, so that half of all rows hold a stop and nothing else."""
    policy = random_policy()
    stops = tuple(i for i in range(VOCAB) if i != 5)
    policy = dataclasses.replace(policy, tokenizer=from_hf(policy.tokenizer.hf, stops))
    rollouts = sample(make_requests(), policy, routing=routed("free"))
    for rollout in rollouts:
        assert (rollout.token_ids[:-1] == 5).all()
        assert (rollout.finish_reason == "stop") == (rollout.token_ids[-1] != 5)
    assert any(r.num_tokens == 1 and r.text == "" for r in rollouts)


def test_without_a_tokenizer_rows_run_to_their_budget():
    policy = dataclasses.replace(random_policy(), tokenizer=None)
    rollouts = sample(make_requests(), policy)
    assert {(r.text, r.num_tokens, r.finish_reason) for r in rollouts} == {(None, 14, "length")}


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"eos_token_id": 7}, {}),
        ({"eos_token_id": 3}, {"eos_token_id": [7]}),  # the second file has the last word
    ],
)
def test_without_a_tokenizer_the_configs_name_the_stops(config, generation):
    origin = Origin(config=config, generation=generation)
    bare = dataclasses.replace(random_policy(), tokenizer=None, origin=origin)
    with_one = from_hf(random_policy().tokenizer.hf, (7,))
    want = sample(make_requests(), dataclasses.replace(random_policy(), tokenizer=with_one))
    got = sample(make_requests(), bare)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        assert a.finish_reason == b.finish_reason
    assert {r.finish_reason for r in got} == {"stop", "length"}


def test_other_weights_for_one_call():
    policy, requests = random_policy(), make_requests()
    engine = make_engine(policy)
    other = jax.tree.map(lambda leaf: leaf * 0.5, policy.params)
    changed = engine.sample(requests, jax.random.key(KEY), params=other)
    again = dataclasses.replace(policy, params=other)
    same_draws(changed, sample(requests, again))
    same_draws(engine.sample(requests, jax.random.key(KEY)), sample(requests))


def test_weights_that_are_forgotten_are_made_again():
    engine, requests = make_engine(), make_requests()
    first = engine.sample(requests, jax.random.key(KEY))
    placed = engine.place(engine.policy.params)
    assert engine.place(engine.policy.params) is placed
    kernel = weakref.ref(placed["layer_0"]["mlp"]["up_proj"]["kernel"])
    engine.forget()
    del placed
    gc.collect()
    assert kernel() is None
    same_draws(engine.sample(requests, jax.random.key(KEY)), first)


def test_weights_as_loaded_need_not_stay():
    params = jax.tree.map(jnp.copy, random_policy().params)
    engine, requests = (
        make_engine(dataclasses.replace(random_policy(), params=params)),
        make_requests(),
    )
    kernel = weakref.ref(params["layers"]["mlp"]["up_proj"]["kernel"])
    engine.keep_placed()
    del params
    gc.collect()
    assert kernel() is None
    same_draws(engine.sample(requests, jax.random.key(KEY)), sample(requests))


@pytest.mark.parametrize("tensor", [1, 2])
def test_it_samples_where_the_weights_lie(tensor):
    mesh = make_mesh(MeshConfig(fsdp=-1, data=1, tensor=tensor), jax.devices()[:4])
    places = shardings(abstract_params(random_policy().model), mesh)
    params = jax.device_put(random_policy().params, places)
    requests = make_requests()
    engine = Engine(dataclasses.replace(random_policy(), params=params), make_engine().cfg)
    same_draws(engine.sample(requests, jax.random.key(KEY)), sample(requests))
    kernel = engine.place(params)["layer_0"]["mlp"]["up_proj"]["kernel"]
    assert set(kernel.sharding.mesh.shape.items()) >= {("data", 4 // tensor), ("tensor", tensor)}


def test_rollouts_come_once_and_some_while_others_go_on():
    came, looks = [], []

    def look(_, state):
        looks.append(len(came))
        return state

    asked = {"watch": Watch(every=2, look=look), "ended": came.extend}
    rollouts = make_engine().sample(make_requests(), jax.random.key(KEY), **asked)
    place = {(r.id, r.sample): n for n, r in enumerate(rollouts)}
    assert len(came) == len(place) and any(0 < n < len(came) for n in looks)
    same_draws(sorted(came, key=lambda r: place[r.id, r.sample]), rollouts)


def test_a_prompt_is_prefilled_once_for_all_its_samples(monkeypatch):
    seen = []

    def spy(*args):
        seen.append(args[-1])
        return honest(*args)

    honest = load.load
    monkeypatch.setattr(load, "load", spy)
    requests = make_requests()
    sample(requests)
    [asked] = seen
    assert asked.prompts.shape == (6, 16)  # N prompts, not N * G rows
    assert asked.lengths.tolist() == [len(r.prompt_ids) for r in requests]


def programs():
    return [f._cache_size() for f in (load.begin, load.load, loop.run, loop.shrink, loop.forget)]


def test_nothing_that_a_request_can_ask_for_compiles_anew():
    sample(make_requests())
    before = programs()
    asked = [
        {"routing": "auto", "temperature": 0.0},
        {"routing": "gate at 0.5", "temperature": 0.3, "top_p": 0.9, "top_k": 3},
        {"routing": "one mode each", "temperature": 2.0, "top_p": 0.5, "min_p": 0.1},
        {"routing": "replace", "top_k": 1, "min_p": 0.5, "stop_sequences": ((4, 5), (7,))},
        {"routing": "free", "top_p": 0.99, "banned_ids": (3,), "entropy": True},
        {"routing": "auto", "thought": ThoughtConfig(ends=(9,), closing=(8, 9), max_tokens=3)},
        {"routing": "free", "prefix_ids": (3, 4, 5)},
    ]
    for number, changes in enumerate(asked):
        requests = make_requests(number % 6 + 1, seed=number)
        routing = ROUTINGS[changes.pop("routing")]
        sample(requests, key=number, routing=routing, **changes)
        budgets = [dataclasses.replace(r, knobs=(Knobs(max_new_tokens=5),) * 4) for r in requests]
        sample(budgets, key=number, routing=routing, **changes)
    assert programs() == before


def test_prompts_of_other_widths_compile_once_per_width():
    sample(make_requests())
    before = loop.run._cache_size()
    for length in (20, 31, 32):
        sample([Request(id="a", prompt_ids=(3,) * length)])
    assert loop.run._cache_size() == before + 1


def test_a_small_nucleus_is_greedy():
    """Greedy but for its log-probs, which are those of temperature 1 either way."""
    requests = make_requests()
    asked = {"routing": routed("free")}
    same_draws(sample(requests, top_p=1e-6, **asked), sample(requests, temperature=0.0, **asked))


def test_nothing_asked_nothing_sampled():
    assert sample([]) == []


def test_questions_become_requests():
    tokenizer = random_policy().tokenizer
    problem = Problem(id="a", question="3 +1", answer="4")
    [request] = ask([problem], tokenizer)
    assert request == Request(id="a", prompt_ids=tuple(tokenizer.ask("3 +1")))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([("a", ())], r"'a' has an empty prompt"),
        ([("a", (1, VOCAB))], rf"'a': token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ([("a", (1, -2))], r"'a': token id -2"),
        ([("a", (1,)), ("a", (2,))], r"'a' comes twice"),
        ([("a", (1,)), ("b", (1,) * 115)], r"'b': 115 prompt tokens and max_new_tokens=14 exceed"),
    ],
)
def test_impossible_requests_are_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        sample([Request(id=id, prompt_ids=ids) for id, ids in prompts])


def test_the_longest_prompt_that_fits():
    [rollout, *_] = sample([Request(id="a", prompt_ids=(1,) * 114)], routing=routed("free"))
    assert rollout.num_tokens <= 14


def test_routes_need_a_model_that_knows_the_triggers():
    policy = dataclasses.replace(random_policy(), triggers=None)
    with pytest.raises(ValueError, match=r"modes \['auto'\] need .* mode free"):
        sample(make_requests(), policy)
    rollouts = sample(make_requests(), policy, routing=routed("free"))
    assert {(r.route, r.p_easy) for r in rollouts} == {("none", None)}
    assert all(r.free.all() for r in rollouts)
    same_tokens = sample(make_requests(), routing=routed("free"))
    for a, b in zip(rollouts, same_tokens, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_free_rows_report_the_routes_odds():
    policy, requests = random_policy(), make_requests()
    rollouts = sample(requests, policy, routing=routed("free"))
    easy, long = policy.triggers.easy[0], policy.triggers.long[0]
    for request, rollout in zip(requests, rollouts[::4], strict=True):
        row = np.zeros((1, 64), np.int32)
        row[0, : len(request.prompt_ids)] = request.prompt_ids
        at = len(request.prompt_ids) - 1
        _, logits_BTV = full_logits(policy.model, policy.params, row, np.array([at + 1]))
        odds = jax.nn.softmax(logits_BTV[0, at, jnp.array([easy, long])])
        assert rollout.p_easy == pytest.approx(float(odds[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"temperature": -0.1}, r"temperature=-0\.1"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.1}, r"top_p=1\.1"),
        ({"max_rows": 3}, "max_rows=3 is below num_samples=4"),
    ],
)
def test_config_mistakes_name_their_cure(changes, message):
    with pytest.raises(ValueError, match=rf"SamplingConfig\.{message}"):
        SamplingConfig(**(SIZE | changes))


def test_a_question_that_spells_a_trigger_is_refused():
    problem = Problem(id="p", question="3 +1 <EASY>", answer="4")
    with pytest.raises(ValueError, match="'p': its question holds <EASY>"):
        ask([problem], random_policy().tokenizer)
