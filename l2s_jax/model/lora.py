"""Low-rank adapters: their shape and birth, merging them, what of them is trained.

Lives here: `LoraConfig`, `init_adapter`, `merge`, `split` and `join`. Not here: the arithmetic of
a layer with an adapter (`layers.Linear`) and of rows of its own (`decoder.replace_rows`,
`decoder.head`), folders in the format of PEFT (`model/hf/peft.py`).

An adapter lies in the parameters under "lora": for each adapted layer a, b and scale, stacked over
layers; and, where tokens are trained beside it, `token_ids` with their own `token_rows` (and
`head_rows`, if the head is not tied). Letters: I in, O out, Z the adapter's rank, R rows of tokens.
Source: LoRA (arXiv 2106.09685), rank-stabilised scale (arXiv 2312.03732); starts as in `peft`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from l2s_jax.model.config import DTypeName, ModelConfig
from l2s_jax.model.decoder import Params, abstract_params

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRAINED = ("a", "b", "token_rows", "head_rows")  # the rest of the parameters is frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which linear layers are adapted, and by how much."""

    rank: int = 16
    alpha: float = 32.0  # the product a b counts alpha / rank times
    targets: tuple[str, ...] = TARGETS
    use_rslora: bool = False  # alpha / sqrt(rank) instead: keeps large ranks from fading
    base: DTypeName = "float32"  # how the frozen weights are kept; bfloat16 takes half the memory

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoraConfig.rank={self.rank}: at least 1; 8 to 64 is usual.")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"LoraConfig.alpha={self.alpha}: above 0; twice the rank is usual.")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"LoraConfig.targets={self.targets}: name linear layers, each once, at least one of"
                f" {', '.join(TARGETS)}."
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def part_of(target: str) -> str:
    """The module of a block that holds a linear layer."""
    return "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "attention"


def abstract_adapter(cfg: ModelConfig, lora: LoraConfig, num_rows: int = 0) -> Params:
    """Shapes and logical axes of an adapter; `a` is cut as its layer's input, `b` as its output."""
    layers: Params = {}
    kernels: Any = abstract_params(cfg)["layers"]
    for name in sorted(lora.targets):
        kernel = kernels[part_of(name)][name]["kernel"]
        depth, size_in, size_out = kernel.unbox().shape
        stacked, axis_in, axis_out = kernel.names
        layers.setdefault(part_of(name), {})[name] = {
            "a": _leaf((depth, size_in, lora.rank), (stacked, axis_in, None)),
            "b": _leaf((depth, lora.rank, size_out), (stacked, None, axis_out)),
            "scale": _leaf((depth,), (stacked,)),
        }
    if num_rows == 0:
        return {"layers": layers}
    rows = {"token_ids": _leaf((num_rows,), (None,), jnp.int32)}
    for name in ("token_rows",) if cfg.tied else ("token_rows", "head_rows"):
        rows[name] = _leaf((num_rows, cfg.width), (None, "width"))
    return {"layers": layers, **rows}


def _leaf(shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any = jnp.float32) -> Any:
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, dtype), names=axes)


def init_adapter(
    cfg: ModelConfig,
    lora: LoraConfig,
    params: Params,
    key: Key[Array, ""],
    *,
    token_ids: Sequence[int] = (),
) -> Params:
    """An adapter that changes nothing yet: `b` is zero, rows of tokens are the base's own.

    Args:
      params: the base's.
      token_ids: tokens whose rows are trained beside the adapter.
    """
    tree: Params = nn.unbox(abstract_adapter(cfg, lora, len(token_ids)))
    for index, name in enumerate(TARGETS):
        if name in lora.targets:
            leaves = tree["layers"][part_of(name)][name]
            # Uniform as in peft: Kaiming's bound with a = sqrt(5) is 1 / sqrt(inputs).
            bound = 1 / math.sqrt(leaves["a"].shape[1])
            shape, own_key = leaves["a"].shape, jax.random.fold_in(key, index)
            leaves["a"] = jax.random.uniform(own_key, shape, minval=-bound, maxval=bound)
            leaves["b"] = jnp.zeros(leaves["b"].shape)
            leaves["scale"] = jnp.full(leaves["scale"].shape, lora.scale)
    if token_ids:
        tree |= own_rows(cfg, params, token_ids)
    return tree


