"""The tables of docs/stage2_methods.md, from the answers that `stage2_methods.py` left.

    python benchmarks/stage2_table.py --workdir W --seeds 101 102 103 > tables.md

Also writes W/results.jsonl: one line per policy, kind of decoding, and seed, and one for the mean
over seeds. Intervals are those of `evaluation/stats.py`: 95 %, over questions, not over training
runs; this is why every claim is judged on each seed alone.

A claim holds on a seed where all its inequalities do. "Its start" is the policy that a method
began from (`stage2_starts.py`):

    plus        tokens at least 15 % below its start's, right no more than 1 point below
    tldr        tokens fall from long to medium to short; over the three fewer than its start's;
                right at each level no more than 2 points below the start's
    adaptthink  fewer tokens than its start, which always thinks, right no more than 1 point below;
                no collapse: at least 1/2 EASY at level 3 and at most 1/2 at level 8
    thinkless   the same
    dapo        no collapse: at temperature 1 right more often than its start and no less often than
                the control, with at least half of its start's entropy

"right" and "tokens" without more are of greedy answers by the policy's own route.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from stage2_starts import START_OF

from l2s_jax.data.arithmetic import LEVELS
from l2s_jax.data.store import replace_file
from l2s_jax.evaluation.records import Answer, is_short, read_records
from l2s_jax.evaluation.stats import (
    Estimate,
    Value,
    accuracy,
    estimate,
    paired_difference,
    right,
    tokens,
)

ASKED = ("long", "medium", "short")
POLICIES = ("sft", "plus", "undecided", "adaptthink", "thinkless", "weak", "dapo", "grpo")
Table = list[list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """All answers, and entropies by policy and seed."""

    greedy: list[Answer]
    drawn: list[Answer]
    entropy: dict[tuple[str, int], float]
    seeds: tuple[int, ...]

    def of(
        self,
        stage: str,
        *,
        drawn: bool = False,
        mode: str = "auto",
        seed: int | None = None,
        level: int | None = None,
    ) -> list[Answer]:
        """A policy's answers in a mode, perhaps only those of a seed or a level."""
        answers = self.drawn if drawn else self.greedy
        return [
            a
            for a in answers
            if (a["stage"], a["mode"]) == (stage, mode)
            and seed in (None, a["seed"])
            and level in (None, a["level"])
        ]

    def has(self, stage: str, seed: int | None = None) -> bool:
        """True where a policy was measured on this seed; None: on all of them."""
        seeds = self.seeds if seed is None else (seed,)
        return all((stage, one) in self.entropy for one in seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    args = parser.parse_args()
    found = read(args.workdir, args.seeds)
    lines = [json.dumps(line) + "\n" for line in results(found)]
    replace_file(args.workdir / "results.jsonl", "".join(lines).encode())
    parts = {
        "Claims": claims_table(found),
        "All levels": main_table(found),
        "By level": level_table(found),
        "Forced routes": forced_table(found),
        "TLDR, by what was asked": asked_table(found),
    }
    print("\n\n".join(f"## {title}\n\n{markdown(table)}" for title, table in parts.items()))


def read(workdir: pathlib.Path, seeds: Sequence[int]) -> Measured:
    """What was measured of these seeds."""
    numbers = [json.loads(p.read_text()) for p in sorted((workdir / "entropy").glob("*.json"))]
    return Measured(
        greedy=[a for a in read_records(workdir / "greedy" / "records") if a["seed"] in seeds],
        drawn=[a for a in read_records(workdir / "sampled" / "records") if a["seed"] in seeds],
        entropy={(n["name"], n["seed"]): n["entropy"] for n in numbers},
        seeds=tuple(seeds),
    )


def judge(found: Measured, name: str, seed: int) -> bool:
    """Whether a method does on a seed what its paper claims in kind."""

    def mean(stage: str, value: Value, drawn: bool = False, level: int | None = None) -> float:
        return estimate(found.of(stage, drawn=drawn, seed=seed, level=level), value).mean

    if name == "tldr":
        before = [mean(f"reader-{level}", tokens) for level in ASKED]
        after = [mean(f"tldr-{level}", tokens) for level in ASKED]
        worse = [mean(f"reader-{k}", right) - mean(f"tldr-{k}", right) for k in ASKED]
        falls = after[0] > after[1] > after[2]
        return falls and sum(after) < sum(before) and max(worse) <= 0.02
    start = START_OF[name]
    if name == "dapo":
        drawn = [mean(stage, right, drawn=True) for stage in (start, "grpo", "dapo")]
        spread = found.entropy["dapo", seed] >= found.entropy[start, seed] / 2
        return spread and drawn[0] < drawn[2] >= drawn[1]
    saved = 1 - mean(name, tokens) / mean(start, tokens)
    kept = mean(name, right) >= mean(start, right) - 0.01
    if name == "plus":
        return kept and saved >= 0.15
    routed = mean(name, easy, level=LEVELS[0]) >= 0.5 >= mean(name, easy, level=LEVELS[-1])
    return kept and saved > 0 and routed


def verdict(found: Measured, name: str, seed: int) -> str:
    """In a word, whether a method does what is claimed."""
    needed = {"tldr": [f"{n}-{k}" for n in ("reader", "tldr") for k in ASKED]}
    needed |= {"dapo": ["weak", "dapo", "grpo"]}
    if not all(found.has(stage, seed) for stage in needed.get(name, [START_OF[name], name])):
        return "not measured"
    return "yes" if judge(found, name, seed) else "**no**"


def claims_table(found: Measured) -> Table:
    """Method, and for each seed whether it does what is claimed."""
    rows = [["method", *[f"seed {seed}" for seed in found.seeds]]]
    for name in ("tldr", "adaptthink", "thinkless", "dapo", "plus"):
        rows.append([f"`{name}`", *[verdict(found, name, seed) for seed in found.seeds]])
    return rows


def main_table(found: Measured) -> Table:
    """One row per policy, the means over seeds with intervals; starts before who began there."""
    heads = "policy|right|less its start's|tokens|less its start's|by seed|EASY"
    rows = [[*heads.split("|"), "right at T=1", "tokens at T=1", "entropy, nats, by seed"]]
    for name in filter(found.has, POLICIES):
        ours, drawn = found.of(name), found.of(name, drawn=True)
        more_right = more_tokens = ""
        if name in START_OF:
            base = found.of(START_OF[name])
            more_right = show(paired_difference(ours, base, right), 3)
            more_tokens = show(paired_difference(ours, base, tokens), 1)
        by_seed = [f"{estimate(found.of(name, seed=s), tokens).mean:.1f}" for s in found.seeds]
        nats = [found.entropy[name, seed] for seed in found.seeds]
        rows.append(
            [
                f"`{name}`",
                show(accuracy(ours), 3),
                more_right,
                show(estimate(ours, tokens), 1),
                more_tokens,
                " ".join(by_seed),
                f"{estimate(ours, easy).mean:.2f}",
                show(accuracy(drawn), 3),
                show(estimate(drawn, tokens), 1),
                " ".join(f"{n:.3f}" for n in nats),
            ]
        )
    return rows


def level_table(found: Measured) -> Table:
    """Right / tokens / EASY share of each level."""
    rows = [["policy", *[f"level {level}" for level in LEVELS]]]
    for name in filter(found.has, POLICIES):
        cells = []
        for level in LEVELS:
            answers = found.of(name, level=level)
            values = [estimate(answers, value).mean for value in (right, tokens, easy)]
            cells.append("{:.3f} / {:.1f} / {:.2f}".format(*values))
        rows.append([f"`{name}`", *cells])
    return rows


def forced_table(found: Measured) -> Table:
    """What is left of each route where it is forced."""
    rows = [["policy", "long: right", "long: tokens", "short: right", "short: tokens"]]
    for name in filter(found.has, POLICIES):
        row = [f"`{name}`"]
        for mode in ("force-long", "force-short"):
            answers = found.of(name, mode=mode)
            row += [show(accuracy(answers), 3), show(estimate(answers, tokens), 1)]
        rows.append(row)
    return rows


def asked_table(found: Measured) -> Table:
    """TLDR and its start by the level that was asked for; last how far long and short are apart."""
    rows = [["policy", "asked", "right", "tokens", "by seed", "EASY", "right at T=1"]]
    rows[0].append("tokens at T=1")
    for policy in ("reader", "tldr"):
        names = [f"{policy}-{asked}" for asked in ASKED]
        if not all(map(found.has, names)):
            continue
        for name, asked in zip(names, ASKED, strict=True):
            ours, drawn = found.of(name), found.of(name, drawn=True)
            by_seed = [f"{estimate(found.of(name, seed=s), tokens).mean:.1f}" for s in found.seeds]
            row = [f"`{policy}`", asked, show(accuracy(ours), 3), show(estimate(ours, tokens), 1)]
            row += [" ".join(by_seed), f"{estimate(ours, easy).mean:.2f}"]
            row += [show(accuracy(drawn), 3), show(estimate(drawn, tokens), 1)]
            rows.append(row)
        apart = [
            paired_difference(
                found.of(names[0], drawn=drawn), found.of(names[-1], drawn=drawn), tokens
            )
            for drawn in (False, True)
        ]
        rows.append([f"`{policy}`", "long less short", "", show(apart[0], 1), "", "", ""])
        rows[-1].append(show(apart[1], 1))
    return rows


def results(found: Measured) -> list[dict[str, Any]]:
    """The lines of results.jsonl."""
    lines = []
    for name in sorted({a["stage"] for a in found.greedy}):
        seeds = [seed for seed in found.seeds if found.has(name, seed)]
        for drawn in (False, True):
            for seed in (*seeds, None):
                answers = found.of(name, drawn=drawn, seed=seed)
                head = {
                    "policy": name,
                    "decoding": "temperature 1" if drawn else "greedy",
                    "seeds": seeds if seed is None else [seed],
                }
                values = {"right": right, "tokens": tokens, "easy": easy}
                lines.append(
                    head | {k: dataclasses.asdict(estimate(answers, v)) for k, v in values.items()}
                )
    return lines


def easy(answer: Answer) -> float:
    """1 for an answer by the short path."""
    return float(is_short(answer))


def show(value: Estimate, digits: int) -> str:
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def markdown(table: Table) -> str:
    """The rows as a table; the first is its head."""
    rule = ["---"] * len(table[0])
    return "\n".join("| " + " | ".join(row) + " |" for row in (table[0], rule, *table[1:]))


if __name__ == "__main__":
    main()
