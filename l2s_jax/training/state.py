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

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, abstract_params, init_params
from l2s_jax.model.lora import LoraConfig, abstract_adapter, split
from l2s_jax.sharding import shardings


@struct.dataclass
class TrainState:
    """Parameters, optimizer state, and the number of steps taken."""

    step: Any  # [] int32
    params: Any  # those that are trained
    opt_state: Any
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
    boxed = abstract_params(cfg)
    if lora is not None:
        boxed = boxed | {"lora": abstract_adapter(cfg, lora, num_rows)}
    trained, frozen = split(boxed)
    abstract = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=trained,
        opt_state=jax.eval_shape(optimizer.init, trained),
        frozen=frozen,
    )
    return shardings(abstract, mesh)


def fresh_params(cfg: ModelConfig, key: Key[Array, ""], mesh: Mesh) -> Params:
    """Random parameters, each device making its own part."""
    places = shardings(abstract_params(cfg), mesh)
    return jax.jit(lambda key: nn.unbox(init_params(cfg, key)), out_shardings=places)(key)


def begin_state(
    params: Params, optimizer: optax.GradientTransformation, places: TrainState
) -> TrainState:
    """The state before the first step; what is trained is copied, never donated away."""
    trained, frozen = split(params)

    def begin(trained: Params) -> TrainState:
        return TrainState(jnp.int32(0), trained, optimizer.init(trained))

    made = jax.jit(begin, out_shardings=dataclasses.replace(places, frozen={}))
    state = made(jax.device_put(trained, places.params))
    return dataclasses.replace(state, frozen=jax.device_put(frozen, places.frozen))
