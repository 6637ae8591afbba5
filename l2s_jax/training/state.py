"""What a training run carries from step to step, and how it is laid over a mesh.

Lives here: `TrainState`, its shardings, its birth. Not here: the step (`training/step.py`),
writing it to disk (`training/checkpoint.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Key

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, abstract_params, init_params
from l2s_jax.sharding import shardings


@struct.dataclass
class TrainState:
    """Parameters, optimizer state, and the number of steps taken."""

    step: Any  # [] int32
    params: Any
    opt_state: Any


def state_shardings(
    cfg: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The sharding of every leaf: moments lie with their parameters."""
    boxed = abstract_params(cfg)
    abstract = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=boxed,
        opt_state=jax.eval_shape(optimizer.init, boxed),
    )
    return shardings(abstract, mesh)


def fresh_params(cfg: ModelConfig, key: Key[Array, ""], mesh: Mesh) -> Params:
    """Random parameters, each device making its own part."""
    places = shardings(abstract_params(cfg), mesh)
    return jax.jit(lambda key: nn.unbox(init_params(cfg, key)), out_shardings=places)(key)


def begin_state(
    params: Params, optimizer: optax.GradientTransformation, places: TrainState
) -> TrainState:
    """The state before the first step; `params` are copied, never donated away."""

    def begin(params: Params) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    return jax.jit(begin, out_shardings=places)(jax.device_put(params, places.params))
