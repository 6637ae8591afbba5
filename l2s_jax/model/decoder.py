"""The stack: embedding, scanned blocks, final norm; and the parameters around it.

Lives here: `forward` of whole sequences, `forward_cached` of tokens behind others, initialisation
and the output head. Not here: loss (`objectives`), sampling (`sampling`), weights from outside
(`model/hf`).

A pass returns hidden states, not logits: training takes log-probs from them by vocabulary blocks,
prefill takes the logits of the last position alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from l2s_jax.model.attention import Attention
from l2s_jax.model.blockwise import attend_blocks
from l2s_jax.model.cache import Cache
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.layers import INIT, RMSNorm, SwiGLU, rotary_angles
from l2s_jax.model.seen import Attend, Seen

Params = dict[str, Any]
KEPT: dict[str, Any] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
Angles = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]
KeyValues = tuple[Float[Array, "B T K E"], Float[Array, "B T K E"]]  # of one layer


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
    attend: Attend

    @nn.compact
    def __call__(self, x_BTD, angles, seen, cache=None, layer=0):
        normed_BTD = RMSNorm(self.cfg.rms_eps, name="input_norm")(x_BTD)
        mixed_BTD, kv = Attention(self.cfg, self.attend, name="attention")(
            normed_BTD, angles, seen, cache, layer
        )
        x_BTD = x_BTD + mixed_BTD
        normed_BTD = RMSNorm(self.cfg.rms_eps, name="post_norm")(x_BTD)
        return x_BTD + SwiGLU(self.cfg, name="mlp")(normed_BTD), kv


class Decoder(nn.Module):
    """Tokens to hidden states, and behind a cache each layer's new keys and values.

    Without a cache the layers are scanned, their parameters stacked: one layer is compiled, however
    many there are. Behind one they follow each other, each with its own parameters and its own part
    of the cache: a scan would copy both out of their stacks for every token.
    """

    cfg: ModelConfig
    attend: Attend = attend_blocks

    @nn.compact
    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        seen: Seen | Bool[Array, "B T T"],
        cache: Cache | None = None,
        angles: Angles | None = None,
    ) -> tuple[Float[Array, "B T D"], list[KeyValues]]:
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
        if angles is None:
            angles = angles_at(cfg, positions_BT)
        new: list[KeyValues] = []
        if cache is None:
            block: Any = Block
            if cfg.remat != "none":
                block = nn.remat(Block, prevent_cse=False, policy=KEPT[cfg.remat])
            shared_axes: Any = (nn.broadcast, nn.broadcast)
            stack = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=shared_axes,
                length=cfg.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(cfg, self.attend, name="layers")
            x_BTD, _ = stack(x_BTD, angles, seen)
        else:
            for layer in range(cfg.num_layers):
                x_BTD, kv = Block(cfg, self.attend, name=layer_name(layer))(
                    x_BTD, angles, seen, cache, layer
                )
                new.append(kv)
        if not cfg.tied:
            # Declared here so that it is born with the rest; read by `head`.
            init = nn.with_logical_partitioning(INIT, ("width", "vocab"))
            self.param("lm_head", init, (cfg.width, cfg.vocab_size))
        return RMSNorm(cfg.rms_eps, name="final_norm")(x_BTD), new


def angles_at(cfg: ModelConfig, positions_BT: Int[Array, "B T"]) -> Angles:
    """By what each position turns queries and keys: cosines and sines."""
    return rotary_angles(positions_BT, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)


def layer_name(layer: int) -> str:
    """Under which a layer's own parameters stand once they are unstacked."""
    return f"layer_{layer}"


def of_layer(stacked: Params, layer: Any) -> Params:
    """A layer's part of what is stacked over layers."""
    return jax.tree.map(lambda leaf: leaf[layer], stacked)


