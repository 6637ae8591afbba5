"""One compiled training step for any pure loss.

Lives here: `compile_step`, where loss, optimizer and shardings become one program. Not here: the
losses (`objectives`), the loops (`training/sft.py`, `training/grpo.py`).
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from l2s_jax.sharding import batch_sharding, replicated
from l2s_jax.training.state import TrainState
from l2s_jax.types import Metrics

Loss = Callable[[Any, Any], tuple[Any, Metrics]]
"""`loss(params, batch) -> (scalar, metrics)`, pure; its denominator is in the batch."""


Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Program = tuple[optax.GradientTransformation, TrainState, Step]
"""What a loop needs: the optimizer, the sharding of every leaf of the state, the step."""


def compile_step(
    loss_fn: Loss, optimizer: optax.GradientTransformation, places: TrainState
) -> Step:
    """Jitted `step(state, batch) -> (state, metrics)`; `state` is donated."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(places.step.mesh)))


def check_rows(field: str, num_rows: int, places: TrainState) -> None:
    """Refuses a number of rows that the mesh's data axes cannot share evenly.

    Args:
      field: what the user set, for the message.
    """
    sizes = places.step.mesh.shape
    shares = sizes["data"] * sizes["fsdp"]
    if num_rows % shares:
        raise ValueError(
            f"{field}={num_rows} rows cannot be shared by {shares} devices (mesh data="
            f"{sizes['data']}, fsdp={sizes['fsdp']}). Make it a multiple of {shares}."
        )


def place_batch(batch: Any, places: TrainState) -> Any:
    """The batch on the mesh: rows over the data axes, scalars everywhere."""
    by_row, whole = batch_sharding(places.step.mesh), replicated(places.step.mesh)
    return jax.tree.map(lambda array: jax.device_put(array, by_row if array.ndim else whole), batch)
