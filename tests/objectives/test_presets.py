"""What each preset must and must not reward."""

import dataclasses
import inspect
import pathlib
import typing

import jax
import numpy as np
import pytest

from l2s_jax.config import from_json, to_json
from l2s_jax.objectives import presets
from l2s_jax.objectives.advantages import Centred
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.rewards import Correct
from tests.objectives.rollouts import G, make_outcomes, make_terms, on_device

NAMES = sorted(
    name
    for name, value in vars(presets).items()
    if inspect.isfunction(value) and value.__module__ == presets.__name__ and name != "v1"
)
every_preset = pytest.mark.parametrize("name", NAMES)

TOKENS = np.array([10, 20, 30, 40] * 2, np.int32)
CORRECT = np.array([True] * 4 + [True, True, False, False])
SHORT = np.array([True, True, False, False] * 2)


def outcomes(**changes):
    fields = {
        "correct": CORRECT, "num_tokens": TOKENS, "stopped": np.ones(8, bool), "short": SHORT,
        "level": np.full(8, 3, np.int32), "max_tokens": np.full(8, 10, np.int32), "limit": 50,
    }  # fmt: skip
    return make_outcomes(0).replace(**{**fields, **changes})


def advantages(name, **changes):
    adv, metrics = getattr(presets, name)().advantages(outcomes(**changes), group_size=4)
    return np.asarray(adv), metrics


def test_names_of_the_issue_are_there():
    named = {"plus", "v2", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "kimi", "tldr", "l1_exact"}
    assert named | {"l1_max", "dler", "curriculum", "adaptthink", "thinkless", "arm"} <= set(NAMES)


def test_v1_has_no_stage_2():
    with pytest.raises(ValueError, match=r"v1: .* has no stage 2.*do not run `l2s grpo`"):
        presets.v1()


def _measure(objective, terms):
    def loss_of(logp):
        return objective.loss(terms.replace(logp=logp))

    return jax.value_and_grad(loss_of, has_aux=True)(terms.logp)


compiled = jax.jit(_measure, static_argnums=0)


@every_preset
def test_is_one_value_and_trains_free_tokens_alone(name):
    objective = getattr(presets, name)()
    assert from_json(Objective, to_json(objective)) == objective
    made = make_outcomes(0)
    adv, _ = objective.advantages(made, group_size=G)
    assert np.isfinite(adv).all()
    terms = make_terms(0).replace(old_logp=make_terms(0).logp + 1e-5)  # inside every clip
    terms = terms.replace(advantages=np.where(np.isnan(terms.advantages), np.nan, -1.0))
    # Rewards and advantages are not in the loss: presets that share one share its program.
    of_loss = dataclasses.replace(objective, reward=Correct(), advantage=Centred(), overlong=None)
    (value, metrics), grad = compiled(of_loss, on_device(terms))
    assert np.isfinite(value) and all(np.isfinite(metric) for metric in metrics.values())
    trained = terms.free | terms.marker if objective.design_probability else terms.free
    if objective.design_probability is None:
        np.testing.assert_array_equal(np.asarray(grad) != 0, trained)
    else:
        assert not np.asarray(grad)[~trained].any()


def test_v2_learns_nothing_from_a_question_that_is_always_right():
    adv, metrics = advantages("v2")
    np.testing.assert_array_equal(adv[:4], 0)
    np.testing.assert_allclose(adv[4:], np.array([1, 1, -1, -1]) * np.sqrt(0.75), rtol=1e-5)
    assert metrics["flat_groups"] == 1
    assert metrics["reward/correctness"] == 0.75


@pytest.mark.parametrize(
    "name",
    ["plus", "plus_linear", "efficient", "kimi", "tldr", "l1_exact", "l1_max"],
)
def test_length_aware_presets_prefer_short_among_right_and_right_to_wrong(name):
    adv, _ = advantages(name)
    assert np.all(np.diff(adv[:4]) < 0)
    assert min(adv[4:6]) > max(adv[6:])


