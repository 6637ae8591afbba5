"""One compiled training step for any pure loss.

Lives here: `compile_step`, where loss, optimizer and shardings become one program. Not here: the
losses (`objectives`), micro-batches (`training/microbatches.py`), what a loop does about skipped
steps (`training/guard.py`), the loops (`training/sft.py`, `training/grpo.py`).

A loss or gradient that is not finite changes nothing: parameters and optimizer state stay bit for
bit, and the step is counted as skipped. Adam's moments would carry one nan to the end of the run.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from l2s_jax.model.decoder import Params
from l2s_jax.model.lora import join
from l2s_jax.sharding import (
    batch_sharding,
    num_row_shards,
    replicated,
    settled,
    timed_sharding,
)
from l2s_jax.training.hosts import place
from l2s_jax.training.microbatches import Loss, gradients
from l2s_jax.training.rounding import round_by_chance
from l2s_jax.training.state import TrainState
from l2s_jax.types import Metrics


@dataclasses.dataclass(frozen=True)
class Step:
    """`step(state, batch) -> (state, metrics)`; all of `state` but `frozen` is donated."""

    program: jax.stages.Wrapped  # of (state without `frozen`, `frozen`, batch)
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        # An argument, and neither a constant of the program nor one of its results: the base lies
        # in memory once, and whoever else holds it keeps it.
        after, metrics = settled(self.program(*self.arguments(state, batch)), self.mesh)
        return dataclasses.replace(after, frozen=state.frozen), metrics

    @staticmethod
    def arguments(state: TrainState, batch: Any) -> tuple[TrainState, Params, Any]:
        """What the program is called with; shapes do as well as arrays."""
        return dataclasses.replace(state, frozen={}), state.frozen, batch


Program = tuple[optax.GradientTransformation, TrainState, Step]
"""What a loop needs: the optimizer, the sharding of every leaf of the state, the step."""


def compile_step(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    places: TrainState,
    *,
    num_microbatches: int = 1,
) -> Step:
    """The step of a run, compiled when it is first called.

    Args:
      num_microbatches: parts that go through the model in turn; each array of a batch is cut into
        as many by rows. The result is that of the whole batch.
    """

    def step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, Metrics]:
        def loss_of_trained(trained: Params, part: Any) -> tuple[Any, Metrics]:
            return loss_fn(join(trained, frozen), part)

        loss, metrics, grads = gradients(
            loss_of_trained, state.params, batch, places, num_microbatches
        )
        norm = optax.tree.norm(grads)  # no number if any gradient is none
        fine = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        after = TrainState(
            step=state.step + 1,
            params=_keep(fine, apply(updates, state.params, state.step), state.params),
            opt_state=_keep(fine, opt_state, state.opt_state),
            skipped=jnp.where(fine, 0, state.skipped + 1),
        )
        told = {"skipped": 1.0 - fine, "skips_in_a_row": after.skipped.astype(jnp.float32)}
        return after, metrics | {"loss": loss, "grad_norm": norm} | told

    kept = (dataclasses.replace(places, frozen={}), replicated(places.step.mesh))
    return Step(jax.jit(step, donate_argnums=0, out_shardings=kept), places.step.mesh)


def apply(updates: Any, params: Params, step: Int[Array, ""]) -> Params:
    """The parameters after an update; those kept in bfloat16 are rounded by chance.

    The draw is named by the step and the leaf, so that a resumed run makes it again.
    """
    key = jax.random.fold_in(jax.random.key(0), step)
    leaves, tree = jax.tree.flatten(params)
    moved = []
    for index, (old, update) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        new = old.astype(jnp.float32) + update.astype(jnp.float32)
        if old.dtype == jnp.bfloat16:
            new = round_by_chance(jax.random.fold_in(key, index), new)
        moved.append(new)
    return tree.unflatten(moved)


def _keep(fine: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)


def check_row_length(field: str, row_length: int, mesh: Mesh) -> None:
    """Refuses rows that the mesh's context axis cannot cut evenly."""
    parts = mesh.shape["context"]
    # Kernels cut time in tiles of 128.
    unit = parts * 128 if mesh.devices.flat[0].platform == "tpu" else parts
    if parts > 1 and row_length % unit:
        raise ValueError(
            f"{field}={row_length} tokens cannot be cut over mesh context={parts}. Make it a"
            f" multiple of {unit}."
        )


def check_rows(field: str, num_rows: int, places: TrainState, *, num_microbatches: int = 1) -> None:
    """Refuses a number of rows that micro-batches and the mesh's data axes cannot share evenly.

    Args:
      field: what the user set, for the message.
    """
    sizes = places.step.mesh.shape
    shares = num_row_shards(places.step.mesh) * num_microbatches
    if num_rows % shares:
        parts = f" in {num_microbatches} micro-batches" if num_microbatches > 1 else ""
        raise ValueError(
            f"{field}={num_rows} rows cannot be shared by {shares // num_microbatches} devices"
            f" (mesh data={sizes['data']}, fsdp={sizes['fsdp']}){parts}. Make it a multiple of"
            f" {shares}."
        )


def batch_places(batch: Any, places: TrainState) -> Any:
    """Where the arrays of a batch lie: rows over the data axes, their time over context."""
    mesh, timed = places.step.mesh, getattr(batch, "TIMED", ())

    def place(path: Any, array: Any) -> NamedSharding:
        if not array.ndim:
            return replicated(mesh)
        is_timed = getattr(path[0], "name", None) in timed
        return timed_sharding(mesh) if is_timed else batch_sharding(mesh)

    return jax.tree_util.tree_map_with_path(place, batch)


def place_batch(batch: Any, places: TrainState) -> Any:
    """The batch on the mesh."""
    return jax.tree.map(place, batch, batch_places(batch, places))
