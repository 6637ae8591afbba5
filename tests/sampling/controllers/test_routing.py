"""Routing on models whose every move is known: what is forced, where, and what is told of it."""

import jax
import numpy as np
import pytest

from l2s_jax.sampling.controllers.routing import MODES, RoutingConfig, make_router
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Request, SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from tests.sampling.tiny import VOCAB, scripted_policy, vocabulary

ONE = make_mesh(MeshConfig(), jax.devices()[:1])
NEVER = -30.0  # a logit that is never drawn and yet possible
PROMPT = {"added": ["3", "="], "plain": ["3", "4"]}
BUDGET = 12


def id_of(tokenizer, piece):
    return tokenizer.hf.get_vocab()[piece]


def policy(spelling, moves):
    """Moves: piece → {next piece: logit}; the last prompt piece begins, others go on to "5" 0."""
    tokenizer, _ = vocabulary(spelling)
    logits_VV = np.full((VOCAB, VOCAB), NEVER)
    logits_VV[:, id_of(tokenizer, "5")] = 0.0
    for piece, following in moves.items():
        logits_VV[id_of(tokenizer, piece)] = NEVER
        for other, logit in following.items():
            logits_VV[id_of(tokenizer, piece), id_of(tokenizer, other)] = logit
    return scripted_policy(spelling, logits_VV)


def run(spelling, moves, mode="auto", threshold=None, switch="append", **changes):
    changes = {"temperature": 0.0, "max_new_tokens": BUDGET, "max_rows": 1} | changes
    routing = RoutingConfig(modes=(mode,), threshold=threshold, switch=switch)
    scripted = policy(spelling, moves)
    prompt = tuple(id_of(scripted.tokenizer, piece) for piece in PROMPT[spelling])
    cfg = SamplingConfig(routing=routing, **changes)
    [rollout] = Engine(scripted, cfg, ONE).sample(
        [Request(id="a", prompt_ids=prompt)], jax.random.key(0)
    )
    pieces = [scripted.tokenizer.decode([i]) for i in rollout.token_ids.tolist()]
    return rollout, pieces


# Both write EASY or LONG with these logits, then "5" until the budget ends.
def opening(spelling, easy, long):
    if spelling == "added":
        return {"=": {"<EASY>": easy, "<LONG>": long}}
    return {
        "4": {"<E": easy, "<": long},
        "<E": {"ASY": 0.0},
        "ASY": {">\n": 0.0},
        "<": {"LONG": 0.0},
        "LONG": {">\n": 0.0},
    }


TRIGGER = {
    "added": {name: [f"<{name}>"] for name in ("EASY", "LONG", "SHORT")},
    "plain": {"EASY": ["<E", "ASY", ">\n"], "LONG": ["<", "LONG", ">\n"]}
    | {"SHORT": ["<", "SHORT", ">\n"]},
}


