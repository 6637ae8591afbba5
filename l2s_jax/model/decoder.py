"""The stack: embedding, scanned blocks, final norm; and the parameters around it.

Lives here: `Decoder` with one surface, `apply(params, tokens, positions, mask | cache)`, its
initialisation and its output head. Not here: loss (`objectives`), sampling (`sampling`), weights
from outside (`model/hf`).

A pass returns hidden states, not logits: training takes log-probs from them by vocabulary blocks,
prefill takes the logits of the last position alone.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from l2s_jax.model.attention import Attention
from l2s_jax.model.cache import Cache
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.layers import INIT, RMSNorm, SwiGLU, rotary_angles

Params = dict[str, Any]
KeyValues = tuple[Float[Array, "L B T K E"], Float[Array, "L B T K E"]]


def replace_rows(
    x_BTD: Float[Array, "B T D"],
    tokens_BT: Int[Array, "B T"],
    ids_R: Int[Array, " R"],
    rows_RD: Float[Array, "R D"],
) -> Float[Array, "B T D"]:
    """`x_BTD` with an adapter's own rows where the token is one of `ids_R`.

    A lookup and not a changed table: the table is large, and frozen.
    """
    match_BTR = tokens_BT[:, :, None] == ids_R[None, None, :]
    own_BTD = rows_RD[jnp.argmax(match_BTR, axis=-1)]
    return jnp.where(match_BTR.any(-1, keepdims=True), own_BTD, x_BTD)


class Block(nn.Module):
    """Attention, then feed-forward, each on a normed input and added to the stream."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, angles, mask_BTT, cache, layer):
        normed_BTD = RMSNorm(self.cfg.rms_eps, name="input_norm")(x_BTD)
        mixed_BTD, kv = Attention(self.cfg, name="attention")(
            normed_BTD, angles, mask_BTT, cache, layer
        )
        x_BTD = x_BTD + mixed_BTD
        normed_BTD = RMSNorm(self.cfg.rms_eps, name="post_norm")(x_BTD)
        return x_BTD + SwiGLU(self.cfg, name="mlp")(normed_BTD), kv


class Decoder(nn.Module):
    """Tokens to hidden states, and each layer's new keys and values.

    `mask_BTT` says who sees whom in the pass; with a cache, every token also sees its row's tail
    and prompt.
    """

    cfg: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        mask_BTT: Bool[Array, "B T T"],
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        cfg = self.cfg
        init = nn.with_logical_partitioning(INIT, ("vocab", "width"))
        embed = nn.Embed(cfg.vocab_size, cfg.width, embedding_init=init, name="embed")
        x_BTD = embed(tokens_BT)
        if self.has_variable("lora", "token_ids"):
            ids_R, rows_RD = (
                self.get_variable("lora", f"token_{name}") for name in ("ids", "rows")
            )
            x_BTD = replace_rows(x_BTD, tokens_BT, ids_R, rows_RD)
        x_BTD = x_BTD.astype(cfg.compute_dtype)
        angles = rotary_angles(positions_BT, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        block = nn.remat(Block, prevent_cse=False) if cfg.remat else Block
        # The cache is read by layer number: to scan over it would copy each layer's part.
        shared_axes: Any = (nn.broadcast, nn.broadcast, nn.broadcast, 0)
        stack = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=shared_axes,
            length=cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg, name="layers")
        x_BTD, kv = stack(x_BTD, angles, mask_BTT, cache, jnp.arange(cfg.num_layers))
        if not cfg.tied:
            # Declared here so that it is born with the rest; read by `head`.
            init = nn.with_logical_partitioning(INIT, ("width", "vocab"))
            self.param("lm_head", init, (cfg.width, cfg.vocab_size))
        return RMSNorm(cfg.rms_eps, name="final_norm")(x_BTD), kv


def init_params(cfg: ModelConfig, key: Key[Array, ""]) -> Params:
    """Fresh parameters, boxed with their logical axes (`sharding.py` opens the boxes)."""
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    mask_BTT = jnp.ones((1, 1, 1), bool)
    variables: Any = Decoder(cfg).init(key, tokens_BT, tokens_BT, mask_BTT)
    return variables["params"]


def forward(
    cfg: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    *,
    mask_BTT: Bool[Array, "B T T"],
    cache: Cache | None = None,
) -> tuple[Float[Array, "B T D"], KeyValues]:
    """Hidden states after the final norm, and the new keys and values of every layer.

    Args:
      params: the decoder's, and under "lora" an adapter's if there is one (`model/lora.py`).
    """
    variables = {"params": {name: part for name, part in params.items() if name != "lora"}}
    if "lora" in params:
        variables["lora"] = params["lora"]
    result: Any = Decoder(cfg).apply(variables, tokens_BT, positions_BT, mask_BTT, cache)
    return result


def head(params: Params) -> Float[Array, "V D"]:
    """The output matrix, one row per vocabulary entry; a tied one is the embedding itself."""
    tied = "lm_head" not in params
    table_VD = params["embed"]["embedding"] if tied else params["lm_head"].T
    adapter = params.get("lora", {})
    if "token_ids" not in adapter:
        return table_VD
    rows_RD = adapter["token_rows" if tied else "head_rows"]
    return table_VD.at[adapter["token_ids"]].set(rows_RD.astype(table_VD.dtype))


def logits(params: Params, hidden_BTD: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Scores of every vocabulary entry, float32."""
    head_VD = head(params).astype(hidden_BTD.dtype)
    return jnp.einsum("...D,VD->...V", hidden_BTD, head_VD, preferred_element_type=jnp.float32)


def abstract_params(cfg: ModelConfig) -> Params:
    """Shapes and logical axes of the parameters; allocates nothing."""
    return jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
