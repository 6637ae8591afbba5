"""From an `OptimConfig` to an optax optimizer.

Lives here: AdamW with a warm-up and a cosine, gradients clipped by their global norm. Not here:
the step that applies it (`training/step.py`).
"""

import dataclasses

import optax


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


def make_optimizer(cfg: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` steps."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(schedule(cfg, num_steps), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay),
    )
