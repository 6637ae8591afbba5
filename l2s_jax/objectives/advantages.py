"""How much better a rollout was than the others of its prompt.

Lives here: group-relative estimators, O1-Pruner's, and batch whitening. Not here: rewards
(`rewards`), the losses that read `adv_B` (`grpo`), the choice between them (`presets`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.

A flat group, all of whose samples earned the same, gets exactly zero from the group-relative
estimators and is counted as `flat_groups`. With correctness as the only reward these are the
questions that are always right, the easy ones: v2 learns nothing from them. All of this is
computed over a whole step, before it is cut into micro-batches. Sources at each function.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.objectives.groups import flat_groups, masked_mean_std, split_groups

Advantages = tuple[Float[Array, " B"], dict[str, Float[Array, ""]]]


def group_standardised(
    reward_B: Float[Array, " B"], *, group_size: int, ddof: int = 1, epsilon: float = 1e-6
) -> Advantages:
    """Returns (reward - mean) / (deviation + epsilon) within each group: GRPO (2402.03300).

    Args:
      ddof: taken from G in the deviation's denominator. 1 is what TRL and verl compute; the
        papers do not say.
      epsilon: reward, added to the deviation. 1e-6 is verl's and 1e-4 TRL's.
    """
    if group_size <= ddof:
        raise ValueError(
            f"group_size={group_size} with ddof={ddof}: no deviation can be taken."
            f" Sample {ddof + 1} or more rollouts per prompt."
        )
    centred_NG, std_N1, metrics = _centre(reward_B, group_size, ddof)
    return (centred_NG / (std_N1 + epsilon)).reshape(-1), metrics


def group_centred(reward_B: Float[Array, " B"], *, group_size: int) -> Advantages:
    """Returns reward - mean within each group, undivided: Dr. GRPO (2503.20783)."""
    centred_NG, _, metrics = _centre(reward_B, group_size, ddof=0)
    return centred_NG.reshape(-1), metrics


def leave_one_out(reward_B: Float[Array, " B"], *, group_size: int) -> Advantages:
    """Returns reward - mean of the group's other samples: RLOO (2402.14740)."""
    if group_size < 2:
        raise ValueError(
            f"group_size={group_size}: there are no others. Sample 2 or more rollouts per prompt."
        )
    adv_B, metrics = group_centred(reward_B, group_size=group_size)
    return adv_B * (group_size / (group_size - 1)), metrics


def length_harmonising(
    correct_B: Bool[Array, " B"],
    num_tokens_B: Int[Array, " B"],
    *,
    ref_tokens_N: Float[Array, " N"],
    ref_accuracy_N: Float[Array, " N"],
    group_size: int,
    accuracy_weight: float = 2.0,
    low: float = -2.0,
    high: float = 4.0,
) -> Advantages:
    """Returns ref_tokens / tokens - 1 + accuracy_weight * (correct - ref_accuracy), clipped.

    O1-Pruner, arXiv 2501.12570; clip and weight (2 for Marco-o1, 5 for QwQ) from its code, which
    whitens afterwards (`whiten`). AutoL2S-Plus is length-aware in an unpublished way; this is our
    reading of it. A group that is always right has signal here.

    Args:
      ref_tokens_N: mean length of the reference policy's rollouts of the prompt (`group_means`).
      ref_accuracy_N: the share of them that is right.
      low: advantage; shortest and longest rollouts are held in [low, high].
    """
    correct_NG = split_groups(correct_B, group_size).astype(jnp.float32)
    tokens_NG = split_groups(num_tokens_B.astype(jnp.float32), group_size)
    saved_NG = ref_tokens_N[:, None] / jnp.maximum(tokens_NG, 1.0) - 1.0  # rows that fill hold 0
    gained_NG = accuracy_weight * (correct_NG - ref_accuracy_N[:, None])
    adv_NG = saved_NG + gained_NG
    metrics = {
        "adv/saved": jnp.mean(saved_NG),
        "adv/gained": jnp.mean(gained_NG),
        "adv/clip_fraction": jnp.mean((adv_NG < low) | (adv_NG > high)),
        "flat_groups": jnp.sum(flat_groups(adv_NG)).astype(jnp.float32),
    }
    return jnp.clip(adv_NG, low, high).reshape(-1), metrics


def whiten(adv_B: Float[Array, " B"], *, epsilon: float = 1e-6) -> Float[Array, " B"]:
    """Returns (adv - mean) / (deviation + epsilon) over all rows, ddof 1; equal rows give zeros.

    O1-Pruner takes its statistics over the whole data set, we over one step. It moves the zero:
    a rollout that is better than its reference may get a negative advantage.
    """
    mean_11, std_11 = masked_mean_std(adv_B[None], jnp.ones_like(adv_B[None], bool), ddof=1)
    return ((adv_B[None] - mean_11) / (std_11 + epsilon))[0]


def _centre(reward_B, group_size, ddof):
    reward_NG = split_groups(reward_B, group_size)
    mean_N1, std_N1 = masked_mean_std(reward_NG, jnp.ones_like(reward_NG, bool), ddof)
    flat_N1 = flat_groups(reward_NG)
    metrics = {
        "flat_groups": jnp.sum(flat_N1).astype(jnp.float32),
        "reward_std": jnp.mean(std_N1),
    }
    return reward_NG - mean_N1, std_N1, metrics
