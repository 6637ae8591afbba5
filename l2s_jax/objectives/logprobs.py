"""Log-probabilities and entropies of tokens, from hidden states, in blocks of the vocabulary.

Lives here: the one way from the last hidden states and the head matrix to what the losses read.
Not here: the model that makes the hidden states (`model`), the losses (`sft`, `grpo`), the
sampler's own log-probs of a single position (`sampling.choose`), which these must agree with.

Shape letters: B rows, T time, D width, V vocabulary, C one block of the vocabulary.

The head is one row per token, `head_VD`, as a tied embedding is stored; an untied kernel [D, V]
is passed transposed. [B, T, V] is never held: the running maximum and sum are those of online
softmax (Milakov & Gimelshein, arXiv 1805.02867), and the gradient makes each block's logits
again from the saved log-partition, as cut cross-entropy does (arXiv 2411.09009).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Temperature = Float[Array, ""] | Float[Array, " B"] | float


def token_logp(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: Temperature = 1.0,
    block: int = 8192,
) -> Float[Array, "B T"]:
    """Returns the log-prob of each target in nats, float32, with gradients to hidden and head.

    Args:
      targets_BT: ids; one outside the vocabulary, which padding may hold, is read as the nearest
        inside, so that its log-prob is finite. The loss must mask it.
      temperature: above 0, for all rows or one per row; it divides the logits and gets no
        gradient.
      block: vocabulary rows whose logits are held at a time. A vocabulary that fits in one block
        goes the plain way.
    """
    return token_logp_and_entropy(
        hidden_BTD, head_VD, targets_BT, temperature=temperature, block=block
    )[0]


def token_logp_and_entropy(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: Temperature = 1.0,
    block: int = 8192,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Returns `token_logp` and the entropy at each position in nats; no gradient by entropy."""
    if block < 1:
        raise ValueError(f"block={block}: no logits at a time. Give 1 or more; 8192 is usual.")
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(
            f"temperature={temperature}: log-probs need one above 0. For tokens that were"
            " chosen greedily pass 1.0."
        )
    num_rows, num_words = hidden_BTD.shape[0], head_VD.shape[0]
    inverse_B = jnp.broadcast_to(1.0 / jnp.asarray(temperature, jnp.float32), (num_rows,))
    targets_BT = jnp.clip(targets_BT, 0, num_words - 1)
    if num_words <= block:
        return _whole(hidden_BTD, head_VD, targets_BT, inverse_B)
    return _blocked(block, hidden_BTD, head_VD, targets_BT, inverse_B)


def _logits(hidden_BTD, head_CD, inverse_B):
    """Logits over some rows of the head, accumulated in float32 whatever the inputs are."""
    logits_BTC = jnp.einsum(
        "btd,cd->btc", hidden_BTD, head_CD, preferred_element_type=jnp.float32
    ).astype(jnp.float32)
    return logits_BTC * inverse_B[:, None, None]


def _whole(hidden_BTD, head_VD, targets_BT, inverse_B):
    """The definition: log-softmax over all logits at once."""
    logp_BTV = jax.nn.log_softmax(_logits(hidden_BTD, head_VD, inverse_B), axis=-1)
    logp_BT = jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1)[..., 0]
    fixed_BTV = jax.lax.stop_gradient(logp_BTV)
    return logp_BT, -jnp.sum(jnp.exp(fixed_BTV) * fixed_BTV, axis=-1)


def _block_of(index, block, head_VD):
    """Returns (start, head_CD, new_11C): the block's rows, and True on those not seen before.

    The last block is moved back to end with the vocabulary, so that the head is never padded
    (a copy of the largest matrix of the model); rows that it repeats are not new.
    """
    first = index * block
    start = jnp.minimum(first, head_VD.shape[0] - block)
    head_CD = jax.lax.dynamic_slice_in_dim(head_VD, start, block)
    return start, head_CD, (start + jnp.arange(block) >= first)[None, None]


