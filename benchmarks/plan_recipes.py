"""Every recipe's smallest slice, compiled for real: what the headers in configs/ claim.

    python benchmarks/plan_recipes.py [NAME ...]      (of recipes; default: 0.5B, 1.5B and 7B)

A header that says "Smallest: SLICE with --set A=B" is checked: the run must fit there. Prints a
line a recipe, and ends with code 1 if one does not fit. `l2s plan --search` finds what to write.
Needs the extra `plan`.
"""

import pathlib
import re
import subprocess
import sys

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SIZES = ("0p5b", "1p5b", "7b")
CLAIM = re.compile(r"Smallest: (\S+:\S+?)(?: with --set (.+?))?[.,;]?$", re.MULTILINE)


def claim(path: pathlib.Path) -> tuple[str, list[str]] | None:
    """(slice, assignments) of a recipe's header; None where it claims none."""
    found = CLAIM.search(path.read_text().split('"""')[1])
    return None if found is None else (found[1], (found[2] or "").split())


def holds(path: pathlib.Path, where: str, assignments: list[str]) -> bool:
    """True where the plan says that the run fits."""
    command = [sys.executable, "-m", "l2s_jax", "plan", "--config", str(path), "--topology", where]
    command += ["--set", *assignments] if assignments else []
    told = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    sys.stderr.write(told)
    return ": fits\n" in told


def main() -> None:
    named = sys.argv[1:]
    wrong = []
    for path in sorted(CONFIGS.glob("*.py")):
        asked = path.stem in named if named else path.stem.endswith(SIZES)
        found = claim(path) if asked else None
        if asked and found is None:
            print(f"{path.stem}: claims no smallest slice")
        if found is not None:
            fine = holds(path, *found)
            print(f"{path.stem}: {found[0]} {' '.join(found[1])}: {'fits' if fine else 'NO'}")
            wrong += [] if fine else [path.stem]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
