"""Grouped-query attention over a token's own pass and over what is cached before it.

Lives here: who sees whom (`visible`), the attention arithmetic, the linen module. Not here:
the cache record (`model/cache.py`), rotary angles (`model/layers.py`).

Letters beyond `types.py`: R query heads per key-value head (H = K * R).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.model.cache import LayerCache
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.layers import Linear, RMSNorm, rotate

HIDDEN = -1e30  # finite, so that a row that sees nothing yields numbers and no nan


def visible(
    segment_ids_BT: Int[Array, "B T"], branches_BT: Int[Array, "B T"]
) -> Bool[Array, "B T T"]:
    """True where the query (second axis) may look at the key (third axis).

    A token sees what stands before it, in its own segment, on the trunk (branch 0) or on its own
    branch. Segment 0 is padding: it sees itself alone.
    """
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    real_B1T = (segment_ids_BT > 0)[:, None, :]
    trunk_B1T = (branches_BT == 0)[:, None, :]
    own_BTT = branches_BT[:, :, None] == branches_BT[:, None, :]
    index_T = jnp.arange(segment_ids_BT.shape[1])
    earlier_TT = index_T[:, None] >= index_T[None, :]
    itself_TT = index_T[:, None] == index_T[None, :]
    seen_BTT = earlier_TT[None] & same_BTT & real_B1T & (trunk_B1T | own_BTT)
    return seen_BTT | itself_TT[None]


def scores(
    q_BTHE: Float[Array, "B T H E"], k_BSKE: Float[Array, "B S K E"], mask_BTS: Bool[Array, "B T S"]
) -> Float[Array, "B K R T S"]:
    """Scaled dot products in float32, `HIDDEN` where the mask is False."""
    batch, queries, num_heads, size = q_BTHE.shape
    num_kv = k_BSKE.shape[2]
    q_BTKRE = q_BTHE.reshape(batch, queries, num_kv, num_heads // num_kv, size)
    dots = jnp.einsum("BTKRE,BSKE->BKRTS", q_BTKRE, k_BSKE, preferred_element_type=jnp.float32)
    return jnp.where(mask_BTS[:, None, None], dots * size**-0.5, HIDDEN)


def mix(
    probs_BKRTS: Float[Array, "B K R T S"], v_BSKE: Float[Array, "B S K E"]
) -> Float[Array, "B T H E"]:
    """Values averaged with the attention probabilities."""
    out = jnp.einsum("BKRTS,BSKE->BTKRE", probs_BKRTS.astype(v_BSKE.dtype), v_BSKE)
    batch, queries, num_kv, shared, size = out.shape
    return out.reshape(batch, queries, num_kv * shared, size)


def attend(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    mask_BTT: Bool[Array, "B T T"],
) -> Float[Array, "B T H E"]:
    """Attention of tokens over the tokens of the same pass."""
    return mix(nn.softmax(scores(q_BTHE, k_BTKE, mask_BTT), axis=-1), v_BTKE)


def attend_cached(
    q_BTHE: Float[Array, "B 1 H E"],
    k_BTKE: Float[Array, "B 1 K E"],
    v_BTKE: Float[Array, "B 1 K E"],
    cache: LayerCache,
) -> Float[Array, "B 1 H E"]:
    """Attention of one new token per row over its prompt, its own earlier tokens and itself.

    The prompt's keys are held once for all G rows of a prompt: the rows of a group become the
    query axis of one attention over [N, P]. One softmax runs over all three parts.
    """
    batch, _, num_heads, size = q_BTHE.shape
    num_prompts = cache.prompt_k.shape[0]
    group = batch // num_prompts
    prompt_mask = jnp.broadcast_to(
        cache.prompt_mask[:, None, :], (num_prompts, group, cache.prompt_k.shape[1])
    )
    q_NGHE = q_BTHE.reshape(num_prompts, group, num_heads, size)
    of_prompt = scores(q_NGHE, cache.prompt_k, prompt_mask)  # [N, K, R, G, P]
    num_kv, shared = of_prompt.shape[1:3]
    by_row = jnp.moveaxis(of_prompt, 3, 1).reshape(batch, num_kv, shared, 1, -1)
    of_tail = scores(q_BTHE, cache.tail_k, cache.tail_mask[:, None, :])
    of_self = scores(q_BTHE, k_BTKE, jnp.ones((batch, 1, 1), bool))
    probs = nn.softmax(jnp.concatenate([by_row, of_tail, of_self], axis=-1), axis=-1)
    cut = of_prompt.shape[-1]
    to_prompt, to_tail, to_self = jnp.split(probs, [cut, cut + of_tail.shape[-1]], axis=-1)
    to_prompt = to_prompt.reshape(num_prompts, group, num_kv, shared, cut)
    from_prompt = mix(jnp.moveaxis(to_prompt, 1, 3), cache.prompt_v)
    from_prompt = from_prompt.reshape(batch, 1, num_heads, size)
    return from_prompt + mix(to_tail, cache.tail_v) + mix(to_self, v_BTKE)


class Attention(nn.Module):
    """Projections around attention; returns its output and the new keys and values."""

    cfg: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        angles: tuple[Float[Array, "B T half"], Float[Array, "B T half"]],
        mask_BTT: Bool[Array, "B T T"] | None,
        cache: LayerCache | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T K E"], Float[Array, "B T K E"]]]:
        cfg = self.cfg
        batch, queries, _ = x_BTD.shape

        def linear(name: str, features: int, axes: tuple[str, str], bias: bool) -> Linear:
            return Linear(features, axes, cfg.compute_dtype, use_bias=bias, name=name)

        def project(name: str, heads: int, axis: str) -> Float[Array, "B T heads E"]:
            into = linear(name, heads * cfg.head_dim, ("width", axis), cfg.qkv_bias)
            return into(x_BTD).reshape(batch, queries, heads, cfg.head_dim)

        def place(x: Float[Array, "B T heads E"], norm: str) -> Float[Array, "B T heads E"]:
            if cfg.qk_norm:
                x = RMSNorm(cfg.rms_eps, axis=None, name=norm)(x)
            return rotate(x, *angles)

        q_BTHE = place(project("q_proj", cfg.num_heads, "heads"), "q_norm")
        k_BTKE = place(project("k_proj", cfg.num_kv_heads, "kv_heads"), "k_norm")
        v_BTKE = project("v_proj", cfg.num_kv_heads, "kv_heads")
        if cache is None:
            assert mask_BTT is not None, "a pass without cache needs its mask"
            out_BTHE = attend(q_BTHE, k_BTKE, v_BTKE, mask_BTT)
        else:
            out_BTHE = attend_cached(q_BTHE, k_BTKE, v_BTKE, cache)
        back = linear("o_proj", cfg.width, ("heads", "width"), cfg.o_bias)
        return back(out_BTHE.reshape(batch, queries, -1)), (k_BTKE, v_BTKE)