def _num_blocks(block, head_VD):
    return -(-head_VD.shape[0] // block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(block, hidden_BTD, head_VD, targets_BT, inverse_B):
    return _blocked_forward(block, hidden_BTD, head_VD, targets_BT, inverse_B)[0]


def _blocked_forward(block, hidden_BTD, head_VD, targets_BT, inverse_B):
    def body(index, state):
        max_BT, sum_BT, moment_BT, picked_BT = state
        start, head_CD, new_11C = _block_of(index, block, head_VD)
        logits_BTC = _logits(hidden_BTD, head_CD, inverse_B)
        # A repeated row holds the logit that it held before, so it cannot raise the maximum.
        new_max_BT = jnp.maximum(max_BT, logits_BTC.max(axis=-1))
        weight_BTC = jnp.where(new_11C, jnp.exp(logits_BTC - new_max_BT[..., None]), 0.0)
        decay_BT = jnp.exp(max_BT - new_max_BT)  # 0 in the first block, whose old maximum is -inf
        sum_BT = sum_BT * decay_BT + weight_BTC.sum(axis=-1)
        moment_BT = moment_BT * decay_BT + (weight_BTC * logits_BTC).sum(axis=-1)
        at_BT = targets_BT - start
        here_BT = (at_BT >= 0) & (at_BT < block)
        at_BT1 = jnp.clip(at_BT, 0, block - 1)[..., None]
        logit_BT = jnp.take_along_axis(logits_BTC, at_BT1, axis=-1)[..., 0]
        return new_max_BT, sum_BT, moment_BT, jnp.where(here_BT, logit_BT, picked_BT)

    zeros_BT = jnp.zeros(targets_BT.shape, jnp.float32)
    start = (jnp.full_like(zeros_BT, -jnp.inf), zeros_BT, zeros_BT, zeros_BT)
    max_BT, sum_BT, moment_BT, picked_BT = jax.lax.fori_loop(
        0, _num_blocks(block, head_VD), body, start
    )
    log_partition_BT = max_BT + jnp.log(sum_BT)
    outputs = (picked_BT - log_partition_BT, log_partition_BT - moment_BT / sum_BT)
    return outputs, (hidden_BTD, head_VD, targets_BT, inverse_B, log_partition_BT)


def _blocked_backward(block, saved, cotangents):
    hidden_BTD, head_VD, targets_BT, inverse_B, log_partition_BT = saved
    scale_BT1 = (cotangents[0] * inverse_B[:, None])[..., None]

    def body(index, grads):
        hidden_grad_BTD, head_grad_VD = grads
        start, head_CD, new_11C = _block_of(index, block, head_VD)
        prob_BTC = jnp.exp(_logits(hidden_BTD, head_CD, inverse_B) - log_partition_BT[..., None])
        hit_BTC = (targets_BT - start)[..., None] == jnp.arange(block)[None, None]
        logit_grad_BTC = jnp.where(new_11C, (hit_BTC - prob_BTC) * scale_BT1, 0.0)
        logit_grad_BTC = logit_grad_BTC.astype(head_VD.dtype)  # matrix units take one type
        dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        hidden_grad_BTD = hidden_grad_BTD + dot("btc,cd->btd", logit_grad_BTC, head_CD)
        block_grad_CD = dot("btc,btd->cd", logit_grad_BTC, hidden_BTD).astype(head_VD.dtype)
        # Added, not written: a repeated row keeps its gradient and is given exactly zero here.
        before_CD = jax.lax.dynamic_slice_in_dim(head_grad_VD, start, block)
        head_grad_VD = jax.lax.dynamic_update_slice_in_dim(
            head_grad_VD, before_CD + block_grad_CD, start, axis=0
        )
        return hidden_grad_BTD, head_grad_VD

    start = (jnp.zeros(hidden_BTD.shape, jnp.float32), jnp.zeros_like(head_VD))
    hidden_grad_BTD, head_grad_VD = jax.lax.fori_loop(0, _num_blocks(block, head_VD), body, start)
    return hidden_grad_BTD.astype(hidden_BTD.dtype), head_grad_VD, None, None


_blocked.defvjp(_blocked_forward, _blocked_backward)