def check(result, opened, forced_places, route, p_easy):
    rollout, pieces = result
    assert pieces == opened + ["5"] * (BUDGET - len(opened))
    assert np.flatnonzero(~rollout.free).tolist() == forced_places
    assert rollout.route == route
    assert rollout.finish_reason == "length"
    assert rollout.p_easy == pytest.approx(p_easy, abs=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("spelling", ["added", "plain"])
@pytest.mark.parametrize(("easy", "long"), [(1.0, 0.0), (0.0, 1.0)])
def test_every_mode(spelling, easy, long):
    moves, words = opening(spelling, easy, long), TRIGGER[spelling]
    size, p_easy = len(words["EASY"]), sigmoid(easy - long)
    inserted = list(range(size, 2 * size))
    chosen = (
        (words["EASY"] + words["SHORT"], inserted, "short")
        if easy > long
        else (words["LONG"], [], "long")
    )
    check(run(spelling, moves), *chosen, p_easy)
    check(run(spelling, moves, "force-long"), words["LONG"], list(range(size)), "long", p_easy)
    both = words["EASY"] + words["SHORT"]
    check(run(spelling, moves, "force-short"), both, list(range(2 * size)), "short", p_easy)
    alone = words["EASY"] if easy > long else words["LONG"]
    check(run(spelling, moves, "free"), alone, [], "short" if easy > long else "long", p_easy)


@pytest.mark.parametrize("spelling", ["added", "plain"])
@pytest.mark.parametrize("gap", [-2.0, 2.0])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_threshold(spelling, gap, threshold):
    """The gate decides for the policy, and its whole trigger is then the gate's."""
    words, p_easy = TRIGGER[spelling], sigmoid(gap)
    size = len(words["EASY"])
    result = run(spelling, opening(spelling, gap, 0.0), threshold=threshold)
    if p_easy >= threshold:
        expected = (words["EASY"] + words["SHORT"], list(range(2 * size)), "short")
    else:
        expected = (words["LONG"], list(range(size)), "long")
    check(result, *expected, p_easy)


def test_threshold_leaves_no_way_out():
    """The policy would go astray after the first piece of the trigger; the gate does not let it."""
    moves = opening("plain", 1.0, 0.0) | {"<E": {"5": 5.0, "ASY": 0.0}}
    check(
        run("plain", moves, threshold=0.5),
        ["<E", "ASY", ">\n", "<", "SHORT", ">\n"],
        list(range(6)),
        "short",
        sigmoid(1.0),
    )


@pytest.mark.parametrize("spelling", ["added", "plain"])
@pytest.mark.parametrize("mode", ["auto", "force-short"])
def test_replace_takes_easy_back(spelling, mode):
    words = TRIGGER[spelling]
    result = run(spelling, opening(spelling, 1.0, 0.0), mode, switch="replace")
    places = list(range(len(words["SHORT"])))
    check(result, words["SHORT"], places, "short", sigmoid(1.0))
    assert "<E" not in (result[0].text or "")


@pytest.mark.parametrize(
    ("closing", "inserted"),
    [
        (">\n", ["<", "SHORT", ">\n"]),
        (">", ["<", "SHORT", ">\n"]),
        ("><", ["SHORT", ">\n"]),  # the piece holds the first character already
    ],
)
def test_short_continues_however_easy_was_closed(closing, inserted):
    moves = opening("plain", 1.0, 0.0) | {"ASY": {closing: 0.0}}
    opened = ["<E", "ASY", closing, *inserted]
    result = run("plain", moves)
    check(result, opened, list(range(3, len(opened))), "short", sigmoid(1.0))
    assert "".join(opened).replace("\n", "") == "<EASY><SHORT>"
    check(
        run("plain", moves, switch="replace"),
        ["<", "SHORT", ">\n"],
        [0, 1, 2],
        "short",
        sigmoid(1.0),
    )


def test_p_easy_follows_a_common_prefix():
    """EASY spelt with the piece of LONG, letter by letter, still is EASY."""
    moves = opening("plain", 0.0, 3.0) | {"<": {"E": 1.0, "LONG": 0.0}, "E": {"ASY": 0.0}}
    rollout, pieces = run("plain", moves)
    assert pieces[:7] == ["<", "E", "ASY", ">\n", "<", "SHORT", ">\n"]
    assert rollout.route == "short"
    assert rollout.p_easy == pytest.approx(sigmoid(-3.0), abs=1e-5)  # what "<" spoke for


@pytest.mark.parametrize("spelling", ["added", "plain"])
@pytest.mark.parametrize("mode", ["auto", "free"])
def test_no_trigger_no_route(spelling, mode):
    rollout, pieces = run(spelling, {PROMPT[spelling][-1]: {"7": 0.0}}, mode)
    assert rollout.route == "none" and rollout.free.all()
    assert pieces == ["7"] + ["5"] * (BUDGET - 1)
    assert 0 <= rollout.p_easy <= 1  # both are as unlikely as can be, and comparable


def test_a_late_trigger_sets_nothing_off():
    moves = {"=": {"7": 0.0}, "7": {"<EASY>": 0.0}}
    rollout, pieces = run("added", moves)
    assert pieces[:3] == ["7", "<EASY>", "5"]
    assert rollout.route == "none" and rollout.free.all()


def test_a_second_easy_sets_nothing_off():
    moves = opening("added", 1.0, 0.0) | {"<SHORT>": {"<EASY>": 0.0}}
    rollout, pieces = run("added", moves)
    assert pieces[:5] == ["<EASY>", "<SHORT>", "<EASY>", "5", "5"]
    assert np.flatnonzero(~rollout.free).tolist() == [1]


@pytest.mark.parametrize(("budget", "route"), [(1, "short"), (2, "short")])
def test_a_budget_that_ends_within_the_opening(budget, route):
    rollout, pieces = run("added", opening("added", 1.0, 0.0), max_new_tokens=budget)
    assert pieces == ["<EASY>", "<SHORT>"][:budget]
    assert (rollout.route, rollout.finish_reason) == (route, "length")


def test_temperature_does_not_move_p_easy():
    for temperature in (0.5, 2.0):
        rollout, _ = run("added", opening("added", 1.0, 0.0), temperature=temperature)
        assert rollout.p_easy == pytest.approx(sigmoid(1.0), abs=1e-5)


def test_sampled_routes_follow_p_easy():
    scripted = policy("added", opening("added", 0.8, 0.0))
    prompt = tuple(id_of(scripted.tokenizer, piece) for piece in PROMPT["added"])
    cfg = SamplingConfig(num_samples=512, max_rows=512, max_new_tokens=3)
    rollouts = Engine(scripted, cfg, ONE).sample(
        [Request(id="a", prompt_ids=prompt)], jax.random.key(5)
    )
    share = np.mean([r.route == "short" for r in rollouts])
    assert share == pytest.approx(sigmoid(0.8), abs=4 * np.sqrt(0.25 / 512))


def test_each_sample_may_have_its_own_mode():
    scripted = policy("added", opening("added", 1.0, 0.0))
    prompt = tuple(id_of(scripted.tokenizer, piece) for piece in PROMPT["added"])
    cfg = SamplingConfig(
        num_samples=4, max_rows=4, max_new_tokens=4, routing=RoutingConfig(modes=MODES)
    )
    rollouts = Engine(scripted, cfg, ONE).sample(
        [Request(id="a", prompt_ids=prompt)], jax.random.key(0)
    )
    forced = [np.flatnonzero(~r.free).tolist() for r in rollouts]
    assert forced == [[1], [0], [0, 1], []]
    assert [r.route for r in rollouts] == ["short", "long", "short", "short"]


def test_mistakes_name_their_cure():
    with pytest.raises(ValueError, match=r"RoutingConfig\.modes=\(\): choose from auto"):
        RoutingConfig(modes=())
    with pytest.raises(ValueError, match=r"RoutingConfig\.threshold=1\.5"):
        RoutingConfig(threshold=1.5)
    with pytest.raises(ValueError, match="2 modes for 3 samples"):
        RoutingConfig(modes=("auto", "free")).of_sample(0, 3)
    with pytest.raises(ValueError, match=r"\['auto'\] need a model that knows the triggers"):
        make_router(None, None, ["auto", "free"], None, "append", VOCAB)
