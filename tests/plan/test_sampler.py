"""What the sampler holds, planned and real, and the runs that sample beside their training."""

import dataclasses

import jax
import pytest

from l2s_jax.cli import recipes
from l2s_jax.config import load_config
from l2s_jax.model.lora import LoraConfig
from l2s_jax.plan.memory import tree_bytes
from l2s_jax.plan.programs import programs_of
from l2s_jax.plan.sampler import Asked, Sampler
from l2s_jax.plan.subject import Subject, subject_of
from l2s_jax.plan.topologies import here
from l2s_jax.sampling import load
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Request, SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.reweighting import MixingConfig
from l2s_jax.training.validation import ValidationConfig
from tests.plan.test_memory import on_first
from tests.plan.test_search import CONFIGS
from tests.training.tiny import taught_policy

SAMPLING = SamplingConfig(num_samples=2, max_rows=32, max_new_tokens=24)
MIXING = MixingConfig(
    long_accuracy=0.9,
    long_tokens=40.0,
    short_accuracy=0.6,
    short_tokens=10.0,
    max_new_tokens=16,
    max_rows=16,
)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("num_prompts", [16, 200])
def test_planned_state_and_weights_are_the_arrays_to_the_byte(tensor, num_prompts):
    cfg, policy = MeshConfig(tensor=tensor), taught_policy()
    asked = Asked(sampling=SAMPLING, num_prompts=num_prompts, longest=20)
    planned = Sampler(dataclasses.replace(policy, params={}), cfg, here(), asked)
    mesh = make_mesh(cfg)
    engine = Engine(policy, SAMPLING, mesh)
    assert tree_bytes(planned.params) == on_first(engine.place(policy.params))
    requests = [Request(id=str(n), prompt_ids=(1,) * 20) for n in range(num_prompts)]
    state = load.begin(policy.model, mesh, engine.sizes(requests).as_static())
    jax.block_until_ready(state)
    assert tree_bytes(planned.state) == on_first(state)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_an_evaluation_is_its_sampler(dtype):
    path = CONFIGS / "eval_arithmetic.py"
    cfg = dataclasses.replace(load_config(path), dtype=dtype)
    made = programs_of(cfg, subject_of(cfg, path), here())
    names = ["reshard a layer", "sampler begins", "prefill", "decode"]
    assert [planned.name for planned in made.programs] == names
    reshard, _, _, decode = made.programs
    size = 2 if dtype else 4
    assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(reshard.arguments)} == {size}
    assert decode.beside == {} and "sampler weights" in decode.arguments


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, base="bfloat16")])
def test_a_mix_that_is_steered_by_answers_needs_the_sampler(lora):
    cfg = dataclasses.replace(recipes.stage1("items", 0), lora=lora, validation=ValidationConfig())
    subject = Subject(policy=taught_policy())
    alone = programs_of(cfg, subject, here())
    made = programs_of(dataclasses.replace(cfg, mixing=MIXING), subject, here())
    names = [planned.name for planned in made.programs]
    assert "decode" not in [planned.name for planned in alone.programs]
    assert names[-4:] == ["reshard a layer", "sampler begins", "prefill", "decode"]
    update, decode = made.programs[0], made.programs[-1]
    state = tree_bytes(update.arguments["state"])
    merged = tree_bytes(decode.beside["weights"])
    held = tree_bytes(decode.beside)
    if lora is None:
        assert held < state <= held + 16  # two counters are not among them
    else:
        assert state < held < state + merged
    assert "mixing" in made.notes[-1]
