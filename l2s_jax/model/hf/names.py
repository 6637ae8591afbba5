"""Which tensor of a Hugging Face folder fills which leaf of our parameters, for every family.

Lives here: the one name table, read in both directions, and the trees by dotted paths. Not here:
files (`model/hf/files.py`), reading and writing weights (`model/hf/read.py`, `model/hf/write.py`),
what `config.json` means (`model/config.py`).

Tensor names as in transformers' Qwen2, Qwen3 and Llama, which agree.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, abstract_params


@dataclasses.dataclass(frozen=True)
class Name:
    """One leaf of our tree and the tensors of theirs that fill it."""

    ours: str  # path in the parameters, joined by dots
    theirs: str  # with `{}` for the layer; such tensors are stacked on axis 0
    transposed: bool = False  # linear layers: ours [in, out], theirs [out, in]


TABLE = (
    # In the order in which transformers lists a layer's tensors: it decides the shards.
    Name("embed.embedding", "model.embed_tokens.weight"),
    Name("layers.attention.q_proj.kernel", "model.layers.{}.self_attn.q_proj.weight", True),
    Name("layers.attention.q_proj.bias", "model.layers.{}.self_attn.q_proj.bias"),
    Name("layers.attention.k_proj.kernel", "model.layers.{}.self_attn.k_proj.weight", True),
    Name("layers.attention.k_proj.bias", "model.layers.{}.self_attn.k_proj.bias"),
    Name("layers.attention.v_proj.kernel", "model.layers.{}.self_attn.v_proj.weight", True),
    Name("layers.attention.v_proj.bias", "model.layers.{}.self_attn.v_proj.bias"),
    Name("layers.attention.o_proj.kernel", "model.layers.{}.self_attn.o_proj.weight", True),
    Name("layers.attention.o_proj.bias", "model.layers.{}.self_attn.o_proj.bias"),
    Name("layers.attention.q_norm.scale", "model.layers.{}.self_attn.q_norm.weight"),
    Name("layers.attention.k_norm.scale", "model.layers.{}.self_attn.k_norm.weight"),
    Name("layers.mlp.gate_proj.kernel", "model.layers.{}.mlp.gate_proj.weight", True),
    Name("layers.mlp.gate_proj.bias", "model.layers.{}.mlp.gate_proj.bias"),
    Name("layers.mlp.up_proj.kernel", "model.layers.{}.mlp.up_proj.weight", True),
    Name("layers.mlp.up_proj.bias", "model.layers.{}.mlp.up_proj.bias"),
    Name("layers.mlp.down_proj.kernel", "model.layers.{}.mlp.down_proj.weight", True),
    Name("layers.mlp.down_proj.bias", "model.layers.{}.mlp.down_proj.bias"),
    Name("layers.input_norm.scale", "model.layers.{}.input_layernorm.weight"),
    Name("layers.post_norm.scale", "model.layers.{}.post_attention_layernorm.weight"),
    Name("final_norm.scale", "model.norm.weight"),
    Name("lm_head", "lm_head.weight", True),
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of theirs, and its place in our tree."""

    name: str
    leaf: str
    layer: int | None  # place on axis 0 of the leaf
    transposed: bool
    shape: tuple[int, ...]  # theirs


def flatten(params: Params) -> dict[str, Any]:
    """The leaves by their dotted paths."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {".".join(key.key for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The tree whose leaves `flatten` lists."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def expected_tensors(cfg: ModelConfig, boxed: Params | None = None) -> list[Tensor]:
    """Every tensor that a Hugging Face folder of this decoder holds, in table order.

    Args:
      boxed: the decoder's abstract parameters, where they are at hand; tracing takes its time.
    """
    shapes = flatten(nn.unbox(abstract_params(cfg) if boxed is None else boxed))
    names = [name for name in TABLE if name.ours in shapes]
    left = set(shapes) - {name.ours for name in names}
    assert not left, f"parameters without a Hugging Face name: {sorted(left)}"
    tensors = []
    for name in names:
        stacked = "{}" in name.theirs
        shape = shapes[name.ours].shape[1:] if stacked else shapes[name.ours].shape
        shape = shape[::-1] if name.transposed else shape
        for layer in range(cfg.num_layers) if stacked else (None,):
            theirs = name.theirs.format(layer)
            tensors.append(Tensor(theirs, name.ours, layer, name.transposed, shape))
    return tensors
