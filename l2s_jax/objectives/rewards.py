"""What one rollout is worth, from arrays.

Lives here: correctness, the length-aware rewards, and their weighted sum. Not here: the verifier
that decides `correct_B` (`verify`), advantages (`advantages`; O1-Pruner's signal, which is one
already, is there), and which of them a preset takes (`presets`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.

A truncated rollout counts as wrong: `correct_B` must be False there. Lengths are generated
tokens, triggers and stop included. Sources are named at each function.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.objectives.groups import masked_mean_std, split_groups


def correctness(correct_B: Bool[Array, " B"]) -> Float[Array, " B"]:
    """Returns 1 for a right answer, 0 for a wrong one: AutoL2S v2's only signal (2505.22662)."""
    return correct_B.astype(jnp.float32)


def length_scaled(
    correct_B: Bool[Array, " B"],
    num_tokens_B: Int[Array, " B"],
    *,
    alpha: float,
    max_tokens: int,
) -> Float[Array, " B"]:
    """Returns 1 - alpha * tokens / max_tokens for a right answer, 0 for a wrong one.

    The linear form of the length penalty of Arora & Zanette (arXiv 2502.04463), with the
    generation limit in place of the group's statistics. With alpha below 1 the longest right
    answer is still worth more than a wrong one.
    """
    _check_alpha("length_scaled", alpha)
    if max_tokens < 1:
        raise ValueError(
            f"length_scaled: max_tokens={max_tokens}. Give the generation limit, 1 or more."
        )
    share_B = num_tokens_B.astype(jnp.float32) / max_tokens
    return jnp.where(correct_B, 1.0 - alpha * share_B, 0.0)


def sigmoid_length(
    correct_B: Bool[Array, " B"],
    num_tokens_B: Int[Array, " B"],
    *,
    group_size: int,
    alpha: float,
) -> Float[Array, " B"]:
    """Returns 1 - alpha * sigmoid(z) for a right answer, 0 for a wrong one.

    z is the length against mean and population deviation of the group's right answers, with 1e-7
    added to the deviation; right answers of one length all have z = 0. Arora & Zanette, arXiv
    2502.04463, whose published code this follows.
    """
    _check_alpha("sigmoid_length", alpha)
    length_NG = split_groups(num_tokens_B.astype(jnp.float32), group_size)
    correct_NG = split_groups(correct_B, group_size)
    mean_N1, std_N1 = masked_mean_std(length_NG, correct_NG)
    z_NG = jnp.where(correct_NG, (length_NG - mean_N1) / (std_N1 + 1e-7), 0.0)
    return jnp.where(correct_B, 1.0 - alpha * jax.nn.sigmoid(z_NG.reshape(-1)), 0.0)


def weighted_sum(
    terms: Mapping[str, Float[Array, " B"]], weights: Mapping[str, float]
) -> tuple[Float[Array, " B"], dict[str, Float[Array, ""]]]:
    """Returns the sum of weight times term, and the mean of each unweighted term and of the sum."""
    if not terms or set(terms) != set(weights):
        raise ValueError(
            f"reward terms {sorted(terms)} but weights for {sorted(weights)}."
            " Give one weight per term, and at least one term."
        )
    reward_B = jnp.sum(jnp.stack([weights[name] * terms[name] for name in terms]), axis=0)
    means = {f"reward/{name}": jnp.mean(term_B) for name, term_B in terms.items()}
    return reward_B, means | {"reward": jnp.mean(reward_B)}


def _check_alpha(where, alpha):
    if not 0 <= alpha < 1:
        raise ValueError(
            f"{where}: alpha={alpha}. Below 0 it pays for length, from 1 on a long right answer"
            " may be worth no more than a wrong one. Set it in [0, 1); 0.1 to 0.4 is usual."
        )
