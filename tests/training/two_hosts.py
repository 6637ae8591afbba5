"""One of two processes that save and restore together: `python -m tests.training.two_hosts`.

Each holds half of every array. Arguments: this one's number, the address at which they meet, the
workdir; and, to restore, the step that must come back.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from l2s_jax.training.checkpoint import Checkpoints
from l2s_jax.training.retention import KeepConfig
from l2s_jax.training.state import TrainState


def make_state(step: int) -> TrainState:
    mesh = jax.make_mesh((2,), ("data",))
    halves, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))

    def values(seed: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), (64, 32)) + step

    made = jax.jit(values, static_argnums=0, out_shardings=halves)
    number = jax.jit(lambda: jnp.int32(step), out_shardings=whole)()
    zero = jax.jit(lambda: jnp.int32(0), out_shardings=whole)()
    return TrainState(number, {"w": made(0)}, {"moment": made(1)}, zero)


def main(number: int, address: str, workdir: str, wanted: int | None) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    assert jax.process_count() == 2 and len(jax.local_devices()) == 1
    with Checkpoints(pathlib.Path(workdir), keep=KeepConfig(newest=2)) as checkpoints:
        if wanted is None:
            for step in (2, 4, 6):
                checkpoints.save(make_state(step), {"at": step})
            return
        found = checkpoints.restore(make_state(0))
        assert found is not None and found.record == {"at": wanted}
        want = make_state(wanted)
        same = jax.jit(lambda a, b: jax.tree.map(lambda x, y: jnp.all(x == y), a, b))
        assert all(jax.tree.leaves(jax.device_get(same(found.state, want))))
        checkpoints.save(make_state(8), {"at": 8})  # they still agree on what is on disk


if __name__ == "__main__":
    arguments = sys.argv[1:]
    last = int(arguments[3]) if len(arguments) > 3 else None
    main(int(arguments[0]), arguments[1], arguments[2], last)
