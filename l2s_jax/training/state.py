"""What a training run carries from step to step, and how it is laid over a mesh.

Lives here: `TrainState`, its shardings, its birth. Not here: the step (`training/step.py`),
writing it to disk (`training/checkpoint.py`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Key

from l2s_jax.model.config import DTypeName, ModelConfig
from l2s_jax.model.decoder import Params, abstract_params, init_params
from l2s_jax.model.lora import LoraConfig, abstract_adapter, split
from l2s_jax.sharding import settled, shardings


@struct.dataclass
class TrainState:
    """Parameters, optimizer state, and the number of steps taken."""

    step: Any  # [] int32, skipped ones too: it says which batch is next
    params: Any  # those that are trained
    opt_state: Any
    skipped: Any  # [] int32, of the last steps, how many in a row changed nothing
    frozen: Any = struct.field(default_factory=dict)  # the others: an adapter's base


def state_shardings(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    lora: LoraConfig | None = None,
    num_rows: int = 0,
) -> TrainState:
    """The sharding of every leaf: moments lie with their parameters.

    Args:
      lora: the adapter that is trained in place of the whole.
      num_rows: tokens whose rows are trained beside it.
    """
    return shardings(_boxed_state(cfg, optimizer, lora, num_rows), mesh)


def abstract_state(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    lora: LoraConfig | None = None,
    num_rows: int = 0,
    weights: DTypeName = "float32",
) -> TrainState:
    """Shape, type and sharding of every leaf of a state that `begin_state` would make.

    Args:
      weights: how what is trained is kept, `OptimConfig.weights`.
    """
    boxed = _boxed_state(cfg, optimizer, lora, num_rows)
    state = nn.unbox(boxed)
    frozen = dict(state.frozen)
    if lora is not None:
        frozen |= _kept({k: v for k, v in frozen.items() if k != "lora"}, lora.base)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        dataclasses.replace(state, params=_kept(state.params, weights), frozen=frozen),
        shardings(boxed, mesh),
    )


def _kept(tree: Params, dtype: DTypeName) -> Params:
    """Shapes of parameters that are kept in a type."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def _boxed_state(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    lora: LoraConfig | None,
    num_rows: int,
) -> TrainState:
    """Shapes of a state with their logical axes."""
    boxed = abstract_params(cfg)
    if lora is not None:
        boxed = boxed | {"lora": abstract_adapter(cfg, lora, num_rows)}
    trained, frozen = split(boxed)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=trained,
        opt_state=jax.eval_shape(optimizer.init, trained),
        skipped=jax.ShapeDtypeStruct((), jnp.int32),
        frozen=frozen,
    )


def fresh_params(cfg: ModelConfig, key: Key[Array, ""], mesh: Mesh) -> Params:
    """Random parameters, each device making its own part."""
    places = shardings(abstract_params(cfg), mesh)
    made = jax.jit(lambda key: nn.unbox(init_params(cfg, key)), out_shardings=places)(key)
    return settled(made, mesh)


def begin_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    places: TrainState,
    *,
    weights: DTypeName = "float32",
) -> TrainState:
    """The state before the first step; what is trained is copied, never donated away.

    Args:
      weights: how what is trained is kept, `OptimConfig.weights`.
    """
    trained, frozen = split(params)

    def begin(trained: Params) -> TrainState:
        trained = jax.tree.map(lambda leaf: leaf.astype(weights), trained)
        return TrainState(jnp.int32(0), trained, optimizer.init(trained), jnp.int32(0))

    made = jax.jit(begin, out_shardings=dataclasses.replace(places, frozen={}))
    state = settled(made(jax.device_put(trained, places.params)), places.step.mesh)
    return dataclasses.replace(state, frozen=jax.device_put(frozen, places.frozen))
