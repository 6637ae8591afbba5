"""Log-probs of targets under a policy's parameters, whole or with an adapter.

Lives here: `target_logp`, the one road of both stages from hidden states to log-probs. Not here:
the arithmetic (`objectives/logprobs.py`), the hidden states (`model/decoder.py`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.model.decoder import Params, head
from l2s_jax.objectives.logprobs import ANYWHERE, OwnRows, Places, token_logp


def target_logp(
    params: Params,
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
    wanted_BT: Bool[Array, "B T"],
    *,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
) -> Float[Array, "B T"]:
    """Log-prob of each target in nats, float32; 0, without gradient or cost, where none is wanted.

    Args:
      params: the decoder's; with an adapter, whose base then gets no gradient.
      temperature: one for all rows.
      mesh: of the program. Each part into which it cuts time is a row of its own to the head, so
        that what is wanted is brought together within it, and stays where it lies.
    """
    parts = 1 if mesh is None else mesh.shape["context"]

    def apart(array: Array) -> Array:
        return array.reshape(array.shape[0] * parts, -1, *array.shape[2:])

    base = {name: part for name, part in params.items() if name != "lora"}
    logp = token_logp(
        apart(hidden_BTD),
        head(base),
        apart(targets_BT),
        wanted_BT=apart(wanted_BT),
        own=own_rows(params),
        temperature=temperature,
        places=ANYWHERE if mesh is None else head_places(mesh),
    )
    return logp.reshape(targets_BT.shape)


@functools.lru_cache(maxsize=4)
def head_places(mesh: Mesh) -> Places:
    """Blocks of the head whole in width on the devices of every row, their gradients cut in it."""

    def put(width: str | None) -> Callable[[Array], Array]:
        place = NamedSharding(mesh, PartitionSpec(PartitionSpec.UNCONSTRAINED, width))
        return lambda block_CD: jax.lax.with_sharding_constraint(block_CD, place)

    return Places(gather=put(None), scatter=put("fsdp"))


def own_rows(params: Params) -> OwnRows | None:
    """The rows of the head that an adapter trains, maybe none of them; None without an adapter."""
    if "lora" not in params:
        return None
    adapter = params["lora"]
    if "token_ids" not in adapter:
        width = params["embed"]["embedding"].shape[1]
        return OwnRows(ids=jnp.zeros((0,), jnp.int32), rows=jnp.zeros((0, width)))
    rows = adapter["head_rows" if "lm_head" in params else "token_rows"]
    return OwnRows(ids=jax.lax.stop_gradient(adapter["token_ids"]), rows=rows)
