"""What a policy does after its own `<EASY>` where nothing is forced: will it write `<SHORT>`?

Lives here: P(short trigger | `<EASY>`) of a rollout, and what the summary says of it. Not here:
means and intervals of answers (`stats`), which engine forces and which does not
(`export/engines.py`). An engine that forces nothing has this probability to rely on.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from l2s_jax.evaluation.records import Answer
from l2s_jax.sampling.controllers.routing import Mode
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.tokens.triggers import EASY, SHORT
from l2s_jax.types import Rollout


def p_short_after_easy(rollout: Rollout, mode: Mode, sampling: SamplingConfig) -> float | None:
    """The policy's own probability of the whole short trigger behind the `<EASY>` that it wrote.

    None where `<EASY>` was not the policy's, was taken back, or the completion ended within the
    trigger; and at temperatures whose log-probs are not the policy's (0 and 1 are).
    """
    routing = sampling.routing
    if mode != "auto" or routing.threshold is not None or routing.switch == "replace":
        return None
    forced = ~rollout.free
    if sampling.temperature not in (0.0, 1.0) or not forced.any() or forced[-1]:
        return None
    return math.exp(float(np.sum(rollout.logp[forced], dtype=np.float64)))


def describe_after_easy(answers: Sequence[Answer]) -> dict[str, Any]:
    """The summary's entry of one stage and mode; empty where the answers cannot say.

    `p_short_after_easy` (mode auto): over the answers that opened with `<EASY>` by choice.
    `wrote_short_after_easy` (mode free): the share of them that went on with `<SHORT>` unforced;
    in a greedy evaluation that is where the short trigger is the policy's first choice.
    """
    found: dict[str, Any] = {}
    p_N = [p for answer in answers if (p := answer.get("p_short")) is not None]
    if p_N:
        found["p_short_after_easy"] = {
            "mean": float(np.mean(p_N)),
            "percentile_5": float(np.quantile(p_N, 0.05)),
            "lowest": float(np.min(p_N)),
            "num_answers": len(p_N),
        }
    rests = [
        answer["text"].lstrip().removeprefix(EASY).lstrip()
        for answer in answers
        if answer["mode"] == "free" and answer["text"].lstrip().startswith(EASY)
    ]
    if rests:
        share = float(np.mean([rest.startswith(SHORT) for rest in rests]))
        found["wrote_short_after_easy"] = {"share": share, "num_answers": len(rests)}
    return found
