"""From an `OptimConfig` to an optax optimizer.

Lives here: AdamW with a warm-up and a cosine, gradients clipped by their global norm over the whole
step. Not here: the step that applies it (`training/step.py`).

Weight decay pulls matrices and embeddings to zero, and leaves norms' scales and biases alone: they
are few, they do not overfit, and a norm's scale belongs near one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2s_jax.model.config import DTypeName

UNDECAYED = ("scale", "bias")  # names of leaves: of a norm, a linear layer, an adapter's constant


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW. The rate rises from 0 over `warmup_steps`, then falls as a cosine."""

    peak_lr: float = 1e-5
    warmup_steps: int = 0
    final_fraction: float = 0.1  # of peak_lr, where the cosine ends; 1 keeps it constant
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    weights: DTypeName = "float32"  # how what is trained is kept. The model computes in its own
    # dtype either way; bfloat16 halves memory, is rounded by chance, moments stay float32.

    def __post_init__(self):
        for name in ("peak_lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"OptimConfig.{name}={getattr(self, name)}: must be above 0.")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"OptimConfig.{name}={getattr(self, name)}: 0 or more.")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"OptimConfig.{name}={getattr(self, name)}: the share of a moment that a step"
                    " keeps, at least 0 and below 1."
                )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"OptimConfig.final_fraction={self.final_fraction}: a share of peak_lr, 0 to 1."
            )


def schedule(cfg: OptimConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by steps taken: 0 (or the peak, without a warm-up) before the first."""
    if cfg.warmup_steps >= num_steps:
        raise ValueError(
            f"OptimConfig.warmup_steps={cfg.warmup_steps}, but the run has {num_steps} steps."
            " Shorten the warm-up or lengthen the run."
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if cfg.warmup_steps else cfg.peak_lr,
        peak_value=cfg.peak_lr,
        warmup_steps=cfg.warmup_steps,
        decay_steps=num_steps,
        end_value=cfg.peak_lr * cfg.final_fraction,
    )


def decayed(params: Any) -> Any:
    """True on the leaves that weight decay pulls to zero."""

    def is_decayed(path: Any, _: Any) -> bool:
        # Of dictionaries only: a leaf may lie in a box with its logical axes.
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        return not names or names[-1] not in UNDECAYED

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(cfg: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` steps; it works in float32 whatever it is given."""
    adamw = optax.adamw(
        schedule(cfg, num_steps),
        b1=cfg.b1,
        b2=cfg.b2,
        weight_decay=cfg.weight_decay,
        mask=decayed,
    )
    chain = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), adamw)

    def init(params: Any) -> Any:
        return chain.init(_in_float32(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return chain.update(_in_float32(updates), state, _in_float32(params))

    return optax.GradientTransformation(init, update)


def _in_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
