"""Which completions are kept, how they are cut, what a resume forgets."""

import json

import pytest

from l2s_jax.training.completions import FILE, CompletionsConfig, CompletionsFile, chosen, cut
from tests.training.test_rollouts import made_up

ROUTES = ["short", "long", "none", "short", "short", "long", "short", "short"]
ROLLOUTS = [  # two problems of four samples
    made_up(0, "ab"[i // 4], 2, 3, sample=i % 4, route=route, text=f"{i} <b>&")
    for i, route in enumerate(ROUTES)
]
FACTS = [{"advantage": float(i)} for i in range(len(ROLLOUTS))]


def test_every_route_and_different_problems_first():
    assert chosen(ROLLOUTS, 1) == [1, 0, 2]  # long, short, none
    found = chosen(ROLLOUTS, 2)
    kept = [(ROLLOUTS[i].route, ROLLOUTS[i].id) for i in found]
    assert kept.count(("long", "a")) == kept.count(("long", "b")) == 1
    assert kept.count(("short", "a")) == kept.count(("short", "b")) == 1
    assert kept.count(("none", "a")) == 1 and len(kept) == 5
    assert sorted(chosen(ROLLOUTS, 9)) == list(range(8))


@pytest.mark.parametrize("length", [0, 9, 10, 11, 500])
def test_a_cut_keeps_both_ends_and_says_so(length):
    text = "".join(chr(97 + i % 26) for i in range(length))
    found = cut(text, 10)
    if length <= 10:
        assert found == {"text": text, "left_out": 0}
    else:
        assert found == {"text": f"{text[:5]} … {text[-5:]}", "left_out": length - 10}
    assert cut(None, 10) == {"text": None, "left_out": 0}


def rows(path):
    return [json.loads(line) for line in (path / FILE).read_text().splitlines()]


def test_lines_of_the_asked_steps(tmp_path):
    cfg = CompletionsConfig(every=2, per_route=1, max_chars=4)
    with CompletionsFile(tmp_path, cfg, resume_from=0) as file:
        for step in range(1, 6):
            file.write(step, ROLLOUTS, FACTS)
    assert [row["step"] for row in rows(tmp_path)] == [2, 2, 2, 4, 4, 4]
    for row in rows(tmp_path):
        rollout = ROLLOUTS[int(row["advantage"])]
        assert (row["id"], row["sample"], row["route"]) == (
            rollout.id,
            rollout.sample,
            rollout.route,
        )
        assert row["num_forced"] == sum(not free for free in rollout.free)
        assert row["left_out"] == len(rollout.text) - 4
    raw = (tmp_path / FILE).read_text()
    assert not set(raw) & set("<>&") and raw.isascii()
    with CompletionsFile(tmp_path, cfg, resume_from=3) as file:
        file.write(5, ROLLOUTS, FACTS)
    assert {row["step"] for row in rows(tmp_path)} == {2}


def test_none_are_kept_where_none_are_asked_for(tmp_path):
    with CompletionsFile(tmp_path, CompletionsConfig(every=0), resume_from=0) as file:
        file.write(1, ROLLOUTS, FACTS)
    assert rows(tmp_path) == []


@pytest.mark.parametrize("changes", [{"every": -1}, {"per_route": 0}, {"max_chars": 0}])
def test_faulty_configs(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        CompletionsConfig(**changes)
