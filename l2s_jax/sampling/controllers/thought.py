"""When a row's thought ends: a bound with a closing phrase, "Wait" against an early end, and a
temperature on the decision to stop.

Lives here: `ThoughtConfig`, the controller. Not here: routing (`controllers/routing.py`), the bound
on a whole completion (the loop's).

A thought ends where the row writes one of the ids `ends`: in this project `<ANSWER>`, and the stop
ids. Sources: budget forcing, s1 (arXiv 2501.19393); the stop's temperature, TS: log p(end) is
divided by tau and all is renormalised, so that tau above 1 ends sooner.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.sampling.choose import FREE

NO_SCRIPT, CLOSING, WAIT = range(3)
UNBOUND = int(np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThoughtConfig:
    """How thoughts end; the defaults leave that to the policy."""

    ends: tuple[int, ...]  # ids that end a thought
    closing: tuple[int, ...] = ()  # written when the bound is reached; its last id is in `ends`
    max_tokens: int | None = None  # of a thought, before the closing is written
    wait: tuple[int, ...] = ()  # written in the place of an early end
    num_waits: int = 0  # how often
    stop_tau: float = 1.0  # divides the log-prob of `ends[0]` while the row thinks

    def __post_init__(self):
        if not self.ends:
            raise ValueError("ThoughtConfig.ends is empty: name the ids that end a thought.")
        if self.max_tokens is not None:
            if self.max_tokens < 1:
                raise ValueError(f"ThoughtConfig.max_tokens={self.max_tokens}: at least 1.")
            if not self.closing or self.closing[-1] not in self.ends:
                raise ValueError(
                    f"ThoughtConfig.closing={self.closing}: with max_tokens={self.max_tokens} it is"
                    f" the phrase to write then, and its last id is one of ends={self.ends}."
                )
        if self.num_waits < 0 or (self.num_waits and not self.wait):
            raise ValueError(
                f"ThoughtConfig.num_waits={self.num_waits}, wait={self.wait}: give the ids to write"
                " instead of an early end, and how often, 0 or more."
            )
        if not self.stop_tau > 0:
            raise ValueError(
                f"ThoughtConfig.stop_tau={self.stop_tau}: above 0; 1 changes nothing, more ends"
                " thoughts sooner."
            )


@struct.dataclass
class Thoughts:
    """The settings of the controller; constant over a completion."""

    ends: Any  # [X] int32; -1 is no id
    scripts: Any  # [3, M] int32, by NO_SCRIPT, CLOSING, WAIT
    script_lengths: Any  # [3] int32
    max_tokens: Any  # [B] int32, UNBOUND where there is no bound
    num_waits: Any  # [B] int32
    stop_tau: Any  # [B] float32


@struct.dataclass
class ThoughtState:
    """What the controller knows of each row."""

    closed: Any  # [B] bool, the thought has ended
    waited: Any  # [B] int32, times
    script: Any  # [B] int32, being forced
    place: Any  # [B] int32, within the script


def places(number: int) -> int:
    """Room for `number` ids in a traced array: few sizes, so that other phrases compile nothing."""
    return max(4, 1 << (number - 1).bit_length()) if number else 4


def make_thoughts(cfg: ThoughtConfig | None) -> Thoughts:
    """The settings for one row [B = 1]; None is a controller that never acts."""
    if cfg is None:
        cfg = ThoughtConfig(ends=(-1,))
    scripts = ((), cfg.closing, cfg.wait)
    padded = np.zeros((3, places(max(map(len, scripts)))), np.int32)
    for row, script in zip(padded, scripts, strict=True):
        row[: len(script)] = script
    bound = UNBOUND if cfg.max_tokens is None else cfg.max_tokens
    return Thoughts(
        ends=jnp.asarray([*cfg.ends, *[-1] * (places(len(cfg.ends)) - len(cfg.ends))], jnp.int32),
        scripts=jnp.asarray(padded),
        script_lengths=jnp.asarray([len(script) for script in scripts], jnp.int32),
        max_tokens=jnp.full(1, bound, jnp.int32),
        num_waits=jnp.full(1, cfg.num_waits, jnp.int32),
        stop_tau=jnp.full(1, cfg.stop_tau, jnp.float32),
    )


def begin_thoughts(num_rows: int) -> ThoughtState:
    """Every row before its first token."""
    zero_B = jnp.zeros(num_rows, jnp.int32)
    return ThoughtState(jnp.zeros(num_rows, bool), zero_B, zero_B, zero_B)


def thought_step(
    thoughts: Thoughts, state: ThoughtState, token_B: Int[Array, " B"], written_B: Int[Array, " B"]
) -> tuple[ThoughtState, Int[Array, " B"]]:
    """The state after each row's last token, and the id forced next, or FREE.

    Args:
      token_B: what entered last; FREE before the first token.
      written_B: tokens that the row has written.
    """
    closed_B = state.closed | _is_end(thoughts, token_B)
    idle_B = state.place >= thoughts.script_lengths[state.script]
    due_B = ~closed_B & idle_B & (written_B >= thoughts.max_tokens)
    script_B = jnp.where(due_B, CLOSING, jnp.where(idle_B, NO_SCRIPT, state.script))
    place_B = jnp.where(due_B | idle_B, 0, state.place)
    inside_B = place_B < thoughts.script_lengths[script_B]
    last = thoughts.scripts.shape[1] - 1
    forced_B = jnp.where(inside_B, thoughts.scripts[script_B, jnp.minimum(place_B, last)], FREE)
    place_B = place_B + inside_B.astype(jnp.int32)
    return ThoughtState(closed_B, state.waited, script_B, place_B), forced_B


def withhold_end(
    thoughts: Thoughts, state: ThoughtState, token_B: Int[Array, " B"], free_B: Bool[Array, " B"]
) -> tuple[ThoughtState, Int[Array, " B"], Bool[Array, " B"]]:
    """(state, token, free) with the wait phrase begun where the policy drew an end too early."""
    left_B = state.waited < thoughts.num_waits
    early_B = free_B & ~state.closed & left_B & _is_end(thoughts, token_B)
    state = dataclasses.replace(
        state,
        waited=state.waited + early_B.astype(jnp.int32),
        script=jnp.where(early_B, WAIT, state.script),
        place=jnp.where(early_B, 1, state.place),
    )
    return state, jnp.where(early_B, thoughts.scripts[WAIT, 0], token_B), free_B & ~early_B


def temper_end(
    thoughts: Thoughts, state: ThoughtState, logits_BV: Float[Array, "B V"]
) -> Float[Array, "B V"]:
    """Logits in which `ends[0]` of rows that think has its log-prob divided by tau.

    On log-probs: a raw logit has no meaning of its own to be divided.
    """
    end = thoughts.ends[0]
    all_B = jax.nn.logsumexp(logits_BV, axis=-1)
    logp_B = logits_BV[:, end] - all_B
    tempered_B = all_B + logp_B / thoughts.stop_tau
    thinks_B = ~state.closed & (thoughts.stop_tau != 1) & (end >= 0)
    return logits_BV.at[:, end].set(jnp.where(thinks_B, tempered_B, logits_BV[:, end]))


def _is_end(thoughts: Thoughts, token_B: Int[Array, " B"]) -> Bool[Array, " B"]:
    end_BX = token_B[:, None] == thoughts.ends[None]
    return jnp.any(end_BX & (thoughts.ends >= 0)[None], axis=-1)
