import json

import pytest

from l2s_jax.curation.hygiene import Hygiene, clean
from l2s_jax.types import Problem

LONG = "Where m and n are relatively prime positive integers, and so on to the end, find m + n"


def problems(*pairs):
    return [Problem(id=f"p{i}", question=q, answer=a) for i, (q, a) in enumerate(pairs)]


def benchmark(tmp_path, *questions, name="bench.jsonl"):
    rows = [{"id": f"b{i}", "question": q, "answer": "0"} for i, q in enumerate(questions)]
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def found(hits):
    return [(hit.id, hit.rule, hit.other) for hit in hits]


def test_copies_within_a_set():
    kept, hits = clean(
        problems(
            ("Tom has 3 cats and buys 4 more cats. How many cats has Tom?", "7"),
            ("Tom has 3 cats  and buys 4 more cats; how many cats has TOM?", "7"),
            ("Ann has 3 cats and buys 4 more cats. How many cats has Ann?", "7"),
            ("Tom has 3 cats and buys 5 more cats. How many cats has Tom?", "8"),  # another number
            ("Tom has 3 cats and buys 4 more cats. How many ears has Tom?", "14"),  # another answer
            ("Tom has 3 cats and buys 4 more cats. How many cats has Tom?", "8"),
        ),
        Hygiene(near=0.4),
    )
    assert [problem.id for problem in kept] == ["p0", "p3", "p4"]
    assert found(hits) == [
        ("p1", "duplicate", "p0"),
        ("p5", "duplicate", "p0"),
        ("p2", "near-duplicate", "p0"),
    ]
    assert [hit.references_differ for hit in hits] == [False, True, False]
    assert clean(kept, Hygiene(near=0.4)) == (kept, [])


def test_a_chain_of_small_changes_keeps_its_ends():
    """Each is near the next, the first and the last are not near: the copy of a copy stays."""
    words = [f"w{chr(97 + i)}" for i in range(24)]
    chain = [" ".join(words[i : i + 20]) for i in (0, 2, 4)]
    kept, hits = clean(problems(*((text, "1") for text in chain)), Hygiene(near=0.7))
    assert [problem.id for problem in kept] == ["p0", "p2"]
    assert found(hits) == [("p1", "near-duplicate", "p0")]
    kept, hits = clean(problems(*((text, "1") for text in chain)), Hygiene(duplicates=False))
    assert len(kept) == 3 and not hits


def test_every_rule_against_a_benchmark(tmp_path):
    path = benchmark(
        tmp_path,
        r"Simplify $\sqrt{242}$.",
        "A plane flies 1200 miles in 3 hours at constant speed; how far in 5 hours?",
        LONG + " of the first kind if x = 1.",
        "What is the sum of all primes below ten in base seven?",
    )
    kept, hits = clean(
        problems(
            ("Simplify  $\\sqrt{242}$", "1"),  # under 8 words, the same
            (r"Simplify $\sqrt{242}$. Show every step.", "1"),  # and with a little more
            (r"Simplify $\sqrt{8}$.", "1"),  # another problem
            (r"Simplify $\sqrt{242}$ plus the number of legs on a table of ten spiders", "1"),
            ("A plane flies 900 miles in 2 hours at constant speed; how far in 7 hours?", "1"),
            ("Four coins fall. The chance is m over n. " + LONG + " of it all.", "1"),
            ("What is the sum of all primes below ten in base seven", "1"),
            ("Nothing of the kind was ever asked by anybody before.", "1"),
        ),
        Hygiene(benchmarks=(path,)),
    )
    assert found(hits) == [
        ("p0", "same", "b0"),
        ("p1", "contained", "b0"),
        ("p4", "similar", "b1"),
        ("p5", "run", "b2"),
        ("p6", "same", "b3"),
    ]
    assert [problem.id for problem in kept] == ["p2", "p3", "p7"]
    assert all(hit.where == path and hit.other_question for hit in hits)


def test_a_run_that_many_questions_have_tells_nothing(tmp_path):
    path = benchmark(tmp_path, "Five dice are rolled and the chance is m over n. " + LONG)
    subjects = "cubes spheres cards coins".split()
    ours = problems(*((f"{name} {name[::-1]} {name[1:]}. " + LONG, "1") for name in subjects))
    rules = {"similar": 1.0, "near": 1.0}
    kept, hits = clean(ours, Hygiene(benchmarks=(path,), run_questions=3, **rules))
    assert (len(kept), hits) == (4, [])
    kept, hits = clean(ours, Hygiene(benchmarks=(path,), run_questions=4, **rules))
    assert (len(kept), {hit.rule for hit in hits}) == (0, {"run"})


def test_a_run_of_signs_tells_nothing(tmp_path):
    """The sum of absolute values is 13 pieces long, and stands in both."""
    path = benchmark(tmp_path, "Matrices have square roots: find the least |a| + |b| + |c| + |d|")
    ours = problems(("For a polynomial of degree two find the greatest |a| + |b| + |c| + |d|", "1"))
    assert clean(ours, Hygiene(benchmarks=(path,))) == (ours, [])


def test_a_short_question_of_ours_within_a_benchmarks(tmp_path):
    path = benchmark(tmp_path, "Evaluate log 264 exactly, please", "17 + 4")
    kept, hits = clean(problems(("Evaluate log 264", "1"), ("17 + 4 = x", "1")), Hygiene())
    assert not hits
    _, hits = clean(kept, Hygiene(benchmarks=(path,)))
    assert found(hits) == [("p0", "contained", "b0"), ("p1", "contained", "b1")]


def test_every_hit_is_listed_whatever_the_order_of_files(tmp_path):
    one, two = benchmark(tmp_path, "a b", "c d"), benchmark(tmp_path, "c d", name="two.jsonl")
    ours = problems(("c d", "1"), ("a b", "1"), ("c d", "1"))
    _, hits = clean(ours, Hygiene(benchmarks=(one, two)))
    listed = {(hit.id, hit.other, hit.where) for hit in hits}
    expected = {("p0", "b1", one), ("p2", "b1", one), ("p1", "b0", one)}
    assert listed == expected | {("p0", "b0", two), ("p2", "b0", two)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"near": 0.0}, "Hygiene.near=0.0"),
        ({"similar": 1.5}, "Hygiene.similar=1.5"),
        ({"run_words": 7}, "run_words=7"),
        ({"run_questions": 0}, "run_questions=0"),
    ],
)
def test_rules_that_cannot_work(change, says):
    with pytest.raises(ValueError, match=says):
        Hygiene(**change)


def test_a_missing_benchmark_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        clean(problems(("a", "1")), Hygiene(benchmarks=(str(tmp_path / "nowhere.jsonl"),)))


def test_real_benchmark_questions_are_found(shared_data):
    """AIME's own questions are found in themselves, and GSM8K's traces in GSM8K's test set."""
    folder = shared_data / "benchmarks"
    rows = [json.loads(line) for line in (folder / "math500.jsonl").read_text().splitlines()]
    ours = [Problem(id=r["id"], question=" " + r["question"].upper(), answer="1") for r in rows]
    kept, hits = clean(ours, Hygiene(benchmarks=(str(folder / "math500.jsonl"),)))
    assert not kept  # those of under 8 words too
    assert {hit.id for hit in hits if hit.rule == "same"} == {row["id"] for row in rows}
    kept, hits = clean(ours, Hygiene(benchmarks=(str(folder / "aime24.jsonl"),)))
    assert len(kept) >= 499  # two of the sets share no question
