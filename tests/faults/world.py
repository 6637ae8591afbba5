"""Runs to be killed: their folders, their processes, and how two of them are compared."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from l2s_jax.training.checkpoint import FOLDER, step_folders
from l2s_jax.training.metrics import FILE
from l2s_jax.training.policy import save_policy
from tests.faults.nursery import Nursery, Run
from tests.training.resumable import NUM_STEPS
from tests.training.tiny import taught_policy, untaught_policy, write_curation

REPOSITORY = pathlib.Path(__file__).parents[2]
PATIENCE = 600  # seconds; a process that takes longer hangs
CLOCK = re.compile("second|rate|mfu|memory|time|bytes")  # metrics that no two runs have in common

CONFIG = """
import pathlib
from tests.training.resumable import make_runs

def get_config():
    return make_runs(pathlib.Path({root!r}))[{name!r}][1]
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trap:
    """When a signal comes: at the nth passing of a place, or `delay` seconds later."""

    at: str
    nth: int = 1
    number: int = signal.SIGKILL
    delay: float = 0.0
    is_cold: bool = False  # nothing compiled before is at hand


def make_world(root: pathlib.Path) -> None:
    """What runs start from, and a config file for each."""
    save_policy(root / "base", untaught_policy())
    save_policy(root / "taught", taught_policy())
    write_curation(root / "curated")
    for name in NUM_STEPS:
        (root / f"{name}.py").write_text(CONFIG.format(root=str(root), name=name))


def start(root: pathlib.Path, name: str, workdir: pathlib.Path, trap: Trap | None = None) -> Run:
    """`l2s sft` or `l2s grpo` in a process of its own, on one device."""
    verb = name.split("_")[0]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    env = {
        "L2S_NOTES": str(notes_of(workdir)),
        "L2S_TRAP": json.dumps(dataclasses.asdict(trap) if trap else {}),
    }
    arguments = [verb, "--config", str(root / f"{name}.py"), "--workdir", str(workdir)]
    return nursery(root).start(arguments, env, root / "said")


@functools.cache
def nursery(root: pathlib.Path) -> Nursery:
    """Where the runs of a world come from: on one device, what is compiled kept beside them."""
    env = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return Nursery(env, REPOSITORY)


def finish(root: pathlib.Path, name: str, workdir: pathlib.Path) -> str:
    """The run, or the rest of it, with no trap; what it said."""
    code, said = start(root, name, workdir).end(PATIENCE)
    assert code == 0, said[-4000:]
    return said


def fall(root: pathlib.Path, name: str, workdir: pathlib.Path, trap: Trap) -> float:
    """The run until its trap; checks how it ended. Seconds from the signal to the end."""
    code, said = start(root, name, workdir, trap).end(PATIENCE)
    ended = time.time()
    sent = [line for line in notes(workdir) if "signal" in line]
    assert sent and sent[-1]["at"] == trap.at, f"{trap} did not snap: {code} {said[-2000:]}"
    want = -trap.number if trap.number == signal.SIGKILL else 128 + trap.number
    assert code == want, f"{trap}: exit code {code} {said[-4000:]}"
    return ended - sent[-1]["time"]


# ---- what a run leaves ----


def notes_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.parent / f"{workdir.name}.notes"


def notes(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What the run's processes noted; a kill may cut a line."""
    lines = notes_of(workdir).read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def drawn(workdir: pathlib.Path) -> dict[str, str]:
    """Step → its batch, and key with requests → what was sampled.

    A step that was done again after a kill must have got the same.
    """
    found: dict[str, str] = {}
    for line in notes(workdir):
        if "signal" in line:
            continue
        if "step" in line:
            name, value = f"step {line['step']}", line["batch"]
        else:
            name, value = f"{line['key']} {line['requests']}", line["rollouts"]
        assert found.setdefault(name, value) == value, f"{workdir}: {name} was not the same again"
    return found


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, as it is on disk."""
    found = {}
    for part in ("params", "rest"):
        at: Any = folder / part
        tree = ocp.PyTreeCheckpointHandler().restore(
            at, args=ocp.args.PyTreeRestore(restore_args=_as_numpy(at))
        )
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {part + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def _as_numpy(folder: Any) -> Any:
    tree: Any = ocp.PyTreeCheckpointHandler().metadata(folder)
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree.tree)


def numbers(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The metrics, without those that a clock gave."""
    lines = (workdir / FILE).read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not CLOCK.search(k)} for x in lines]


def assert_same(got: pathlib.Path, want: pathlib.Path) -> None:
    """Params, optimizer state, data order, sampled ids and metrics, all to the last bit."""
    a, b = (step_folders(workdir / FOLDER) for workdir in (got, want))
    assert max(a) == max(b)
    left, right = arrays(a[max(a)]), arrays(b[max(b)])
    assert left.keys() == right.keys() and len(left) > 4
    for path in left:
        assert left[path].dtype == right[path].dtype, path
        assert left[path].tobytes() == right[path].tobytes(), path
    assert drawn(got) == drawn(want)
    assert numbers(got) == numbers(want)


def forget(workdir: pathlib.Path) -> None:
    shutil.rmtree(workdir, ignore_errors=True)
    notes_of(workdir).unlink(missing_ok=True)
