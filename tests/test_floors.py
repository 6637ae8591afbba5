"""Imports point down the floors, and importing anything touches no device."""

import ast
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

FLOORS = (
    "types config",
    "model sharding",
    "tokens verify data",
    "sampling",
    "objectives",
    "curation training",
    "evaluation export",
    "cli plan",
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
PACKAGE = pathlib.Path(__file__).parents[1] / "l2s_jax"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path.parent.name or not path.name.startswith("_")]


def imported(path: pathlib.Path) -> Iterator[str]:
    """The rooms of l2s_jax that a file imports from, at its top or inside its functions."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):  # absolute only: ruff TID252 bans the rest
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("l2s_jax."))


def test_every_floor_is_read():
    rooms = {path.parts[0].removesuffix(".py") for path in MODULES}
    assert rooms <= set(FLOOR_OF), "give the new room a floor"
    assert {"types", "config", "cli"} <= rooms


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path):
    here = FLOOR_OF[path.parts[0].removesuffix(".py")]
    for name in imported(path):
        if name.startswith("__"):  # the version
            continue
        assert FLOOR_OF[name] <= here, (
            f"{path} (floor {here}) imports {name} (floor {FLOOR_OF[name]})."
            " Take what you need as an argument and let the caller pass it."
        )


def test_importing_touches_no_device():
    """Under a platform that does not exist, the first touch of a device raises."""
    names = [".".join(("l2s_jax", *path.with_suffix("").parts)) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *names],
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
        check=False,  # what it printed belongs into the failure
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
