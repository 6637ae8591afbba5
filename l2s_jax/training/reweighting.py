"""How much of the training is EASY, set anew from what the policy does: TL;DR re-weighting.

Lives here: `MixingConfig`, the rule, and `Pilot`, which lets the policy answer held-out questions
during stage 1. Not here: batches of a given share (`data/mixing.py`).

Source: Too Long; Do Re-weighting (arXiv 2506.02678), which mixes long and short data. Every so
many steps the policy's accuracy and length on held-out problems are set against those of a long
and of a short reference: accuracy that is missing raises the share of long data, tokens that are
too many that of short data. Two things are ours: the kinds that are mixed are regular and EASY
items (an EASY item holds a long path too, unless the layout is `separated`), and answers are
greedy. Not to be confused with TLDR (arXiv 2505.07961), a reward.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from l2s_jax.data.mixing import Mix
from l2s_jax.model.lora import join, merge
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import SamplingConfig, ask, check_requests
from l2s_jax.training.hosts import joined, share
from l2s_jax.training.rollouts import judge
from l2s_jax.training.state import TrainState
from l2s_jax.training.stop import StopSignal
from l2s_jax.types import Problem
from l2s_jax.verify.math import Verifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """The references, measured beforehand with `l2s eval`, and the paper's constants."""

    long_accuracy: float  # of a policy that always thinks long, on the same kind of problems
    long_tokens: float  # mean per answer
    short_accuracy: float  # of one that always thinks short
    short_tokens: float
    every: int = 32  # steps
    rate: float = 4.0  # eta: how far one measurement moves the shares
    smoothing: float = 1e-4  # of an even mix, so that no share is ever nothing
    num_problems: int = 512  # held-out ones; fewer if there are fewer
    max_new_tokens: int = 4096
    max_rows: int = 128
    num_workers: int = 2
    verify_seconds: float = 5.0  # bound on one symbolic decision

    def __post_init__(self):
        if self.long_accuracy == self.short_accuracy or self.long_tokens == self.short_tokens:
            raise ValueError(
                f"MixingConfig: long_accuracy={self.long_accuracy}, short_accuracy="
                f"{self.short_accuracy}, long_tokens={self.long_tokens}, short_tokens="
                f"{self.short_tokens}: the references must differ in both; the policy is placed"
                " between them."
            )
        for name in ("every", "num_problems", "max_new_tokens", "max_rows", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"MixingConfig.{name}={getattr(self, name)}: at least 1.")
        if not (self.rate > 0 and 0 < self.smoothing <= 1 and self.verify_seconds > 0):
            raise ValueError(
                f"MixingConfig.rate={self.rate}, smoothing={self.smoothing}, verify_seconds="
                f"{self.verify_seconds}: above 0, and smoothing at most 1; 4 and 1e-4 are TL;DR's."
            )

    @property
    def sampling(self) -> SamplingConfig:
        """How the questions are answered."""
        return SamplingConfig(
            temperature=0.0, max_new_tokens=self.max_new_tokens, max_rows=self.max_rows
        )


def reweigh(easy_share: float, accuracy: float, tokens: float, cfg: MixingConfig) -> float:
    """The share of EASY rows after a measurement of the policy."""
    missing = (cfg.long_accuracy - accuracy) / abs(cfg.long_accuracy - cfg.short_accuracy)
    surplus = (tokens - cfg.short_tokens) / abs(cfg.long_tokens - cfg.short_tokens)
    # share of EASY against regular, times exp(rate * benefit) each, as log odds: nothing overflows.
    odds = math.log(easy_share / (1 - easy_share))
    odds += cfg.rate * (max(surplus, 0.0) - max(missing, 0.0))
    moved = 0.5 * (1 + math.tanh(odds / 2))
    return (1 - cfg.smoothing) * moved + cfg.smoothing / 2


class Pilot:
    """Held-out questions, answered by the policy as it is."""

    def __init__(
        self,
        cfg: MixingConfig,
        policy: Policy,
        problems: Sequence[Problem],
        verifier: Verifier,
        stop: StopSignal,
        mesh: Mesh,
    ):
        assert policy.tokenizer is not None
        if not problems:
            raise ValueError(
                "SftRun.mixing asks held-out questions, and there are none. Raise"
                " validation.fraction."
            )
        self._cfg = cfg
        problems = problems[: cfg.num_problems]
        self._references = {problem.id: problem.answer for problem in problems}
        requests, model, sampling = ask(problems, policy.tokenizer), policy.model, cfg.sampling
        # Of all hosts, and now: a measurement is hundreds of steps away.
        check_requests(
            requests, sampling, vocab_size=model.vocab_size, max_positions=model.max_positions
        )
        self._requests = share(requests)
        self._engine = Engine(policy, sampling, mesh)
        self._verifier, self._stop = verifier, stop

    def is_due(self, step: int) -> bool:
        """True before the steps that another share may begin with."""
        return step > 0 and step % self._cfg.every == 0

    def reweigh(self, mix: Mix | None, state: TrainState) -> tuple[Mix, dict[str, float]]:
        """The mix with another share, and what it was set by."""
        assert mix is not None, "a pilot steers an input that has a mix"
        accuracy, tokens = self.measure(state)
        share = reweigh(mix.easy_share, accuracy, tokens, self._cfg)
        told = {"accuracy": accuracy, "tokens": tokens, "easy_share": share}
        named = {f"mixing/{name}": value for name, value in told.items()}
        return dataclasses.replace(mix, easy_share=share), named

    def measure(self, state: TrainState) -> tuple[float, float]:
        """(share of right answers, mean tokens); an answer that was cut off is wrong."""
        params = merge(join(state.params, state.frozen))
        self._engine.place(params)

        def answer() -> list[tuple[bool, int]]:
            # Greedy: the key draws nothing.
            key, watch = jax.random.key(0), self._stop.watch()
            rollouts = self._engine.sample(self._requests, key, params=params, watch=watch)
            correct = judge(rollouts, self._references, self._verifier)
            return [(ok, r.num_tokens) for ok, r in zip(correct, rollouts, strict=True)]

        try:
            found = joined(self._stop.together(answer))
        finally:
            self._engine.forget()  # the updates need the memory
        correct, tokens = zip(*found, strict=True)
        return float(np.mean(correct)), float(np.mean(tokens))
