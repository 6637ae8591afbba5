"""Every instant of `Checkpoints and faults`, and random kills, on real processes: a script.

python -m tests.faults.all_instants --out FOLDER [--random 20] [--seed 0] [--runs sft grpo_refresh]
    [--only verification]

A run's faults come one after another, each to the process that went on from the one before; after
each row of faults it is left to finish, and compared with the run that was left alone: params,
optimizer state, data order, sampled ids and metrics, bit for bit. One JSON line per row.
"""

import argparse
import json
import pathlib
import random
import signal
import sys
import time

from tests.faults.world import (
    PATIENCE,
    Trap,
    assert_same,
    drawn,
    fall,
    finish,
    forget,
    make_world,
    notes,
    start,
)

TERM = signal.SIGTERM

COMMON = {
    "killed in its first save": [
        Trap(at="save, before"),
        Trap(at="save, writing"),
        Trap(at="save, unsealed"),
        Trap(at="save, sealed"),
    ],
    "killed in later saves": [
        Trap(at="save, writing", nth=2),
        Trap(at="save, unsealed"),
        Trap(at="save, sealed"),
        Trap(at="save, done"),
    ],
    "killed while an old checkpoint is deleted": [
        Trap(at="save, deleting an old one"),
        Trap(at="save, deleting an old one", nth=2),
    ],
    "killed in an update": [
        Trap(at="update", delay=0.001),
        Trap(at="update", nth=2, delay=0.002),
        Trap(at="update", nth=4, delay=0.001),
    ],
    "stopped while compiling": [Trap(at="update", number=TERM, delay=0.3, is_cold=True)],
    "stopped in an update": [
        Trap(at="update", nth=2, number=TERM),
        Trap(at="update", nth=2, number=TERM, delay=0.001),
    ],
    "stopped in a save": [
        Trap(at="save, writing", number=TERM),
        Trap(at="save, unsealed", number=TERM),
    ],
    "stopped at a save's end": [Trap(at="save, sealed", number=TERM)],
}
# The fourth step of stage 2 ends an epoch of its 16 problems; stage 1's epochs end before saves,
# at them and after them.
GRPO = {
    "killed at an epoch's end": [Trap(at="save, done", nth=2), Trap(at="rollout")],
    "killed between rollout and update": [
        Trap(at="between rollout and update", nth=1),
        Trap(at="between rollout and update", nth=3),
    ],
    "killed in verification": [
        Trap(at="verification", nth=3),
        Trap(at="verification", nth=10),
    ],
    "stopped in a rollout": [
        Trap(at="rollout", nth=3, number=TERM),
        Trap(at="rollout", nth=2, number=TERM, delay=0.01),
    ],
    "stopped in verification": [
        Trap(at="verification", nth=10, number=TERM),
        Trap(at="verification", nth=3, number=TERM),
    ],
}
SFT = {"killed at an epoch's end": [Trap(at="update", nth=n) for n in (3, 4, 5, 6)]}


def tell(**fields) -> None:
    print(json.dumps(fields), flush=True)


def row_of(root: pathlib.Path, name: str, title: str, traps: list[Trap]) -> None:
    """One row of faults; ends the script where anything is not the same."""
    hurt = root / "hurt" / name
    forget(hurt)
    seconds = [round(fall(root, name, hurt, trap), 2) for trap in traps]
    finish(root, name, hurt)
    assert_same(hurt, root / "whole" / name)
    tell(run=name, faults=title, number=len(traps), seconds_to_end=seconds, same=True)


def random_kills(root: pathlib.Path, name: str, number: int, rng: random.Random) -> None:
    """SIGKILL at random instants of a process's life, until so many have hit."""
    whole = root / "whole" / name
    begin = time.monotonic()
    again = root / "again" / name
    finish(root, name, again)
    assert_same(again, whole)
    life = time.monotonic() - begin
    done = 0
    while done < number:
        hurt = root / "hurt" / name
        forget(hurt)
        delays: list[float] = []
        while done < number:
            process = start(root, name, hurt)
            delays.append(round(rng.uniform(0.1, 1.1) * life, 3))
            time.sleep(delays[-1])
            if process.poll() is None:
                process.kill()
                process.end(PATIENCE)
                done += 1
            else:
                assert process.poll() == 0
                break
        finish(root, name, hurt)
        assert_same(hurt, whole)
        steps = sum("step" in line for line in notes(hurt))
        tell(run=name, faults="random", number=done, delays=delays, steps=steps, same=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--random", type=int, default=20, help="kills, over all runs [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="+", default=["sft", "grpo_refresh"])
    parser.add_argument("--only", default="", help="rows of faults that have this in their title")
    args = parser.parse_args()
    root = args.out.resolve()
    root.mkdir(parents=True)
    make_world(root)
    for name in args.runs:
        finish(root, name, root / "whole" / name)
        tell(run=name, faults="none", draws=len(drawn(root / "whole" / name)))
        for title, traps in (COMMON | (SFT if name.startswith("sft") else GRPO)).items():
            if args.only in title:
                row_of(root, name, title, traps)
        random_kills(root, name, -(-args.random // len(args.runs)), random.Random(args.seed))


if __name__ == "__main__":
    sys.exit(main())
