"""Routing inside the compiled loop: what a trigger sets off, row by row.

Lives here: the modes, the routing controller (pure; its tables and settings are traced arrays),
and the record of what it did. Not here: how a trigger is recognised (`tokens/automaton.py`), the
draw (`sampling/choose.py`).

| mode        | what the controller does                                                  |
|-------------|---------------------------------------------------------------------------|
| auto        | the policy chooses its first trigger; after `<EASY>`, `<SHORT>` is forced  |
| force-long  | `<LONG>` is forced at the start                                           |
| force-short | `<EASY><SHORT>` is forced at the start (`<SHORT>` alone with "replace")   |
| free        | nothing (the paper's "w/o EASY")                                          |

With a threshold, `auto` does not leave the choice to the policy: `<EASY>` is forced where
p(EASY) reaches it, `<LONG>` elsewhere, in the policy's likeliest spelling. The switch "append"
keeps `<EASY>` before `<SHORT>` (the paper's second version), "replace" takes it back (the first).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.sampling.choose import FREE, best
from l2s_jax.tokens.automaton import BOTH, TO_EASY, TO_LONG, RouteTable
from l2s_jax.tokens.triggers import Triggers

Mode = Literal["auto", "force-long", "force-short", "free"]
MODES: tuple[Mode, ...] = ("auto", "force-long", "force-short", "free")
AUTO, FORCE_LONG, FORCE_SHORT, FREE_RUN = range(4)

Switch = Literal["append", "replace"]

NO_SCRIPT, OPEN_LONG, OPEN_SHORT, TO_SHORT, REST_OF_SHORT = range(5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingConfig:
    """How rows are routed. `modes` names one mode for all samples of a prompt, or one for each."""

    modes: tuple[Mode, ...] = ("auto",)
    threshold: float | None = None  # on p(EASY); None leaves the choice to the policy
    switch: Switch = "append"

    def __post_init__(self):
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise ValueError(f"RoutingConfig.modes={self.modes}: choose from {', '.join(MODES)}.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(
                f"RoutingConfig.threshold={self.threshold}: it is compared with a probability;"
                " set it between 0 and 1."
            )

    def of_sample(self, sample: int, num_samples: int) -> Mode:
        """The mode of one of a prompt's samples."""
        if len(self.modes) not in (1, num_samples):
            raise ValueError(
                f"RoutingConfig.modes has {len(self.modes)} modes for {num_samples} samples of a"
                " prompt. Give one for all, or one for each."
            )
        return self.modes[sample % len(self.modes)]


@struct.dataclass
class Router:
    """The tables and settings of the routing controller; constant over a completion."""

    next_state: Any  # [states, V] int8
    leads_to: Any  # [states, V] int8
    undecided: Any  # [states] bool
    opening: Any  # [states] bool, True where a next token may lead towards a trigger
    holds_next: Any  # [V] bool
    scripts: Any  # [5, M] int32, token ids to force, by NO_SCRIPT ... REST_OF_SHORT
    script_lengths: Any  # [5] int32
    replaces: Any  # [] bool, True where <EASY> is taken back
    mode: Any  # [B] int32
    threshold: Any  # [B] float32, below 0 where the policy chooses

    def without_rows(self) -> "Router":
        """The tables alone: however many rows there are, the same shapes."""
        return dataclasses.replace(self, mode=self.mode[:0], threshold=self.threshold[:0])


@struct.dataclass
class RouterState:
    """What the controller knows of each row."""

    state: Any  # [B] int32, of the automaton
    script: Any  # [B] int32, being forced
    place: Any  # [B] int32, within the script
    num_read: Any  # [B] int32, tokens read since the start, those taken back too
    p_easy: Any  # [B] float32, mass on routes that are surely EASY
    p_long: Any  # [B] float32
    p_both: Any  # [B] float32, mass on prefixes that both share; 1 at the start


@struct.dataclass
class Directive:
    """What the controller asks of the next token."""

    forced: Any  # [B] int32, a token id or FREE
    restart: Any  # [B] bool, True where all that was written is taken back first


