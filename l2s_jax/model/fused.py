"""Attention over whole sequences by cuDNN's flash kernels, on NVIDIA GPUs.

Lives here: which calls cuDNN can serve, and the call. Not here: who sees whom
(`model/seen.py`), what serves the other calls (`model/blockwise.py`).

The kernels keep no probabilities. Segments and branches reach them as an additive mask
[B, 1, T, S] in the computation's type, once for all heads: 2 bytes a pair and row, where dense
scores take 4 * H.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2s_jax.model.blockwise import attend_blocks
from l2s_jax.model.seen import Seen, visible


def attend_fused(
    q_BTHE: Float[Array, "B T H E"],
    k_BSKE: Float[Array, "B S K E"],
    v_BSKE: Float[Array, "B S K E"],
    seen: Seen,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T H E"]:
    """Attention of tokens over the tokens of the same pass.

    Args:
      implementation: "xla" computes the same call on any platform, densely; for tests.
    """
    queries = q_BTHE.shape[1]
    mask_B1TS = visible(seen, queries)[:, None]
    # The kernels read a causal order from the first query, and here that is token 0 or a later one.
    is_causal = queries == k_BSKE.shape[1]
    return jax.nn.dot_product_attention(
        q_BTHE, k_BSKE, v_BSKE, mask=mask_B1TS, is_causal=is_causal, implementation=implementation
    )


def fusible(q_BTHE: Float[Array, "B T H E"]) -> bool:
    """Whether cuDNN has kernels, backward ones too, for this type and shape."""
    _, length, _, size = q_BTHE.shape
    half = q_BTHE.dtype in (jnp.bfloat16, jnp.float16)
    return half and length % 2 == 0 and size % 8 == 0 and size <= 128


def attend_gpu(
    q_BTHE: Float[Array, "B T H E"],
    k_BSKE: Float[Array, "B S K E"],
    v_BSKE: Float[Array, "B S K E"],
    seen: Seen,
) -> Float[Array, "B T H E"]:
    """`attend_fused` where cuDNN has a kernel, else `attend_blocks`, as float32 needs."""
    attend = attend_fused if fusible(q_BTHE) else attend_blocks
    return attend(q_BTHE, k_BSKE, v_BSKE, seen)
