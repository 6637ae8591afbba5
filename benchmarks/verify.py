r"""The verifier on labelled pairs, hard negatives, fuzz and hostile texts; its throughput.

    python benchmarks/verify.py --data shared/data [--only PART ...]

Prints one JSON line per measurement. Hard negatives are references changed where models err: sign,
digit, order, bracket, root, unit, off by one; a changed reference that an independent reader calls
equal to the original is left out, so that what is accepted of the rest is a false accept.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import random
import re
import resource
import statistics
import time
from collections.abc import Iterator

from l2s_jax.verify.answers import answer_or_text
from l2s_jax.verify.math import Verifier
from l2s_jax.verify.policy import Policy
from l2s_jax.verify.second import second_opinion

PARTS = ("accuracy", "golds", "negatives", "fuzz", "hostile", "speed")
HOSTILE = (
    "9^{9^{9^{9}}}",
    "10^{10^{9}}",
    "((((99!)!)!)!)!",
    r"\frac{1}{" * 300 + "x" + "}" * 300,
    "{" * 50_000 + "5" + "}" * 50_000,
    "5\0",
    r"\{" + ",".join(f"a_{{{i}}}" for i in range(300)) + r"\}",
    "+".join(f"x^{{{i}}}" for i in range(400)),
    r"\log(" * 40 + "2" + ")" * 40,
    r"\binom{10^{9}}{5 \cdot 10^{8}}",
    r"\sum_{k=1}^{10^{12}} \frac{1}{k}",
    r"\boxed{" * 2000,
    "2^{10^{10}}",
)
"""Each takes for ever, all memory or all of a stack from one who takes it at its word."""

PIECES = (
    r"\frac{ } { \sqrt ^ _ ( ) [ ] \{ \} , + - = < \le \pm \infty \pi \text{ \cup \begin{pmatrix}"
    r" \end{pmatrix} & \\ x y n 1 2 17 0.5 ! | \sin \log \binom \boxed{ % $ \circ and"
    " √ π ² − ½ ° ∞ ٣ ∪ 1,234 0,5 5:30 cm per dozen (A) yes nan == \u202e"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    for part in args.only:
        for result in globals()[f"measure_{part}"](args.data):
            print(json.dumps({"part": part} | result), flush=True)


def records(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure_accuracy(data: pathlib.Path) -> Iterator[dict]:
    for name, answers in (("real_dev", "strict"), ("dev", "strict"), ("dev", "lenient")):
        pairs = records(data / "equivalence" / f"{name}.jsonl")
        with Verifier(policy=Policy(answers=answers)) as verifier:
            verdicts = verifier.equivalent_many([(p["gold"], p["prediction"]) for p in pairs])
        both = [(p["equivalent"], v.equivalent) for p, v in zip(pairs, verdicts, strict=True)]
        yield {
            "file": name,
            "answers": answers,
            "accuracy": sum(a == b for a, b in both) / len(both),
            "false_accepts": both.count((False, True)),
            "false_rejects": both.count((True, False)),
        }


def measure_golds(data: pathlib.Path) -> Iterator[dict]:
    names = ("gsm8k_test", "math500", "aime24", "aime25", "olympiadbench_maths_en", "math_train")
    for name in names:
        golds = [record["answer"] for record in records(data / "benchmarks" / f"{name}.jsonl")]
        neighbours = [p for p in itertools.pairwise(golds) if p[0] != p[1]]
        with Verifier() as verifier:
            itself = verifier.equivalent_many([(gold, gold) for gold in golds])
            beside = verifier.equivalent_many(neighbours)
        equal = [p for p, v in zip(neighbours, beside, strict=True) if v.equivalent]
        told = {"not_itself": [g for g, v in zip(golds, itself, strict=True) if not v.equivalent]}
        told |= {"equal_neighbours": [(*p, second_opinion(*p)) for p in equal]}
        yield {"file": name, "num": len(golds), "num_pairs": len(neighbours)} | told


def negatives(gold: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, wrong answer) of a reference, one of each kind that applies."""
    bare = gold.strip("$")
    numbers = list(re.finditer(r"(?<![\d.])\d+(?![\d.])", bare))
    if numbers:
        at = draw.choice(numbers)
        for kind, other in (
            ("off-by-one", str(int(at[0]) + 1)),
            ("digit", at[0][:-1] + str((int(at[0][-1]) + 5) % 10)),
            ("factor-of-ten", at[0] + "0"),
        ):
            yield kind, bare[: at.start()] + other + bare[at.end() :]
    yield "sign", f"-({bare})" if re.search(r"[+,]", bare) else "-" + bare
    if "+" in bare or "-" in bare[1:]:
        swap = {"+": "-", "-": "+"}
        yield "inner-sign", bare[0] + re.sub(r"[+-]", lambda m: swap[m[0]], bare[1:], count=1)
    if "," in bare and bare.count(",") < 8:
        parts = bare.strip("()[] ").split(",")
        opening, closing = bare[:1], bare[-1:]
        if opening in "([" and closing in ")]":
            yield "order", f"{opening}{','.join(reversed(parts))}{closing}"
        yield "missing", ",".join(bare.split(",")[:-1])
        yield "extra", f"{bare}, 12345"
    if bare[:1] in "([":
        yield "bracket", {"(": "[", "[": "("}[bare[0]] + bare[1:]
    if r"\sqrt" in bare:
        yield "root", bare.replace(r"\sqrt", "", 1)
    if r"\pm" in bare:
        yield "one-root", bare.replace(r"\pm", "+")
    yield "unit", rf"{bare} \cdot 100"