def make_router(
    triggers: Triggers | None,
    table: RouteTable | None,
    modes: Sequence[Mode],
    threshold: float | None,
    switch: Switch,
    vocab_size: int,
) -> Router:
    """A router for rows of the given modes. Without triggers every row must run free."""
    mode_B = np.asarray([MODES.index(mode) for mode in modes], np.int32)
    if triggers is None or table is None:
        if np.any(mode_B != FREE_RUN):
            used = sorted(set(modes) - {"free"})
            raise ValueError(
                f"modes {used} need a model that knows the triggers, and this one does not."
                " Use mode free, or train it first with `l2s sft`."
            )
        table, scripts, longest = _no_table(vocab_size), [()] * 5, 1
    else:
        both = triggers.easy + triggers.short
        opening = triggers.short if switch == "replace" else both
        scripts = [(), triggers.long, opening, triggers.short, table.rest_of_short]
        # Room for what either switch forces, so that changing it compiles nothing.
        longest = max(map(len, [*scripts, both]))
    padded = np.zeros((5, longest), np.int32)
    for row, script in zip(padded, scripts, strict=True):
        row[: len(script)] = script
    return Router(
        next_state=jnp.asarray(table.next_state),
        leads_to=jnp.asarray(table.leads_to),
        undecided=jnp.asarray(table.undecided),
        opening=jnp.asarray((np.asarray(table.leads_to) != 0).any(axis=1) | table.undecided),
        holds_next=jnp.asarray(table.holds_next),
        scripts=jnp.asarray(padded),
        script_lengths=jnp.asarray([len(script) for script in scripts], jnp.int32),
        replaces=jnp.asarray(switch == "replace"),
        mode=jnp.asarray(mode_B),
        threshold=jnp.full(len(modes), -1.0 if threshold is None else threshold, jnp.float32),
    )


def _no_table(vocab_size: int) -> RouteTable:
    """The table of a model that knows no triggers: one state, and nothing leads anywhere."""
    nothing = np.zeros((1, vocab_size), np.int8)
    return RouteTable(
        next_state=nothing,
        leads_to=nothing,
        undecided=np.zeros(1, bool),
        holds_next=np.zeros(vocab_size, bool),
        rest_of_short=(),
    )


def begin_routing(router: Router) -> RouterState:
    """Every row before its first token; forced modes have their opening script loaded."""
    zero_B = jnp.zeros_like(router.mode)
    script_B = jnp.where(router.mode == FORCE_LONG, OPEN_LONG, NO_SCRIPT)
    script_B = jnp.where(router.mode == FORCE_SHORT, OPEN_SHORT, script_B)
    nothing_B = jnp.zeros(zero_B.shape, jnp.float32)
    return RouterState(zero_B, script_B, zero_B, zero_B, nothing_B, nothing_B, nothing_B + 1.0)


def route_step(
    router: Router,
    state: RouterState,
    token_B: Int[Array, " B"],
    logits_BV: Float[Array, "B V"],
    active_B: Bool[Array, " B"],
) -> tuple[RouterState, Directive]:
    """The controller's state after each row's last token, and what it asks of the next one.

    Args:
      token_B: what entered last; FREE before the first token.
      logits_BV: the policy's, of the next token.
    """
    state, restart_B = _read(router, state, token_B)

    def weigh_and_decide(state: RouterState):
        logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
        leads_BV = router.leads_to[state.state]
        state = _weigh(router, state, logp_BV, leads_BV)
        return state, _decide(router, state, logp_BV, leads_BV)

    def nothing_open(state: RouterState):
        return dataclasses.replace(state, p_both=0 * state.p_both), jnp.full_like(token_B, FREE)

    # Rows are at their opening for a few tokens of many: the rest need no sum over the vocabulary.
    any_open = jnp.any(active_B & router.opening[state.state])
    state, decided_B = jax.lax.cond(any_open, weigh_and_decide, nothing_open, state)
    place_B = jnp.minimum(state.place, router.scripts.shape[1] - 1)
    in_script_B = state.place < router.script_lengths[state.script]
    forced_B = jnp.where(in_script_B, router.scripts[state.script, place_B], FREE)
    forced_B = jnp.where(in_script_B, forced_B, decided_B)
    state = dataclasses.replace(state, place=state.place + in_script_B.astype(jnp.int32))
    return state, Directive(forced_B, restart_B)


