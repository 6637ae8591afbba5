"""A batch that is too large to go through the model at once.

Lives here: `gradients` and `metrics_of`, which cut a batch by rows (`cut_rows`) and add up what the
parts give. Not here: the step around it (`training/step.py`), which rollouts share a part
(`training/rollouts.py`).

A loss is a sum over its rows divided by counts over the whole step, and these counts are scalars
of the batch that every part reads. So parts add up exactly: no mean of means, whose weights would
depend on how the batch was cut. Metrics add up too; those named `max_...` are joined by maximum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from l2s_jax.model.decoder import Params
from l2s_jax.sharding import BATCH
from l2s_jax.training.state import TrainState
from l2s_jax.types import Metrics

Loss = Callable[[Any, Any], tuple[Any, Metrics]]
"""`loss(params, batch) -> (scalar, metrics)`, pure; its denominator is in the batch."""

Sums = tuple[Float[Array, ""], Metrics, Params]


def gradients(loss_fn: Loss, params: Params, batch: Any, places: TrainState, num: int) -> Sums:
    """Returns (loss, metrics, gradients) of the whole batch in float32, `num` parts in turn."""
    if num == 1:
        return _of_part(loss_fn, params, batch)
    part = _parts(batch, places.step.mesh, num)

    def add(sums: Sums, index: Any) -> tuple[Sums, None]:
        loss, metrics, grads = _of_part(loss_fn, params, part(index))
        joined = {name: _join(name, sums[1][name], value) for name, value in metrics.items()}
        grads = jax.tree.map(jnp.add, sums[2], grads)
        return (sums[0] + loss, joined, _pinned(grads, places)), None

    _, metrics, grads = jax.eval_shape(lambda: _of_part(loss_fn, params, part(0)))
    start = (
        jnp.float32(0),
        {name: jnp.float32(-jnp.inf if _is_maximum(name) else 0) for name in metrics},
        _pinned(jax.tree.map(lambda grad: jnp.zeros(grad.shape, jnp.float32), grads), places),
    )
    return jax.lax.scan(add, start, jnp.arange(num))[0]


def metrics_of(loss_fn: Loss, params: Params, batch: Any, mesh: Mesh, num: int) -> Metrics:
    """What the loss tells of the whole batch, in float32, `num` parts in turn; no gradients."""
    part = _parts(batch, mesh, num)

    def of_part(index: Any) -> Metrics:
        _, metrics = loss_fn(params, part(index))
        return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    told = jax.lax.map(of_part, jnp.arange(num))
    return {name: (jnp.max if _is_maximum(name) else jnp.sum)(told[name]) for name in told}


def _of_part(loss_fn: Loss, params: Params, batch: Any) -> Sums:
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    in_float32 = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), (metrics, grads))
    return jnp.asarray(loss, jnp.float32), *in_float32


def _parts(batch: Any, mesh: Mesh, num: int) -> Callable[[Any], Any]:
    """A function of a part's number."""
    parts = jax.tree.map(lambda array: cut_rows(array, mesh, num), batch)
    return lambda index: jax.tree.map(lambda array: array[index] if array.ndim else array, parts)


def cut_rows(array: Array, mesh: Mesh, num: int) -> Array:
    """[B, ...] as [num, B / num, ...], each part spread over the mesh as the whole was."""
    if not array.ndim:
        return array
    parts = array.reshape(num, -1, *array.shape[1:])
    others = [PartitionSpec.UNCONSTRAINED] * (array.ndim - 1)
    spread = NamedSharding(mesh, PartitionSpec(None, *BATCH, *others))
    return jax.lax.with_sharding_constraint(parts, spread)


def _pinned(grads: Params, places: TrainState) -> Params:
    # Sums lie cut as the parameters are: each device adds up its own share.
    return jax.lax.with_sharding_constraint(grads, places.params)


def _is_maximum(name: str) -> bool:
    return name.startswith("max_")


def _join(name: str, one: Any, other: Any) -> Any:
    return jnp.maximum(one, other) if _is_maximum(name) else one + other