def unstacked(
    cfg: ModelConfig,
    params: Params,
    take: Callable[[Params, int], Params] = of_layer,
    rest: Callable[[Params], Params] = lambda others: others,
) -> Params:
    """`params`, an adapter's part too, with every layer on its own, as `forward_cached` reads.

    Args:
      take: a layer's part of what is stacked.
      rest: what becomes of all that is not.
    """
    apart = dict(rest({k: v for k, v in params.items() if k not in ("layers", "lora")}))
    for layer in range(cfg.num_layers):
        apart[layer_name(layer)] = take(params["layers"], layer)
    if "lora" in params:
        apart["lora"] = unstacked(cfg, params["lora"], take, rest)
    return apart


def init_params(cfg: ModelConfig, key: Key[Array, ""]) -> Params:
    """Fresh parameters, boxed with their logical axes (`sharding.py` opens the boxes)."""
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    variables: Any = Decoder(cfg).init(key, tokens_BT, tokens_BT, Seen(tokens_BT))
    return variables["params"]


def forward(
    cfg: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    *,
    seen: Seen,
    attend: Attend = attend_blocks,
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm.

    Args:
      attend: `attend_on` of the program's mesh (`model/routes.py`); blocks run anywhere.
      params: the decoder's, and under "lora" an adapter's if there is one (`model/lora.py`).
    """
    result: Any = Decoder(cfg, attend).apply(_variables(params), tokens_BT, positions_BT, seen)
    return result[0]


def forward_cached(
    cfg: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    *,
    mask_BTT: Bool[Array, "B T T"],
    cache: Cache,
    angles: Angles | None = None,
) -> tuple[Float[Array, "B T D"], list[KeyValues]]:
    """Hidden states after the final norm, and the new keys and values of every layer.

    Every token sees its row's beginning and tail, and of the pass what the mask says.

    Args:
      params: `unstacked`.
      angles: `angles_at` the positions, where they are at hand: a compiler computes them again
        wherever they are used, in every layer.
    """
    result: Any = Decoder(cfg).apply(
        _variables(params), tokens_BT, positions_BT, mask_BTT, cache, angles
    )
    return result


def _variables(params: Params) -> Params:
    """An adapter's part as its own collection."""
    variables = {"params": {name: part for name, part in params.items() if name != "lora"}}
    return variables | ({"lora": params["lora"]} if "lora" in params else {})


def head(params: Params) -> Float[Array, "V D"]:
    """The output matrix, one row per vocabulary entry; a tied one is the embedding itself."""
    tied = "lm_head" not in params
    table_VD = params["embed"]["embedding"] if tied else params["lm_head"].T
    adapter = params.get("lora", {})
    if "token_ids" not in adapter:
        return table_VD
    rows_RD = adapter["token_rows" if tied else "head_rows"]
    return table_VD.at[adapter["token_ids"]].set(rows_RD.astype(table_VD.dtype))


def head_rows(params: Params, ids: Sequence[int]) -> Float[Array, "C D"]:
    """Some rows of `head`, without the rest of it: an adapter's rows are put into a copy there."""
    chosen_C = jnp.asarray(ids)
    if "lm_head" in params:
        rows_CD = params["lm_head"][:, chosen_C].T
    else:
        rows_CD = params["embed"]["embedding"][chosen_C]
    adapter = params.get("lora", {})
    if "token_ids" not in adapter:
        return rows_CD
    own_RD = adapter["head_rows" if "lm_head" in params else "token_rows"]
    return replace_rows(rows_CD[None], chosen_C[None], adapter["token_ids"], own_RD)[0]


def logits(params: Params, hidden_BTD: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Scores of every vocabulary entry, float32."""
    head_VD = head(params).astype(hidden_BTD.dtype)
    return jnp.einsum("...D,VD->...V", hidden_BTD, head_VD, preferred_element_type=jnp.float32)


@functools.lru_cache(maxsize=64)  # tracing takes a fifth of a second, and much of a run asks
def abstract_params(cfg: ModelConfig) -> Params:
    """Shapes and logical axes of the parameters; allocates nothing. Not to be changed in place."""
    return jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
