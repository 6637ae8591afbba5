"""Attention over whole sequences by the splash kernel, on TPU.

Lives here: what `model/seen.py` says, put into the kernel's words. Not here: the kernel, which is
JAX's own (`jax.experimental.pallas.ops.tpu.splash_attention`), nor the cut over a mesh
(`model/routes.py`).

The kernel knows a causal order and segment ids. Branches need a third word. It is said in entries
added to queries and keys: a query has 1 at its own branch, a key on a branch has -1e30 at every
other one. Where the query may look, every added product is zero, and adding zeros changes no sum,
in whatever order and precision; where it may not, the score is -1e30 and the probability 0. The
entries are free up to the kernel's 128 lanes, and they exist only for batches with branches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
from jaxtyping import Array, Float, Int

from l2s_jax.model.seen import MAX_BRANCHES, Seen, alone

LANES = 128  # the kernel's blocks are multiples of it
BRANCHES = MAX_BRANCHES + 1  # with the trunk; a later one yields nan, and the guard stops the run
HIDDEN = -1e30


def attend_splash(
    q_BTHE: Float[Array, "B T H E"],
    k_BSKE: Float[Array, "B S K E"],
    v_BSKE: Float[Array, "B S K E"],
    seen: Seen,
    *,
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """Attention of the last T tokens over all S of the same pass.

    Args:
      interpret: run the kernel's text in XLA, on any platform; slow, for tests.
    """
    _, queries, heads, size = q_BTHE.shape
    first = k_BSKE.shape[1] - queries
    assert not first or not queries % LANES, "a part of the tokens fills whole blocks"
    q_BTHE = (q_BTHE.astype(jnp.float32) * size**-0.5).astype(q_BTHE.dtype)
    if seen.branches is not None:
        own = own_branch(seen.branches[:, first:], q_BTHE)
        q_BTHE = jnp.concatenate([q_BTHE, own], axis=-1)
        k_BSKE = jnp.concatenate([k_BSKE, other_branches(seen.branches, k_BSKE)], axis=-1)
    padding = -queries % LANES

    def by_head(x_BTHE: Array) -> Array:
        filled = jnp.pad(x_BTHE, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return filled.swapaxes(1, 2)

    ids = alone(Seen(jnp.pad(seen.segment_ids, ((0, 0), (0, padding)))))
    attend = causal_kernel(heads, queries + padding, first, interpret)
    out_BHTE = jax.vmap(attend)(
        by_head(q_BTHE),
        by_head(k_BSKE),
        by_head(v_BSKE),
        kernel_lib.SegmentIds(ids[:, first:], ids),
    )
    return out_BHTE.swapaxes(1, 2)[:, :queries]


def causal_kernel(heads: int, queries: int, first: int, interpret: bool) -> Any:
    """The kernel for one row of queries behind `first` tokens; both are multiples of `LANES`."""

    def block(length: int) -> int:
        return next(width for width in (512, 384, 256, LANES) if length % width == 0)

    of_queries, of_keys = block(queries), block(first + queries)
    blocks = kernel_lib.BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_kv_compute=of_keys,
        block_q_dkv=of_queries,
        block_kv_dkv=of_keys,
        block_kv_dkv_compute=of_keys,
        block_q_dq=of_queries,
        block_kv_dq=of_keys,
    )
    causal = mask_lib.CausalMask((queries, first + queries), offset=first)
    return kernel_lib.make_splash_mha_single_device(
        mask_lib.MultiHeadMask([causal] * heads), block_sizes=blocks, interpret=interpret
    )


def own_branch(branches_BT: Int[Array, "B T"], q_BTHE: Float[Array, "B T H E"]) -> Array:
    """What a query adds: 1 at its own branch."""
    own_BTN = jax.nn.one_hot(branches_BT, BRANCHES, dtype=q_BTHE.dtype)
    own_BTN = jnp.where((branches_BT < BRANCHES)[..., None], own_BTN, jnp.nan)
    return jnp.broadcast_to(own_BTN[:, :, None], (*q_BTHE.shape[:3], BRANCHES))


def other_branches(branches_BT: Int[Array, "B T"], k_BTKE: Float[Array, "B T K E"]) -> Array:
    """What a key adds: -1e30 at every branch that may not see it; nothing on the trunk."""
    own_BTN = jax.nn.one_hot(branches_BT, BRANCHES, dtype=bool)
    hides_BTN = ~own_BTN & (branches_BT > 0)[..., None]
    added_BTN = jnp.where(hides_BTN, HIDDEN, 0.0).astype(k_BTKE.dtype)
    return jnp.broadcast_to(added_BTN[:, :, None], (*k_BTKE.shape[:3], BRANCHES))
