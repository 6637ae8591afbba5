"""The loss of stage 1.

Lives here: weighted negative log-likelihood. Not here: which tokens are trained and with what
weight (`tokens.layouts`, `data.packing`), the log-probs themselves (`logprobs`).

Shape letters: B rows, T time. Source: AutoL2S, arXiv 2505.22662, whose stage 1 is ordinary
next-token likelihood over the annotated sequence; the mean over the tokens of the step is ours.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sft_loss(
    logp_BT: Float[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    *,
    num_tokens: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the weighted negative log-likelihood divided by `num_tokens`, and metrics.

    Losses and metrics of the micro-batches of one step add up to those of the step.

    Args:
      logp_BT: log-prob of the target, nats; may hold anything where the weight is 0.
      weights_BT: loss weight of the target; 0 on prompt and padding.
      num_tokens: sum of the weights over the whole step, above 0.
    """
    trained_BT = weights_BT != 0
    # Select before the product: padding may hold -inf, and -inf * 0 is nan.
    nll_BT = -jnp.where(trained_BT, logp_BT, 0.0) * weights_BT
    loss = jnp.sum(nll_BT) / num_tokens
    return loss, {"nll": loss, "trained_tokens": jnp.sum(trained_BT).astype(jnp.float32)}
