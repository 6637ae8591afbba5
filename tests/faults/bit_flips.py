"""Flipped bits in the newest checkpoint of a real run, one at a time: a script.

python -m tests.faults.bit_flips --out FOLDER [--number 100] [--seed 0]

Half of them fall where the bytes are, half on a file drawn evenly, so that small ones get their
share. After each, the run's state is restored as a resuming run restores it, and must be that of
the step before, bit for bit. Ends with the first that is not noticed.
"""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import random
import shutil

import jax
import numpy as np

from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.checkpoint import FOLDER, Checkpoints, step_folders
from l2s_jax.training.optim import make_optimizer
from l2s_jax.training.policy import load_policy
from l2s_jax.training.state import begin_state, state_shardings
from tests.faults.world import arrays, finish, make_world
from tests.training.resumable import NUM_STEPS, OPTIM


def state_of(workdir: pathlib.Path, num_steps: int):
    """Shapes, types and places of the run's state."""
    policy, optimizer = load_policy(workdir), make_optimizer(OPTIM, num_steps)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = begin_state(policy.params, optimizer, state_shardings(policy.model, optimizer, mesh))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def draw(files: list[pathlib.Path], rng: random.Random, is_even: bool) -> tuple[pathlib.Path, int]:
    sizes = [path.stat().st_size for path in files]
    [path] = rng.choices(files, None if is_even else sizes)
    return path, rng.randrange(8 * path.stat().st_size)


def flip(path: pathlib.Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def restore(workdir: pathlib.Path, like) -> tuple[dict[str, np.ndarray], int, str]:
    """The arrays of the state that a resuming run gets, its step, and what it is told."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore(like)
    assert found is not None
    params = jax.tree_util.tree_leaves_with_path(found.state.params)
    values = {"params" + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in params}
    return values, int(found.state.step), said.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    root, rng = args.out.resolve(), random.Random(args.seed)
    root.mkdir(parents=True)
    make_world(root)
    finish(root, "sft", root / "run")
    steps = step_folders(root / "run" / FOLDER)
    newest, before = max(steps), min(steps)
    like, want = state_of(root / "run", NUM_STEPS["sft"]), arrays(steps[before])
    kinds: collections.Counter[str] = collections.Counter()
    copy = root / "copy"
    for number in range(args.number):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root / "run", copy)
        there = copy / FOLDER / str(newest)
        files = sorted(p for p in there.rglob("*") if p.is_file() and p.stat().st_size)
        path, bit = draw(files, rng, is_even=number % 2 == 1)
        flip(path, bit)
        values, step, said = restore(copy, like)
        assert step == before and f"going on from step {before}" in said, (path, bit)
        assert all(values[name].tobytes() == want[name].tobytes() for name in values)
        kinds["array data" if "d" in path.relative_to(there).parts else "other"] += 1
    print(json.dumps({"flips": args.number, "found": args.number, "in": kinds}))


if __name__ == "__main__":
    main()
