"""The parts put together: what is summed, reported, and settable from a command line."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.config import from_json, override, to_json
from l2s_jax.objectives.budgets import L1Exact
from l2s_jax.objectives.groups import group_means
from l2s_jax.objectives.kl import K2
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.presets import dapo, v2
from l2s_jax.objectives.rewards import KimiLength
from tests.objectives.rollouts import G, make_outcomes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Stands around an objective as a run's config does."""

    preset: Objective


def test_terms_of_the_reward_are_reported_apart_and_add_up():
    outcomes = make_outcomes(0)
    reward_B, metrics = dapo().rewards(outcomes, group_size=G)
    parts = [metrics[f"reward/{name}"] for name in ("correctness", "shaping", "overlong")]
    np.testing.assert_allclose(sum(parts), metrics["reward"], rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], np.mean(reward_B), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward/correctness"], np.mean(outcomes.correct))
    correct_only = v2().rewards(outcomes, group_size=G)[1]
    assert correct_only["reward/shaping"] == 0 and "reward/overlong" not in correct_only


def test_contrast_is_what_dynamic_sampling_keeps():
    outcomes = make_outcomes(0)
    kept = np.asarray(v2().has_contrast(outcomes, group_size=G))
    right = np.asarray(group_means(jnp.asarray(outcomes.correct, jnp.float32), G))
    np.testing.assert_array_equal(kept, (right > 0) & (right < 1))
    adv, metrics = v2().advantages(outcomes, group_size=G)
    np.testing.assert_array_equal(kept, np.any(np.asarray(adv).reshape(-1, G) != 0, axis=1))
    assert metrics["flat_groups"] == np.sum(~kept) > 0
    # What nears the limit is punished, but is no reason to keep a group.
    long = outcomes.replace(num_tokens=np.arange(len(outcomes.correct), dtype=np.int32) % G + 90)
    np.testing.assert_array_equal(dapo().has_contrast(long, group_size=G), kept)
    assert dapo().advantages(long, group_size=G)[1]["flat_groups"] == 0


def test_every_part_is_set_by_name_and_every_field_by_its_path():
    run = override(
        Run(preset=v2()),
        [
            'preset.reward={"type": "KimiLength", "weight": 0.5}',
            'preset.kl={"type": "K2", "weight": 0.01}',
            "preset.policy_loss.clip.high=0.28",
            "preset.design_probability=0.5",
        ],
    )
    assert run.preset.reward == KimiLength(weight=0.5)
    assert run.preset.kl == K2(weight=0.01)
    assert run.preset.policy_loss.clip.high == 0.28
    assert run.preset.design_probability == 0.5
    again = override(run, ["preset.reward.weight=0.25", "preset.kl=null"])
    assert again.preset.reward == KimiLength(weight=0.25) and again.preset.kl is None
    assert from_json(Run, to_json(run)) == run


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ('preset.reward={"type": "Kimi"}', "preset.reward=.*expected Correct or .*KimiLength"),
        ("preset.policy_loss.clip.high=0", r"Clip.high=0.0"),
        ("preset.reward.alpha=0.5", "Correct has no field 'alpha'"),
        ("preset.kl.weight=0.5", r"preset.kl=null holds no config"),
    ],
)
def test_what_cannot_be_set_is_told(assignment, says):
    with pytest.raises(ValueError, match=says):
        override(Run(preset=v2()), [assignment])


def test_an_objective_is_a_key_of_compiled_programs():
    assert len({v2(), v2(), dapo(), dataclasses.replace(v2(), reward=L1Exact())}) == 3
