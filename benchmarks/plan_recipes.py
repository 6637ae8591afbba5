"""Every recipe's smallest slices, compiled for real: what the headers in configs/ claim.

    python benchmarks/plan_recipes.py [NAME ...]      (of recipes; default: 0.5B, 1.5B and 7B)

A line of a header that says "Smallest: SLICE with --set A=B" is checked: the run must fit there.
Prints a line for each, and ends with code 1 if one does not fit. `l2s plan --search` finds what to
write. Needs the extra `plan`.
"""

import pathlib
import re
import subprocess
import sys

from l2s_jax.cli.main import NO_FIT

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SIZES = ("0p5b", "1p5b", "7b")
CLAIM = re.compile(r"Smallest: (\S+:\S+?)(?: with --set (.+?))?[.,;]?$", re.MULTILINE)


def claims(path: pathlib.Path) -> list[tuple[str, list[str]]]:
    """(slice, assignments) for each claim of a recipe's header."""
    header = path.read_text().split('"""')[1]
    return [(where, settings.split()) for where, settings in CLAIM.findall(header)]


def holds(path: pathlib.Path, where: str, assignments: list[str]) -> bool:
    """True where the plan says that the run fits."""
    command = [sys.executable, "-m", "l2s_jax", "plan", "--config", str(path), "--topology", where]
    command += ["--set", *assignments] if assignments else []
    code = subprocess.run(command, check=False).returncode
    if code not in (0, NO_FIT):
        sys.exit(code)
    return code == 0


def main() -> None:
    named = sys.argv[1:]
    wrong = []
    for path in sorted(CONFIGS.glob("*.py")):
        if path.stem not in named if named else not path.stem.endswith(SIZES):
            continue
        found = claims(path)
        if not found:
            print(f"{path.stem}: claims no smallest slice")
        for where, assignments in found:
            fine = holds(path, where, assignments)
            print(f"{path.stem}: {where} {' '.join(assignments)}: {'fits' if fine else 'NO'}")
            wrong += [] if fine else [path.stem]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