def own_rows(cfg: ModelConfig, params: Params, token_ids: Sequence[int]) -> Params:
    """The adapter's part for tokens, rows as the base has them."""
    beyond = [i for i in token_ids if not 0 <= i < cfg.vocab_size]
    if beyond or len(set(token_ids)) < len(token_ids):
        raise ValueError(
            f"token ids {list(token_ids)}: each once, and below the model's {cfg.vocab_size} rows."
        )
    ids = jnp.asarray(token_ids, jnp.int32)
    rows = {"token_ids": ids}
    rows["token_rows"] = jnp.asarray(params["embed"]["embedding"])[ids].astype(jnp.float32)
    if not cfg.tied:
        rows["head_rows"] = jnp.asarray(params["lm_head"])[:, ids].T.astype(jnp.float32)
    return rows


def merge(params: Params) -> Params:
    """Parameters without an adapter that compute the same; those without one are returned as is.

    The sum is taken in float32 and rounded once, to the type that the weight has.
    """
    if "lora" not in params:
        return params
    adapter = params["lora"]
    merged = {name: part for name, part in params.items() if name != "lora"}
    merged["layers"] = dict(merged["layers"])
    for part, modules in adapter["layers"].items():
        merged["layers"][part] = dict(merged["layers"][part])
        for name, leaves in modules.items():
            linear = merged["layers"][part][name]
            kernel = merged_kernel(linear["kernel"], leaves["a"], leaves["b"], leaves["scale"])
            merged["layers"][part][name] = linear | {"kernel": kernel}
    if "token_ids" not in adapter:
        return merged
    ids, table = adapter["token_ids"], jnp.asarray(params["embed"]["embedding"])
    table = table.at[ids].set(adapter["token_rows"].astype(table.dtype))
    merged["embed"] = {"embedding": table}
    if "lm_head" in params:
        head = jnp.asarray(params["lm_head"])
        merged["lm_head"] = head.at[:, ids].set(adapter["head_rows"].T.astype(head.dtype))
    return merged


def merged_kernel(
    kernel_LIO: Float[Array, "L I O"],
    a_LIZ: Float[Array, "L I Z"],
    b_LZO: Float[Array, "L Z O"],
    scale_L: Float[Array, " L"],
) -> Float[Array, "L I O"]:
    """W + scale a b of every layer."""
    a_LIZ, b_LZO = a_LIZ.astype(jnp.float32), b_LZO.astype(jnp.float32)
    change_LIO = jnp.einsum("LIZ,LZO->LIO", a_LIZ, b_LZO, precision=jax.lax.Precision.HIGHEST)
    total_LIO = kernel_LIO.astype(jnp.float32) + scale_L[:, None, None] * change_LIO
    return total_LIO.astype(kernel_LIO.dtype)


def split(params: Params) -> tuple[Params, Params]:
    """(trained, frozen): an adapter's a, b and rows, and the rest; all is trained without one."""
    if "lora" not in params:
        return params, {}
    return _pick(params, trained=True), _pick(params, trained=False)


def _pick(tree: Params, *, trained: bool) -> Params:
    picked = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            if below := _pick(node, trained=trained):
                picked[name] = below
        elif (name in TRAINED) == trained:
            picked[name] = node
    return picked


def join(trained: Params, frozen: Params) -> Params:
    """The parameters that `split` took apart."""
    joined = dict(frozen)
    for name, node in trained.items():
        joined[name] = join(node, frozen[name]) if name in frozen else node
    return joined
