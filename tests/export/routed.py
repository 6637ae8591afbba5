"""A tiny policy that learnt to route by its question's first digit, and not to write `<SHORT>`.

Trained for a few hundred steps on `question <EASY> ...` and `question <LONG> ...`: its routes vary,
and what a router inserts after `<EASY>` is never what it would have written.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import forward, init_params, logits
from l2s_jax.model.seen import Seen
from l2s_jax.sampling.policy import Policy
from l2s_jax.tokens.triggers import Spelling
from tests.sampling.tiny import VOCAB, vocabulary

NUM_STEPS, WIDTH = 300, 32


def question(rng: np.random.Generator, spelling: Spelling) -> list[int]:
    """Digits, their number drawn too."""
    tokenizer, _ = vocabulary(spelling)
    digits = rng.integers(0, 10, rng.integers(4, 9))
    joiner = " " if spelling == "added" else ""
    return tokenizer.encode(joiner.join(map(str, digits)))


def is_easy(question_ids: list[int], spelling: Spelling) -> bool:
    tokenizer, _ = vocabulary(spelling)
    return int(tokenizer.decode(question_ids[:1])) < 5


def _text(rng: np.random.Generator, spelling: Spelling) -> tuple[list[int], int]:
    """(ids, where training begins): half routed by the question, a quarter each sent its way."""
    tokenizer, triggers = vocabulary(spelling)
    asked, kind = question(rng, spelling), rng.integers(0, 4)
    easy = is_easy(asked, spelling) if kind < 2 else kind == 2
    opening = triggers.easy + (triggers.short if kind == 2 else ()) if easy else triggers.long
    thought = asked[::-1] if easy else asked + asked[::-1]
    answer = [*thought, *triggers.answer, asked[-1], tokenizer.stop_ids[0]]
    given = len(asked) + (len(opening) if kind >= 2 else 0)
    return [*asked, *opening, *answer], given


def _batch(rng: np.random.Generator, spelling: Spelling, num: int, width: int = 48) -> Any:
    tokens_BT = np.zeros((num, width), np.int32)
    real_BT, trained_BT = np.zeros((num, width), bool), np.zeros((num, width), bool)
    for row in range(num):
        ids, start = _text(rng, spelling)
        tokens_BT[row, : len(ids)] = ids
        real_BT[row, : len(ids)] = True
        trained_BT[row, start : len(ids)] = True
    return jnp.asarray(tokens_BT), jnp.asarray(real_BT), jnp.asarray(trained_BT)


@functools.cache
def routed_policy(spelling: Spelling = "added") -> Policy:
    """The policy; the same at every call."""
    model = ModelConfig(
        vocab_size=VOCAB,
        width=WIDTH,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_width=64,
        tied=False,
        max_positions=128,
    )
    params = nn.unbox(jax.jit(lambda key: init_params(model, key))(jax.random.key(5)))
    optimizer = optax.adam(5e-3)

    def loss(params, tokens_BT, real_BT, trained_BT):
        position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        real_BT = real_BT.astype(jnp.int32)
        seen = Seen(real_BT)
        hidden_BTD = forward(model, params, tokens_BT, position_BT, seen=seen)
        logp_BTV = jax.nn.log_softmax(logits(params, hidden_BTD)[:, :-1])
        logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
        return -jnp.mean(logp_BT, where=trained_BT[:, 1:])

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state)
        return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng(0), optimizer.init(params)
    for _ in range(NUM_STEPS):
        params, state = step(params, state, _batch(rng, spelling, 32))
    tokenizer, triggers = vocabulary(spelling)
    return Policy(model=model, params=params, tokenizer=tokenizer, triggers=triggers)
