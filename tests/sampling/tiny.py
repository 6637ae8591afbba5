"""Tiny policies to sample from: a random decoder, and one whose every move is written down."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import forward, head, init_params, logits
from l2s_jax.model.seen import Seen
from l2s_jax.objectives.logprobs import token_logp
from l2s_jax.sampling.policy import Policy
from l2s_jax.tokens.tokenizer import Tokenizer, from_hf
from l2s_jax.tokens.triggers import Spelling, add_triggers, find_triggers

PIECES = ["<end>", "<E", "ASY", "LONG", "SHORT", "ANSWER", "><", ">\n", *"<>EASY \n", *"0123456789"]
"""Pieces as in Qwen2.5: `<EASY>` begins with "<E", `<LONG>` with "<"; several close them."""

VOCAB = 32


def pieces_tokenizer() -> Tokenizer:
    """A tokenizer that spells plain triggers; its pad token is its stop token."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {piece: i for i, piece in enumerate(dict.fromkeys(PIECES))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    longest = sorted((p for p in words if len(p) > 1), key=len, reverse=True)
    cut = tokenizers.Regex("|".join([*longest, ".", "\n"]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(cut, behavior="isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    hf = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    return from_hf(hf, [0])


@functools.cache
def vocabulary(spelling: Spelling) -> tuple[Tokenizer, Any]:
    if spelling == "added":
        return add_triggers(make_tokenizer())
    tokenizer = pieces_tokenizer()
    return tokenizer, find_triggers(tokenizer, "plain")


@functools.cache
def random_policy(spelling: Spelling = "added") -> Policy:
    """Two layers, grouped heads, weights large enough that no choice is a near tie.

    Not larger: at 8 times the initial ones half a unit in the weights' last place moves some
    log-probs by 1e-4 (at 5 times by 4e-6), and tests would be about the processor's rounding.
    """
    model = ModelConfig(
        vocab_size=VOCAB,
        width=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        ffn_width=24,
        tied=False,
        max_positions=128,
    )
    params = nn.unbox(init_params(model, jax.random.key(3)))
    params = jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, params)
    tokenizer, triggers = vocabulary(spelling)
    return Policy(model=model, params=params, tokenizer=tokenizer, triggers=triggers)


@functools.cache
def silent_decoder() -> tuple[ModelConfig, Any]:
    """A decoder that adds nothing to the stream, which is the last token's unit vector."""
    model = ModelConfig(
        vocab_size=VOCAB,
        width=VOCAB,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        ffn_width=2,
        tied=False,
        rms_eps=1e-12,
        max_positions=128,
    )
    params = nn.unbox(init_params(model, jax.random.key(0)))
    for part, name in (("attention", "o_proj"), ("mlp", "down_proj")):
        params["layers"][part][name]["kernel"] *= 0
    params["embed"]["embedding"] = jnp.eye(VOCAB)
    return model, params


def scripted_policy(spelling: Spelling, next_logits_VV: np.ndarray) -> Policy:
    """A policy whose logits after token i are row i, whatever stands before it."""
    model, params = silent_decoder()
    params = params | {"lm_head": jnp.asarray(next_logits_VV / np.sqrt(VOCAB), jnp.float32)}
    tokenizer, triggers = vocabulary(spelling)
    return Policy(model=model, params=params, tokenizer=tokenizer, triggers=triggers)


@functools.partial(jax.jit, static_argnums=0)
def full_logits(
    model: ModelConfig, params: Any, tokens_BT: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(hidden states, logits) of right-padded sequences by the training forward."""
    index_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    real_BT = (index_BT < lengths_B[:, None]).astype(jnp.int32)
    hidden_BTD = forward(model, params, tokens_BT, index_BT, seen=Seen(real_BT))
    return hidden_BTD, logits(params, hidden_BTD)


def trained_logp(policy: Policy, rollouts: list, temperature: float, width: int = 64) -> list:
    """The training forward's log-probs of each rollout's tokens."""
    tokens_BT = np.zeros((len(rollouts), width), np.int32)
    lengths_B = np.zeros(len(rollouts), np.int32)
    for row, rollout in enumerate(rollouts):
        ids = np.concatenate([rollout.prompt_ids, rollout.token_ids])
        tokens_BT[row, : len(ids)], lengths_B[row] = ids, len(ids)
    hidden_BTD, _ = full_logits(policy.model, policy.params, tokens_BT, lengths_B)
    targets_BT = jnp.asarray(tokens_BT[:, 1:])
    logp_BT = token_logp(
        hidden_BTD[:, :-1], head(policy.params), targets_BT, temperature=temperature
    )
    starts = [len(rollout.prompt_ids) - 1 for rollout in rollouts]
    return [
        np.asarray(logp_BT)[row, start : start + rollout.num_tokens]
        for row, (start, rollout) in enumerate(zip(starts, rollouts, strict=True))
    ]