def measure_negatives(data: pathlib.Path) -> Iterator[dict]:
    for name in ("math500", "olympiadbench_maths_en", "math_train"):
        draw = random.Random(0)
        golds = [r["answer"] for r in records(data / "benchmarks" / f"{name}.jsonl")]
        golds = golds if len(golds) < 1000 else draw.sample(golds, 1000)
        made = [(kind, gold, wrong) for gold in golds for kind, wrong in negatives(gold, draw)]
        made = [one for one in made if second_opinion(*one[1:]) is not True]
        with Verifier() as verifier:
            verdicts = verifier.equivalent_many([one[1:] for one in made])
        accepted = [one for one, v in zip(made, verdicts, strict=True) if v.equivalent]
        rate = len(accepted) / len(made)
        yield {"file": name, "num": len(made), "rate": rate, "accepted": accepted[:40]}


def measure_fuzz(data: pathlib.Path) -> Iterator[dict]:
    draw = random.Random(0)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(1, 12))) for _ in range(10_000)]
    with Verifier() as verifier:
        verifier.equivalent("x+1", "1+x")
        start = time.perf_counter()
        verdicts = verifier.equivalent_many([(r"\frac{1}{2}", text) for text in texts])
        took = time.perf_counter() - start
    milliseconds = statistics.median(verdict.seconds for verdict in verdicts) * 1000
    crashed = sum(verdict.reason == "crashed" for verdict in verdicts)
    yield {"num": len(texts), "crashed": crashed, "median_ms": milliseconds, "seconds": took}


def measure_hostile(data: pathlib.Path) -> Iterator[dict]:
    bound, memory_bytes = 5.0, 1 << 30
    hostile = [("7", HOSTILE[i % len(HOSTILE)] + " +0" * (i // len(HOSTILE))) for i in range(64)]
    good = [(f"x+{i}", f"{i}+x") for i in range(64)]
    pairs = [pair for both in zip(hostile, good, strict=True) for pair in both]
    with Verifier(num_workers=4, seconds=bound, memory_bytes=memory_bytes) as verifier:
        start = time.perf_counter()
        verdicts = dict(zip(pairs, verifier.equivalent_many(pairs), strict=True))
        took = time.perf_counter() - start
        processes = [worker.process for worker in verifier._pool.workers]
    yield {
        "num": len(hostile),
        "reasons": collections.Counter(verdicts[pair].reason for pair in hostile),
        "longest_seconds": max(verdict.seconds for verdict in verdicts.values()),
        "accepted": sum(verdicts[pair].equivalent for pair in hostile),
        "others_lost": sum(not verdicts[pair].equivalent for pair in good),
        "workers_left": sum(process.poll() is None for process in processes),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,  # of one worker
        "memory_limit_mib": memory_bytes >> 20,
        "seconds": took,
    }


def measure_speed(data: pathlib.Path) -> Iterator[dict]:
    draw = random.Random(0)
    integers = [(str(draw.randrange(10**6)), str(draw.randrange(10**6))) for _ in range(100_000)]
    prose = "We add the two and see that the sum grows, so that step follows from the last. " * 63
    thoughts = [
        (rf"\frac{{{a}}}{{{a + 1}}}", rf"{prose}So it is $\boxed{{\dfrac{{{a * 2}}}{{{b}}}}}$.")
        for a in range(1, 5001)
        for b in [2 * a + draw.choice([1, 2])]
    ]
    with Verifier() as verifier:
        for name, pairs in (("plain integers", integers), ("5k-character thoughts", thoughts)):
            start = time.perf_counter()
            found = [(gold, answer_or_text(text)) for gold, text in pairs]
            verifier.equivalent_many(found)
            rate = len(pairs) / (time.perf_counter() - start)
            yield {"pairs": name, "pairs_per_second": round(rate), "cores": os.cpu_count()}


if __name__ == "__main__":
    main()
