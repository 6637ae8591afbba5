"""Clipped policy losses, and the KL term.

Lives here: three losses over rollouts that differ in what a ratio is and in how tokens are
averaged; three functions, since they are three algorithms. Not here: rewards, advantages, which
tokens the policy chose (`sampling.choose`), log-probs (`logprobs`).

Shape letters: B rows (one rollout each), T completion time.

Sources: GRPO is DeepSeekMath, arXiv 2402.03300; AutoL2S stage 2 (arXiv 2505.22662, v2) takes its
clip at 0.2 with the SFT policy as the old one. Token-level averaging is DAPO, arXiv 2503.14476.
The sequence ratio is O1-Pruner, arXiv 2501.12570. The paper's sources do not say whether its
ratio is per token; we take GRPO's.

What all three promise: only tokens that the policy chose (`free_BT`) enter ratio, gradient and
length, and the stop token is one of them; a row without such a token adds nothing; the
denominator is an argument, counted over the whole step, so that losses and metrics of
micro-batches add up to those of the step. Metrics are averaged with the weights of their loss.
Log-ratios are held within ±20 (as in verl), since the gradient through exp(89) is 0 * inf.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MAX_LOG_RATIO = 20.0

Scalar = Float[Array, ""]
LossAndMetrics = tuple[Scalar, dict[str, Scalar]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Where the ratio to the old policy is clipped."""

    clip_low: float = 0.2  # the ratio is held above 1 - clip_low
    clip_high: float = 0.2  # and below 1 + clip_high; DAPO takes 0.28

    def __post_init__(self):
        if not 0 < self.clip_low < 1:
            raise ValueError(
                f"GrpoConfig.clip_low={self.clip_low}: a floor of {1 - self.clip_low:g}"
                " never clips a ratio, or always does. Set it between 0 and 1; 0.2 is usual."
            )
        if not 0 < self.clip_high < math.inf:
            raise ValueError(
                f"GrpoConfig.clip_high={self.clip_high}: a ceiling of {1 + self.clip_high:g}"
                " always clips a ratio, or never does. Set it above 0; 0.2 is usual."
            )


def grpo_loss(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    adv_B: Float[Array, " B"],
    free_BT: Bool[Array, "B T"],
    *,
    num_sequences: Scalar | float,
    cfg: GrpoConfig,
) -> LossAndMetrics:
    """Returns GRPO's loss: token ratios, mean over a rollout's tokens, then over rollouts.

    Args:
      logp_BT: log-prob of the token in the buffer, nats; alone carries gradient. It and
        `old_logp_BT` may hold anything where nothing is free.
      free_BT: True where the policy chose. The stop token counts; forced tokens and padding do
        not.
      num_sequences: rollouts of the whole step, above 0; rows that only fill the batch left out.
    """
    length_B1 = jnp.sum(free_BT, axis=-1, keepdims=True).astype(jnp.float32)
    weight_BT = free_BT / jnp.maximum(length_B1, 1.0) / num_sequences
    log_ratio_BT = _log_ratio(logp_BT, old_logp_BT, free_BT)
    return _surrogate(log_ratio_BT, adv_B[:, None], weight_BT, cfg)


def token_level_loss(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    adv_B: Float[Array, " B"],
    free_BT: Bool[Array, "B T"],
    *,
    num_tokens: Scalar | float,
    cfg: GrpoConfig,
) -> LossAndMetrics:
    """Returns DAPO's loss: token ratios, every free token of the step with the same weight.

    Args are those of `grpo_loss`, but `num_tokens`: free tokens of the whole step, above 0.
    """
    log_ratio_BT = _log_ratio(logp_BT, old_logp_BT, free_BT)
    return _surrogate(log_ratio_BT, adv_B[:, None], free_BT / num_tokens, cfg)


def sequence_ratio_loss(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    adv_B: Float[Array, " B"],
    free_BT: Bool[Array, "B T"],
    *,
    num_sequences: Scalar | float,
    cfg: GrpoConfig,
) -> LossAndMetrics:
    """Returns O1-Pruner's loss: one ratio per rollout, exp(mean logp - mean old logp).

    Args are those of `grpo_loss`.
    """
    length_B1 = jnp.sum(free_BT, axis=-1, keepdims=True).astype(jnp.float32)
    total_B1 = jnp.sum(_log_ratio(logp_BT, old_logp_BT, free_BT), axis=-1, keepdims=True)
    mean_B1 = total_B1 / jnp.maximum(length_B1, 1.0)
    return _surrogate(mean_B1, adv_B[:, None], (length_B1 > 0) / num_sequences, cfg)


def k3_penalty(
    logp_BT: Float[Array, "B T"],
    ref_logp_BT: Float[Array, "B T"],
    free_BT: Bool[Array, "B T"],
    *,
    num_tokens: Scalar | float,
) -> Scalar:
    """Returns an estimate of KL(policy || reference), in nats per free token; multiply and add.

    exp(d) - d - 1 with d = ref - logp: never negative, unbiased when the policy itself sampled
    the tokens (Schulman, "Approximating KL divergence", 2020, its k3; GRPO's equation 4).
    """
    return jnp.sum(_k3(-_log_ratio(logp_BT, ref_logp_BT, free_BT))) / num_tokens


def _k3(delta):
    return jnp.expm1(delta) - delta


def _log_ratio(logp_BT, old_logp_BT, free_BT):
    """Log-prob now less log-prob then; 0 where nothing is free. Gradient through `logp_BT` only."""
    # Select before exp: exp of what padding holds may be inf, and inf * 0 is nan.
    gap_BT = jnp.where(free_BT, logp_BT - jax.lax.stop_gradient(old_logp_BT), 0.0)
    return jnp.clip(gap_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _surrogate(log_ratio, adv_B1, weight, cfg):
    """The clipped loss and its metrics; `log_ratio` and `weight` are [B, T], or [B, 1]."""
    adv_B1 = jax.lax.stop_gradient(adv_B1)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    gain = jnp.minimum(ratio * adv_B1, clipped * adv_B1)

    def total(value):
        # Not the product alone: the advantage of a row that only fills the batch may be nan.
        return jnp.sum(jnp.where(weight > 0, value * weight, 0.0))

    metrics = {
        "clip_fraction": total((clipped != ratio).astype(jnp.float32)),
        "ratio_mean": total(ratio),
        "kl_to_old": total(_k3(log_ratio)),  # of KL(old || policy): the old one sampled
    }
    return -total(gain), jax.lax.stop_gradient(metrics)
