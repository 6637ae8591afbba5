"""The shape of a decoder.

Lives here: `ModelConfig`. Not here: its translation from
and to a Hugging Face `config.json` (`model/hf/config.py`), how the arrays are laid over devices
(`sharding.py`).
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

DTypeName = Literal["float32", "bfloat16"]
Remat = Literal["none", "full", "dots"]
"""What of a block the backward pass computes again. none: nothing. full: all, from the block's
input. dots: all but the linear layers' results, which are kept; attention's scores are not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretching of slow rotary rates, for contexts longer than the first training's.

    Wavelengths below `original_positions / high_freq_factor` stay, those above
    `original_positions / low_freq_factor` grow by `factor`, those between move smoothly.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    def __post_init__(self):
        if not (self.factor >= 1 and 0 < self.low_freq_factor < self.high_freq_factor):
            raise ValueError(
                f"{self}: factor must be at least 1, and low_freq_factor above 0 and below"
                " high_freq_factor."
            )
        if self.original_positions < 1:
            raise ValueError(f"{self}: original_positions must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Qwen2 has `qkv_bias`, Qwen3 `qk_norm`, Llama 3 `rope_scaling`.
    """

    vocab_size: int  # rows of the embedding, padding rows included
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    tied: bool = True  # the output head is the embedding
    qkv_bias: bool = True
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # each head's queries and keys are normed before they are rotated
    rope_scaling: RopeScaling | None = None
    max_positions: int = 32768  # what the weights were trained for; longer is a user's error
    dtype: DTypeName = "float32"  # of the computation; parameters are float32
    remat: Remat = "none"

    def __post_init__(self):
        for name in (
            "vocab_size width num_layers num_heads num_kv_heads head_dim ffn_width max_positions"
        ).split():
            if getattr(self, name) < 1:
                raise ValueError(f"ModelConfig.{name}={getattr(self, name)}: must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"ModelConfig.num_heads={self.num_heads} is no multiple of"
                f" num_kv_heads={self.num_kv_heads}: query heads share key heads evenly."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"ModelConfig.head_dim={self.head_dim}: rotary positions turn pairs of entries;"
                " make it even."
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)
