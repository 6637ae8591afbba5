"""One compiled training step for any pure loss.

Lives here: `compile_step`, where loss, optimizer and shardings become one program. Not here: the
losses (`objectives`), the loops (`training/sft.py`, `training/grpo.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from l2s_jax.model.decoder import Params
from l2s_jax.model.lora import join
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
    """Compiled `step(state, batch) -> (state, metrics)`; all of `state` but `frozen` is donated."""

    def step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, Metrics]:
        def loss_of_trained(trained: Params) -> tuple[Any, Metrics]:
            return loss_fn(join(trained, frozen), batch)

        (loss, metrics), grads = jax.value_and_grad(loss_of_trained, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    kept = (dataclasses.replace(places, frozen={}), replicated(places.step.mesh))
    compiled = jax.jit(step, donate_argnums=0, out_shardings=kept)

    def step_fn(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        # An argument, and neither a constant of the program nor one of its results: the base lies
        # in memory once, and whoever else holds it keeps it.
        after, metrics = compiled(dataclasses.replace(state, frozen={}), state.frozen, batch)
        return dataclasses.replace(after, frozen=state.frozen), metrics

    return step_fn


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
