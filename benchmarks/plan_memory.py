"""`l2s plan`'s memory of a step beside what the step took: resident memory of this process.

    JAX_PLATFORMS=cpu python benchmarks/plan_memory.py [--config configs/sft_arithmetic.py]

Runs the update of a stage 1 recipe on one CPU device, with every position trained, so that no
branch of the loss is spared. Measured is how far the kernel's high-water mark rises over what was
resident before the step; arguments are counted by their arrays. Linux alone has such a mark, and
glibc must give back what is freed at once, which the environment variables below ask for.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp

from l2s_jax.config import load_config
from l2s_jax.plan.compiled import measure
from l2s_jax.plan.memory import tree_bytes
from l2s_jax.plan.programs import of_sft
from l2s_jax.plan.subject import subject_of
from l2s_jax.plan.topologies import here

MIB = 2**20
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


SETTLES = 1.0  # seconds, in which the runtime gives back what the last step took


def resident(field: str) -> int:
    """Bytes, by a field of the kernel's status of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    path = pathlib.Path("configs/sft_arithmetic.py")
    parser.add_argument("--config", type=pathlib.Path, default=path)
    args = parser.parse_args()
    cfg = load_config(args.config)
    planned = of_sft(cfg, subject_of(cfg, args.config), here()).programs[0]
    report = measure(planned, here())
    program = planned.trace().lower().compile()

    def made(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    state, batch = (jax.tree.map(made, planned.arguments[name]) for name in ("state", "batch"))
    batch = dataclasses.replace(
        batch,
        weights=jnp.ones_like(batch.weights),
        segment_ids=jnp.ones_like(batch.segment_ids),
        positions=jnp.broadcast_to(jnp.arange(cfg.row_length), batch.positions.shape),
        num_tokens=jnp.float32(batch.weights.size),
    )
    given = tree_bytes((state, batch))
    rises = []
    for _ in range(3):
        jax.block_until_ready((state, batch))
        time.sleep(SETTLES)
        before = resident("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        state, metrics = program(dataclasses.replace(state, frozen={}), state.frozen, batch)
        jax.block_until_ready((state, metrics))
        rises.append(resident("VmHWM") - before)
    measured = given + rises[-1]
    print(
        f"planned: {report.memory.arguments / MIB:.2f} MiB of arguments (arrays:"
        f" {given / MIB:.2f}), peak {report.memory.peak / MIB:.2f} MiB; measured"
        f" {measured / MIB:.2f} MiB,"
        f" {measured / report.memory.peak - 1:+.1%}; rises {[round(r / MIB, 1) for r in rises]} MiB"
    )


if __name__ == "__main__":
    main()