@pytest.mark.parametrize("name", ["adaptthink", "thinkless"])
def test_router_presets_prefer_short_where_both_are_right_and_right_elsewhere(name):
    adv, _ = advantages(name)
    assert min(adv[:2]) > max(adv[2:4])
    long_wins, _ = advantages(name, short=~SHORT)
    assert min(long_wins[4:6]) > max(long_wins[6:])


def test_adaptthink_s_bonus_is_the_accuracy_that_short_may_cost():
    adv, _ = advantages("adaptthink")
    np.testing.assert_allclose(adv[:4], [0.05, 0.05, 0, 0], atol=1e-6)
    wrong_short, _ = advantages("adaptthink", short=~SHORT)  # long was right in the second group
    np.testing.assert_allclose(wrong_short[4:], [0, 0, -0.95, -0.95], atol=1e-6)


def test_arm_boosts_the_route_that_is_rare():
    rare = np.array([True, False, False, False] * 2)
    adv, _ = advantages("arm", short=rare)
    assert adv[0] > adv[1] == adv[2] == adv[3]


def test_dler_and_curriculum_read_the_budget():
    within, _ = advantages("dler", max_tokens=np.full(8, 25, np.int32))
    assert within[0] == within[1] > within[2] == within[3]
    peak, _ = advantages("curriculum", max_tokens=np.full(8, 30, np.int32))
    assert np.argmax(peak[:4]) == 2


def test_plus_is_the_definition_with_the_group_as_its_reference():
    adv, _ = presets.plus(accuracy_weight=5.0).advantages(outcomes(), group_size=4)
    raw = []
    for b in range(8):
        group = slice(b // 4 * 4, b // 4 * 4 + 4)
        saved = np.mean(TOKENS[group]) / TOKENS[b] - 1
        raw.append(np.clip(saved + 5.0 * (CORRECT[b] - np.mean(CORRECT[group])), -5, 5))
    raw = np.array(raw).reshape(2, 4)
    centred = (raw - raw.mean(axis=1, keepdims=True)).reshape(-1)
    np.testing.assert_allclose(adv, centred / (centred.std(ddof=1) + 1e-6), atol=1e-5)


def test_plus_leaves_what_is_always_right_and_equally_short():
    """Whatever the other groups of the step do: seed 101 of docs/stage2_methods.md unlearned it."""
    correct = np.array([True] * 7 + [False])
    step = outcomes(correct=correct, num_tokens=np.array([8, 8, 8, 8, 8, 35, 8, 8], np.int32))
    adv, _ = presets.plus(accuracy_weight=8.0).advantages(step, group_size=4)
    np.testing.assert_array_equal(adv[:4], 0)
    assert adv[7] < adv[5] < adv[4]


def test_linear_length_pressure_grows_with_alpha():
    spread = []
    for alpha in (0.0, 0.1, 0.4):
        adv, _ = presets.plus_linear(alpha).advantages(outcomes(), group_size=4)
        spread.append(float(adv[0] - adv[3]))
    assert spread[0] == 0
    np.testing.assert_allclose(spread[2], 4 * spread[1], rtol=1e-5)


def test_dapo_clips_higher_and_punishes_what_nears_the_limit():
    assert presets.dapo().policy_loss.clip.high == 0.28
    late, _ = advantages("dapo", num_tokens=np.array([10, 10, 10, 50] * 2, np.int32))
    assert late[3] < late[0] == late[1] == late[2]  # all right, one at the limit


def test_presets_with_a_kl_term_say_that_they_need_the_reference():
    with_kl = {name for name in NAMES if getattr(presets, name)().needs_reference}
    assert with_kl == {"l1_exact", "l1_max", "dler", "thinkless", "arm"}


def test_the_table_in_docs_has_every_preset_and_every_part():
    table = (pathlib.Path(__file__).parents[2] / "docs" / "objectives.md").read_text("utf-8")
    hints = typing.get_type_hints(Objective)
    parts = [part for hint in hints.values() for part in typing.get_args(hint)]
    names = [part.__name__ for part in parts if dataclasses.is_dataclass(part)]
    assert len(names) > 25
    assert not [name for name in [*names, *NAMES] if f"`{name}`" not in table]
