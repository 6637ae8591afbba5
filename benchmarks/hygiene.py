"""What the rules for copied questions find, and what they find by mistake.

Three measurements, on benchmarks as JSON lines (id, question, answer):
- recall: GSM-Plus holds GSM8K's test questions changed in eight ways (`seed_question`, `subject`);
  the share of each that is found against its own seed, for thresholds of `similar`, and for a
  shared run of 8 and of 13 words without any other condition (the rule of many, open-r1's among
  them, is 8);
- hits: a training set against a test set drawn apart from it; read them with --show, as a few are
  true (the same template with other numbers);
- duplicates within a set, and how many a rule without the numbers or the reference would add.

    python benchmarks/hygiene.py --folder ../shared/data/benchmarks [--show 5]

Prints one JSON line a measurement.
"""

import argparse
import collections
import json
import pathlib
import random
import time

from l2s_jax.curation.hygiene import Hit, Hygiene, clean
from l2s_jax.data.similar import runs, shingles, similar_pairs, similarity, without_numbers, words
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.types import Problem

THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8)
PAIRS = (("gsm8k_train", "gsm8k_test"), ("math_train", "math500"), ("math_train", "aime24"),
         ("math_train", "olympiadbench_maths_en"), ("mawps", "gsm8k_test"))  # fmt: skip
SETS = ("gsm8k_train", "math_train", "mawps", "svamp", "olympiadbench_maths_en")


def read(path: pathlib.Path) -> list[Problem]:
    return JsonlProblems(path=str(path), level=None).load()


def recall(path: pathlib.Path) -> None:
    """One line for each way in which questions were changed."""
    by_change = collections.defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_change[row["subject"]].append((words(row["question"]), words(row["seed_question"])))
    for change, pairs in by_change.items():
        values = [similarity(*(shingles(without_numbers(said)) for said in pair)) for pair in pairs]
        shared = {
            length: sum(
                bool(set(runs(one, length)) & set(runs(other, length))) for one, other in pairs
            )
            for length in (8, 13)
        }
        found = {f"similar>={t}": sum(v >= t for v in values) / len(values) for t in THRESHOLDS}
        found |= {f"run of {length}": number / len(pairs) for length, number in shared.items()}
        print(json.dumps({"change": change, "pairs": len(pairs), **_rounded(found)}))


def contamination(folder: pathlib.Path, train: str, test: str, show: int) -> None:
    """Hits of every rule, and those of a shared run of 8 words."""
    problems, path = read(folder / f"{train}.jsonl"), folder / f"{test}.jsonl"
    start = time.perf_counter()
    cfg = Hygiene(benchmarks=(str(path),), duplicates=False)
    kept, hits = clean(problems, cfg)
    seconds = time.perf_counter() - start
    rules = dict(collections.Counter(hit.rule for hit in hits))
    ours, theirs = ([words(p.question) for p in some] for some in (problems, read(path)))
    line = {"train": train, "test": test, "pairs": rules, "left_out": len(problems) - len(kept)}
    line |= {"pairs_of_a_run_of_8": shared_runs(ours, theirs, 8), "seconds": round(seconds, 2)}
    print(json.dumps(line))
    tell(hits, show)


def shared_runs(ours: list[tuple[str, ...]], theirs: list[tuple[str, ...]], length: int) -> int:
    """Pairs with any run of so many words in common."""
    places = collections.defaultdict(set)
    for j, said in enumerate(theirs):
        for run in runs(said, length):
            places[run].add(j)
    return sum(len({j for run in runs(said, length) for j in places.get(run, ())}) for said in ours)


def duplicates(folder: pathlib.Path, name: str, show: int) -> None:
    """Copies within one set; and pairs as similar, whatever their numbers and references."""
    problems = read(folder / f"{name}.jsonl")
    start = time.perf_counter()
    _, hits = clean(problems, Hygiene())
    seconds = time.perf_counter() - start
    sets = [shingles(words(problem.question)) for problem in problems]
    pairs = sum(i < j for i, j, _ in similar_pairs(sets, sets, Hygiene().near))
    rules = dict(collections.Counter(hit.rule for hit in hits))
    line = {"set": name, "questions": len(problems), "hits": rules}
    print(json.dumps(line | {"pairs_on_shingles_alone": pairs, "seconds": round(seconds, 2)}))
    tell(hits, show)


def tell(hits: list[Hit], show: int) -> None:
    for hit in random.Random(0).sample(hits, min(show, len(hits))):
        print(f"  {hit.rule} {hit.similarity:.2f} {hit.id} {hit.other}")
        print(f"    {hit.question[:300]!r}\n    {hit.other_question[:300]!r}")


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 3) for name, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--show", type=int, default=0, help="hits to print of each measurement")
    args = parser.parse_args()
    recall(args.folder / "gsm_plus_testmini.jsonl")
    for train, test in PAIRS:
        contamination(args.folder, train, test, args.show)
    for name in SETS:
        duplicates(args.folder, name, args.show)


if __name__ == "__main__":
    main()
