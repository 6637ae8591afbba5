"""One protocol, whoever answers: a policy here, or the same policy behind a server."""

import dataclasses

import jax
import numpy as np
import pytest

from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.endpoint import RemoteConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.remote import RemoteSampler
from l2s_jax.sampling.requests import SamplingConfig, ask
from l2s_jax.sampling.sampler import LocalSampler, Sampler
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.policy import load_policy
from l2s_jax.types import Problem
from tests.sampling.teacher_server import MODEL, policy_rule, serving
from tests.sampling.tiny import random_policy

BUDGET, SAMPLES = 6, 2
PROBLEMS = [
    Problem(id=f"p{n}", question=question, answer="0")
    for n, question in enumerate(["3 + 1", "2 + 2 + 5", "9 - 4", "1 + 1", "7 + 8 - 2"])
]


def local(policy, **changes):
    asked = {"num_samples": SAMPLES, "max_rows": 8, "max_new_tokens": BUDGET} | changes
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return LocalSampler(Engine(policy, SamplingConfig(**asked), mesh))


@pytest.fixture(scope="module", params=["local", "remote"])
def sampler(request):
    if request.param == "local":
        free = RoutingConfig(modes=("free",))
        yield local(random_policy(), routing=free)
        return
    with serving(policy_rule(random_policy(), BUDGET)) as server:
        yield RemoteSampler(
            RemoteConfig(
                base_url=server.url,
                model=MODEL,
                api_key_env=None,
                num_samples=SAMPLES,
                max_new_tokens=BUDGET,
                concurrency=3,
            )
        )


def texts(sampler, problems=PROBLEMS, seed=5, routing=None):
    rollouts = sampler.sample(problems, jax.random.key(seed), routing=routing)
    return {(r.id, r.sample): r.text for r in rollouts}


def test_is_a_sampler(sampler):
    assert isinstance(sampler, Sampler)
    assert sampler.repeats == isinstance(sampler, LocalSampler)


def test_rollouts_come_in_the_order_of_problems_and_samples(sampler):
    backwards = PROBLEMS[::-1]
    rollouts = sampler.sample(backwards, jax.random.key(5))
    want = [(problem.id, sample) for problem in backwards for sample in range(SAMPLES)]
    assert [(r.id, r.sample) for r in rollouts] == want
    for rollout in rollouts:
        assert 1 <= rollout.num_tokens <= BUDGET
        assert rollout.finish_reason in ("stop", "length")
        assert len(rollout.logp) == len(rollout.free) == len(rollout.token_ids)
        if rollout.finish_reason == "length":
            assert rollout.num_tokens == BUDGET
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}  # both are data


def test_key_id_and_sample_name_the_draws(sampler):
    """Holds over the wire too, since this server honours its seeds."""
    whole = texts(sampler)
    assert texts(sampler) == whole
    alone = texts(sampler, [PROBLEMS[3]])
    assert alone == {place: whole[place] for place in alone}
    assert texts(sampler, seed=6) != whole
    renamed = [dataclasses.replace(p, id=f"other {p.id}") for p in PROBLEMS]
    assert list(texts(sampler, renamed).values()) != list(whole.values())
    assert len(set(whole.values())) > len(PROBLEMS)


def test_free_is_a_routing_of_all(sampler):
    assert texts(sampler, routing=RoutingConfig(modes=("free",))) == texts(sampler)


def test_nothing_asked_nothing_sampled(sampler):
    assert list(sampler.sample([], jax.random.key(0))) == []


def test_an_id_that_comes_twice_is_refused(sampler):
    with pytest.raises(ValueError, match="twice; ids name the draws"):
        sampler.sample([PROBLEMS[0], PROBLEMS[0]], jax.random.key(0))


def test_a_question_with_a_trigger_is_refused(sampler):
    problem = Problem(id="a", question="3 <EASY> 1", answer="4")
    with pytest.raises(ValueError, match="'a': its question holds <EASY>"):
        sampler.sample([problem], jax.random.key(0))


def test_a_local_sampler_is_its_engine_asked_through_the_template():
    policy = random_policy()
    sampler = local(policy)
    routing = RoutingConfig(modes=("force-short",))
    rollouts = sampler.sample(PROBLEMS, jax.random.key(1), routing=routing)
    asked = sampler.engine.sample(
        ask(PROBLEMS, policy.tokenizer), jax.random.key(1), routing=routing
    )
    assert {r.route for r in rollouts} == {"short"}
    for rollout, want in zip(rollouts, asked, strict=True):
        np.testing.assert_array_equal(rollout.token_ids, want.token_ids)


def test_a_teacher_from_a_hugging_face_folder():
    """The shipped base model, which knows no triggers."""
    teacher = local(
        load_policy("arithmetic"),
        num_samples=1,
        temperature=0.0,
        max_new_tokens=64,
        routing=RoutingConfig(modes=("free",)),
    )
    rollouts = teacher.sample(PROBLEMS, jax.random.key(0))
    assert [r.id for r in rollouts] == [p.id for p in PROBLEMS]
    assert {r.route for r in rollouts} == {"none"}


def test_a_teacher_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="without a tokenizer cannot be asked"):
        local(dataclasses.replace(random_policy(), tokenizer=None))