def _read(router: Router, state: RouterState, token_B):
    """Feeds the last token to the automaton; completing EASY in auto loads the short trigger."""
    num_states = router.next_state.shape[0]
    known_B = token_B != FREE
    next_B = router.next_state[state.state, jnp.maximum(token_B, 0)].astype(jnp.int32)
    next_B = jnp.where(known_B, next_B, state.state)
    easy = num_states - 3
    found_B = (router.mode == AUTO) & (next_B == easy) & (state.state != easy)
    # "<EASY><" has the short trigger's first character already, unless all of it is taken back.
    begun_B = router.holds_next[jnp.maximum(token_B, 0)] & ~router.replaces
    script_B = jnp.where(begun_B, REST_OF_SHORT, TO_SHORT)
    state = dataclasses.replace(
        state,
        state=next_B,
        num_read=state.num_read + known_B.astype(jnp.int32),
        script=jnp.where(found_B, script_B, state.script),
        place=jnp.where(found_B, 0, state.place),
    )
    return state, found_B & router.replaces


def _weigh(router: Router, state: RouterState, logp_BV, leads_BV) -> RouterState:
    """Splits the mass that is still undecided over EASY, LONG and their common prefixes."""
    p_BV = jnp.exp(logp_BV)
    easy_B, long_B, both_B = (
        jnp.sum(p_BV, axis=-1, where=leads_BV == kind) for kind in (TO_EASY, TO_LONG, BOTH)
    )
    total_B = easy_B + long_B + both_B
    # A row on its way to one trigger must not add what it once held for common prefixes.
    open_B = router.undecided[state.state] & (total_B > 0)
    scale_B = jnp.where(open_B, state.p_both / jnp.where(open_B, total_B, 1.0), 0.0)
    return dataclasses.replace(
        state,
        p_easy=state.p_easy + scale_B * easy_B,
        p_long=state.p_long + scale_B * long_B,
        p_both=scale_B * both_B,
    )


def _decide(router: Router, state: RouterState, logp_BV, leads_BV):
    """With a threshold, the likeliest token towards the trigger that it picks; FREE elsewhere."""
    easy_B = probability_of_easy(state) >= router.threshold
    wanted_B1 = jnp.where(easy_B, TO_EASY, TO_LONG)[:, None]
    # A common prefix may be the only likely way on: allow it, and decide behind it.
    allowed_BV = (leads_BV == wanted_B1) | (leads_BV == BOTH)
    best_B = best(jnp.where(allowed_BV, logp_BV, -jnp.inf))
    # To the trigger's end: its first piece alone would leave the policy a way out of the route.
    dictated_B = (router.mode == AUTO) & (router.threshold >= 0) & jnp.any(allowed_BV, axis=-1)
    return jnp.where(dictated_B, best_B, FREE)


def probability_of_easy(state: RouterState) -> Float[Array, " B"]:
    """p(EASY) among routes that open with a trigger; nan where none was ever possible."""
    total_B = state.p_easy + state.p_long
    return jnp.where(total_B > 0, state.p_easy / jnp.where(total_B > 0, total_B, 1.0), jnp.nan)


def routes(router: Router, state: RouterState, token_B: Int[Array, " B"]) -> Int[Array, " B"]:
    """0 short, 1 long, 2 none: the trigger that each row opened with, or was made to.

    Args:
      token_B: the row's last token, which the state has not read yet.
    """
    state, _ = _read(router, state, token_B)
    short_B = (state.script >= OPEN_SHORT) & (state.script <= REST_OF_SHORT)
    final_B = state.state - (router.next_state.shape[0] - 3)
    found_B = jnp.where((final_B < 0) | (final_B > 2), 2, final_B)
    return jnp.where(short_B, 0, found_B)
