"""What one step gathers: groups in place of those without contrast, who decided a route."""

import dataclasses

import numpy as np
import pytest

from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.objectives.presets import plus, tldr
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.tokens.automaton import route_table
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.tokens.triggers import find_triggers
from l2s_jax.training.asking import AskLevels
from l2s_jax.training.gather import Groups, PackedSizes, marker_of
from l2s_jax.training.refill import Refill
from l2s_jax.training.rollouts import choose_problems
from tests.training.stage2 import GROUP, NUM_PROMPTS, POLICY, gatherer, grpo_run
from tests.training.test_rollouts import made_up

PROBLEMS = ArithmeticProblems(num_per_level=24, levels=(3, 5))


def refilled(max_rounds=3, **changes):
    return grpo_run(
        problems=PROBLEMS, preset=plus(), refill=Refill(max_rounds=max_rounds), **changes
    )


@pytest.fixture(scope="module")
def steps():
    """max_rounds → steps 0 to 5, gathered backwards; 0 is without refills."""
    found = {}
    for rounds in (0, 1, 3):
        cfg = refilled(rounds) if rounds else dataclasses.replace(refilled(), refill=None)
        with gatherer(cfg) as gather:
            found[rounds] = [gather(step, POLICY.params) for step in reversed(range(6))][::-1]
    return found


def lengths(groups: Groups):
    """Tokens of each prompt's samples: what Plus tells a wrong answer from another by."""
    return np.asarray([r.num_tokens for r in groups.rollouts]).reshape(-1, GROUP)


def has_contrast(groups: Groups):
    return [len(set(row)) > 1 for row in lengths(groups).tolist()]


def test_some_steps_need_refills_and_some_rounds_do_not_suffice(steps):
    missing = [step.metrics["refill/missing"] for step in steps[1]]
    assert any(missing) and not all(missing)


@pytest.mark.parametrize("rounds", [1, 3])
def test_groups_without_contrast_make_room(steps, rounds):
    for plain, step in zip(steps[0], steps[rounds], strict=True):
        ids = [one.problem.id for one in step.groups.asked]
        assert len(set(ids)) == NUM_PROMPTS and len(step.groups.rollouts) == NUM_PROMPTS * GROUP
        assert [r.id for r in step.groups.rollouts] == [i for i in ids for _ in range(GROUP)]
        counts = step.metrics
        num_flat = has_contrast(step.groups).count(False)
        assert counts["refill/missing"] == num_flat == counts["flat_groups"]
        assert counts["refill/rounds"] <= rounds
        assert not num_flat or counts["refill/rounds"] == rounds
        # The step's own groups with contrast stay, and its signal is of its own groups alone.
        own = [one.problem.id for one in plain.groups.asked]
        kept = [id for id, fine in zip(own, has_contrast(plain.groups), strict=True) if fine]
        assert ids[: len(kept)] == kept
        for name in ("accuracy", "tokens", "truncated", "easy_share"):
            assert counts[name] == plain.metrics[name]
        sampled = NUM_PROMPTS + counts["refill/groups"]
        contrast = sampled * (1 - counts["refill/flat_fraction"])
        assert contrast == pytest.approx(NUM_PROMPTS - num_flat + counts["refill/unused"])


def test_without_refills_they_are_counted(steps):
    for step in steps[0]:
        assert step.metrics["flat_groups"] == has_contrast(step.groups).count(False)
        assert not any(name.startswith("refill") for name in step.metrics)


def test_a_step_is_a_function_of_seed_and_step(steps):
    with gatherer(refilled(3)) as gather:
        again = [gather(step, POLICY.params) for step in (4, 1)]
    for got, want in zip(again, (steps[3][4], steps[3][1]), strict=True):
        assert got.metrics == want.metrics
        for name in ("tokens", "old_logp", "advantages", "free", "marker"):
            np.testing.assert_array_equal(getattr(got.batch, name), getattr(want.batch, name))


def test_rounds_end_with_the_problems():
    cfg = dataclasses.replace(
        refilled(9), problems=ArithmeticProblems(num_per_level=5, levels=(3, 5)), prompts_per_step=8
    )
    with gatherer(cfg) as gather:
        for step in range(2):
            found = gather(step, POLICY.params)
            assert found.metrics["refill/groups"] <= 2  # ten problems, eight of them asked first


def test_levels_are_asked_for_and_told_apart():
    words = ("{question} steps", "{question}", "{question} brief")
    cfg = grpo_run(problems=PROBLEMS, preset=tldr(), asking=AskLevels(words=words))
    with gatherer(cfg) as gather:
        step = gather(0, POLICY.params)
    asked = step.groups.asked
    assert {one.level for one in asked} == {1, 2, 3}
    assert POLICY.tokenizer is not None
    for one, rollout in zip(asked, step.groups.rollouts[::GROUP], strict=True):
        said = words[one.level - 1].replace("{question}", one.problem.question)
        assert rollout.prompt_ids.tolist() == POLICY.tokenizer.ask(said)
    for level in (1, 2, 3):
        tokens = [
            r.num_tokens
            for one, r in zip(step.groups.asked_of_rows, step.groups.rollouts, strict=True)
            if one.level == level
        ]
        assert step.metrics[f"level/{level}/tokens"] == pytest.approx(np.mean(tokens))
    chosen = choose_problems(PROBLEMS.load(), NUM_PROMPTS, seed=0, step=0)
    assert [one.problem for one in asked] == chosen


@pytest.mark.parametrize(
    ("prompt", "completion", "width", "context", "length"),
    [
        (64, 128, 256, 1, 768),  # five completions of a group of eight behind a prompt
        (64, 128, 256, 2, 768),  # each half is cut in tiles
        (512, 8192, 1536, 1, 8704),  # attention over two of them costs more than a prompt
        (1, 1, 16, 1, 128),
    ],
)
def test_rows_hold_as_many_completions_as_cost_least(prompt, completion, width, context, length):
    mesh = make_mesh(MeshConfig(context=context))
    sizes = PackedSizes.of(
        prompt=prompt, completion=completion, group=8, width=width, num_rollouts=64, mesh=mesh
    )
    assert sizes.row_length == length
    assert sizes.row_quantum % (8 // context) == 0


ADDED = POLICY.triggers


def routed(ids, route):
    return made_up(0, "p", 2, len(ids), token_ids=np.asarray(ids, np.int32), route=route)


@pytest.mark.parametrize(
    ("opening", "route", "marker"),
    [
        (("long",), "long", 0),
        (("easy", "short"), "short", 0),
        (("short",), "short", None),  # EASY was taken back
        (("answer", "long"), "none", None),
    ],
)
def test_marker_of_added_tokens(opening, route, marker):
    table = route_table(ADDED, POLICY.tokenizer, POLICY.model.vocab_size)
    ids = [getattr(ADDED, name)[0] for name in opening] + [1, 2]
    assert marker_of(routed(ids, route), table) == marker
    assert marker_of(routed([3, *ids], "none"), table) is None  # not at the start


def test_marker_of_plain_text(shared_data):
    """The first piece that the other trigger does not begin with, as that is where they part."""
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "qwen2.5")
    triggers = find_triggers(tokenizer, "plain")
    table = route_table(triggers, tokenizer, len(tokenizer.hf))
    parts = [a == b for a, b in zip(triggers.easy, triggers.long, strict=False)].index(False)
    for name, route in (("easy", "short"), ("long", "long")):
        ids = [*getattr(triggers, name), 17, 18]
        assert marker_of(routed(ids, route), table) == parts
    assert marker_of(routed([17, *triggers.long], "none"), table) is None
