"""What a checkpoint costs, and which part of that are its digests.

python benchmarks/checkpoints.py [--mib 600] [--times 3]

A state of random float32, as parameters and two moments, is saved and restored; the digests are
then made once more by themselves, of the same arrays and the same files.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from l2s_jax.training import manifest
from l2s_jax.training.checkpoint import FOLDER, Checkpoints
from l2s_jax.training.digests import digests
from l2s_jax.training.state import TrainState

WIDTH, LEAVES = 1024, 8

compiled = jax.jit(digests)


def seconds(act: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(act())
    return time.perf_counter() - begin


def make_state(mib: int) -> TrainState:
    rows = mib * 2**20 // 4 // 3 // LEAVES // WIDTH

    def tree(seed: int) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.key(seed), LEAVES)
        return {f"w{i}": jax.random.normal(key, (rows, WIDTH)) for i, key in enumerate(keys)}

    moments = {"first": tree(1), "second": tree(2)}
    return TrainState(step=jnp.int32(0), params=tree(0), opt_state=moments, skipped=jnp.int32(0))


def restored_state(checkpoints: Checkpoints, like: TrainState) -> TrainState:
    found = checkpoints.restore(like)
    assert found is not None
    return found.state


def once(state: TrainState, workdir: pathlib.Path) -> dict[str, float]:
    with Checkpoints(workdir) as checkpoints:
        begin = time.perf_counter()
        checkpoints.save(state)
        blocking = time.perf_counter() - begin
        checkpoints.wait()
        saving = time.perf_counter() - begin
        folder = workdir / FOLDER / "0"
        arrays = manifest.read(folder)["arrays"]
        found = {
            "save_blocking": blocking,
            "save": saving,
            "digests_of_arrays": seconds(lambda: compiled(state)),
            "digests_of_files": seconds(lambda: manifest.write(folder, arrays)),
            "verify_files": seconds(lambda: manifest.faults(folder)),
        }
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
        )
        found["restore"] = seconds(lambda: restored_state(checkpoints, shapes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=600)
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    state = jax.block_until_ready(make_state(args.mib))
    jax.block_until_ready(compiled(state))
    runs = []
    for _ in range(args.times):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(once(state, pathlib.Path(folder)))
    median = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    print(json.dumps({"mib": args.mib, "device": str(jax.devices()[0])} | median))


if __name__ == "__main__":
    main()
