"""What each preset of stage 2 must and must not reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.grpo import GrpoConfig, grpo_loss, sequence_ratio_loss
from l2s_jax.objectives.presets import V2, Plus, PlusLinear

LENGTHS = jnp.array([10, 20, 30, 40] * 2, jnp.int32)
EASY_AND_MIXED = jnp.array([True] * 4 + [True, True, False, False])
PRESETS = (V2(), Plus(), PlusLinear(max_tokens=50))
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: type(preset).__name__)


def test_v2_learns_nothing_from_a_question_that_is_always_right():
    adv, metrics = V2().advantages(EASY_AND_MIXED, LENGTHS, group_size=4)
    np.testing.assert_array_equal(adv[:4], 0)
    np.testing.assert_allclose(adv[4:], np.array([1, 1, -1, -1]) * np.sqrt(0.75), rtol=1e-5)
    assert metrics["flat_groups"] == 1
    assert metrics["reward/correctness"] == 0.75


@pytest.mark.parametrize("preset", PRESETS[1:], ids=lambda preset: type(preset).__name__)
def test_length_aware_presets_prefer_short_among_right_and_right_to_wrong(preset):
    adv, _ = preset.advantages(EASY_AND_MIXED, LENGTHS, group_size=4)
    assert np.all(np.diff(adv[:4]) < 0)
    assert min(adv[4:6]) > max(adv[6:])


def test_linear_length_pressure_grows_with_alpha():
    spread = []
    for alpha in (0.0, 0.1, 0.4):
        preset = PlusLinear(alpha=alpha, max_tokens=50)
        adv, _ = preset.advantages(EASY_AND_MIXED, LENGTHS, group_size=4)
        spread.append(float(adv[0] - adv[3]))
    assert spread[0] == 0
    np.testing.assert_allclose(spread[2], 4 * spread[1], rtol=1e-5)


def test_plus_is_the_definition_with_the_group_as_its_reference():
    adv, _ = Plus(accuracy_weight=5.0).advantages(EASY_AND_MIXED, LENGTHS, group_size=4)
    raw = []
    for b in range(8):
        group = slice(b // 4 * 4, b // 4 * 4 + 4)
        saved = np.mean(LENGTHS[group]) / LENGTHS[b] - 1
        gained = 5.0 * (EASY_AND_MIXED[b] - np.mean(EASY_AND_MIXED[group]))
        raw.append(np.clip(saved + gained, -2, 4))
    raw = np.array(raw)
    want = (raw - raw.mean()) / (raw.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(adv, want, atol=1e-5)


@every_preset
def test_loss_is_the_one_it_names_with_its_own_clip(preset):
    rng = np.random.default_rng(0)
    old_logp = jnp.asarray(-rng.exponential(size=(8, 5)), jnp.float32)
    arrays = (old_logp + 0.3, old_logp, jnp.ones(8), jnp.ones((8, 5), bool))
    loss_fn = sequence_ratio_loss if isinstance(preset, Plus) else grpo_loss
    got = preset.loss(*arrays, num_sequences=8.0)
    want = loss_fn(*arrays, num_sequences=8.0, cfg=GrpoConfig())
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_allclose(got[0], -1.2, rtol=1e-6)  # clipped at the paper's 0.2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Plus(accuracy_weight=0.0), r"Plus.accuracy_weight=0.0"),
        (lambda: Plus(low=1.0), r"Plus.low=1.0"),
        (lambda: PlusLinear(alpha=1.0, max_tokens=5), r"PlusLinear.alpha=1.0"),
        (lambda: PlusLinear(max_tokens=0), r"PlusLinear.max_tokens=0"),
    ],
)
def test_impossible_settings_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
