"""What one step learns from: rollouts, sampled and verified, and refilled where that is asked for.

Lives here: `Gatherer`, from a step's number to its batch. Not here: the sampler (`sampling`), which
problems stand in for others (`training/refill.py`), what prompts ask for (`training/asking.py`),
rewards and advantages (`objectives`), when it is called (`training/grpo.py`).

All of it is a function of the step and the behaviour policy's weights. Each host samples and
verifies its share of the problems by itself; what all have made is then put together on every host.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from l2s_jax.model.decoder import Params
from l2s_jax.model.seen import MAX_BRANCHES
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.outcomes import Outcomes, check_groups
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.serve import Watch
from l2s_jax.sharding import num_row_shards
from l2s_jax.tokens.automaton import BOTH, TO_EASY, TO_LONG, RouteTable
from l2s_jax.training.asking import Asked, Asking, ask_step, make_requests
from l2s_jax.training.hosts import joined, share
from l2s_jax.training.judging import Judging
from l2s_jax.training.refill import Refill, round_size, spare_problems
from l2s_jax.training.rollouts import (
    RolloutSource,
    build_batch,
    choose_problems,
    group_modes,
)
from l2s_jax.training.speed import Clock
from l2s_jax.training.stop import StopSignal
from l2s_jax.types import Metrics, Problem, Rollout, RolloutBatch
from l2s_jax.verify.math import Verifier

TILE = 128  # tokens, in which accelerators cut rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSizes:
    """Shapes of the update's packed rows."""

    row_length: int  # a multiple of `TILE` that holds any rollout
    row_quantum: int  # about an eighth of the rows, so that few shapes are compiled

    @classmethod
    def of(
        cls, prompt: int, completion: int, group: int, width: int, num_rollouts: int, mesh: Mesh
    ) -> "PackedSizes":
        """A row holds the longest prompt with as many of the longest completions as cost least.

        Args:
          prompt: tokens of the longest; likewise `completion`.
          group: completions of a prompt.
          width: of the decoder.
          num_rollouts: of a micro-batch.
          mesh: cuts the rows into equal parts, and each along its time.
        """
        shards, tile = num_row_shards(mesh), TILE * mesh.shape["context"]

        def length(num: int) -> int:
            return -(-(prompt - 1 + num * completion) // tile) * tile

        def cost(num: int) -> float:
            # A layer's matrices take about 24 D^2 a token, its attention 2 W D in a row of W.
            return length(num) / num * (1 + length(num) / (12 * width))

        per_row = min(range(1, min(group, MAX_BRANCHES) + 1), key=cost)
        num_rows = -(-num_rollouts // per_row)
        quantum = shards * max(1, num_rows // (8 * shards))
        return cls(row_length=length(per_row), row_quantum=quantum)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Prompts with their samples, verified."""

    asked: list[Asked]
    rollouts: list[Rollout]  # the samples of a prompt side by side
    correct: list[bool]

    def __add__(self, other: "Groups") -> "Groups":
        return Groups(
            asked=self.asked + other.asked,
            rollouts=self.rollouts + other.rollouts,
            correct=self.correct + other.correct,
        )

    def pick(self, chosen: list[int]) -> "Groups":
        """Some of the groups."""
        size = len(self.rollouts) // len(self.asked)
        rows = [n * size + sample for n in chosen for sample in range(size)]
        return Groups(
            asked=[self.asked[n] for n in chosen],
            rollouts=[self.rollouts[row] for row in rows],
            correct=[self.correct[row] for row in rows],
        )

    @property
    def asked_of_rows(self) -> list[Asked]:
        """What each rollout was asked for."""
        size = len(self.rollouts) // len(self.asked)
        return [one for one in self.asked for _ in range(size)]


Answered = tuple[list[Rollout], list[bool]]  # a problem's samples, and which of them are right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """One step's share of the work, before the update."""

    groups: Groups
    advantages: np.ndarray  # [B]
    batch: RolloutBatch  # numpy
    metrics: Metrics
    seconds: dict[str, float]  # by part
    num_row_steps: int  # of the sampler, rows that wrote nothing included
    num_sampled: int  # tokens, of rollouts that were not kept as well

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What a reader may want to know of each rollout, beside what it wrote."""
        return [
            {
                "question": one.question,
                "reference": one.problem.answer,
                "level": one.level,
                "budget": one.max_tokens,
                "correct": bool(correct),
                "advantage": float(advantage),
            }
            for one, correct, advantage in zip(
                self.groups.asked_of_rows, self.groups.correct, self.advantages, strict=True
            )
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gatherer:
    """Gathers steps; `gather(step, behaviour, watch)` may be called in any order."""

    engine: Engine
    verifier: Verifier
    stop: StopSignal
    problems: list[Problem]
    table: RouteTable
    preset: Objective
    sizes: PackedSizes
    source: RolloutSource
    asking: Asking
    refill: Refill | None
    prompts_per_step: int
    num_microbatches: int
    num_steps: int
    seed: int

    def __call__(
        self,
        step: int,
        behaviour: Params,
        watch: Watch | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Gathered:
        """The step's groups with their advantages, as a batch.

        Args:
          check: asked while verdicts are waited for; what it raises ends the work.
        """
        clock, cost = Clock(), Cost()
        chosen = choose_problems(self.problems, self.prompts_per_step, seed=self.seed, step=step)

        def sample(problems: list[Problem]) -> Groups:
            return self._sample(step, problems, behaviour, watch, check, clock, cost)

        groups = sample(chosen)
        metrics = self._signal(groups)
        if self.refill is not None:
            groups, counts = self._refilled(self.refill, step, chosen, groups, sample)
            metrics |= counts
        outcomes = self._outcomes(step, groups)
        check_groups(outcomes, self._group)
        with clock.part("prepare"):
            advantages, found = self.preset.advantages(outcomes, group_size=self._group)
            advantages = np.asarray(advantages)
            markers = [marker_of(rollout, self.table) for rollout in groups.rollouts]
            batch = build_batch(
                groups.rollouts,
                advantages,
                row_length=self.sizes.row_length,
                row_quantum=self.sizes.row_quantum,
                max_tokens=self.engine.cfg.max_new_tokens,
                markers=markers,
                num_microbatches=self.num_microbatches,
            )
        return Gathered(
            groups=groups,
            advantages=advantages,
            batch=batch,
            metrics=metrics | jax.device_get(found) | self._trained(groups, markers),
            seconds=clock.seconds,
            num_row_steps=cost.row_steps,
            num_sampled=cost.tokens,
        )

    @property
    def _group(self) -> int:
        return self.engine.cfg.num_samples

    def _sample(
        self,
        step: int,
        problems: list[Problem],
        behaviour: Params,
        watch: Watch | None,
        check: Callable[[], None],
        clock: Clock,
        cost: "Cost",
    ) -> Groups:
        asked = ask_step(self.asking, problems, seed=self.seed, step=step)
        self.engine.place(behaviour)

        def answer() -> tuple[list[Answered], Cost]:
            return self._answer(step, share(asked), behaviour, watch, check, clock)

        found = self.stop.together(answer)
        for _, spent in found:
            cost.add(spent)
        answered = joined([part for part, _ in found])
        return Groups(
            asked=asked,
            rollouts=[rollout for rollouts, _ in answered for rollout in rollouts],
            correct=[right for _, correct in answered for right in correct],
        )

    def _answer(
        self,
        step: int,
        asked: list[Asked],
        behaviour: Params,
        watch: Watch | None,
        check: Callable[[], None],
        clock: Clock,
    ) -> tuple[list[Answered], "Cost"]:
        """This host's part, by problem; and what it cost.

        Draws are named by (seed, step, problem, sample), whatever is sampled beside them, wherever.
        """
        assert self.engine.policy.tokenizer is not None
        requests = make_requests(asked, self.engine.policy.tokenizer, self._group)
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        modes = group_modes(self.source, self._group)
        routing = dataclasses.replace(self.engine.cfg.routing, modes=modes)
        references = {one.problem.id: one.problem.answer for one in asked}
        with Judging(references, self.verifier) as judging:
            with clock.part("rollout"):
                rollouts = self.engine.sample(
                    requests,
                    key,
                    params=behaviour,
                    routing=routing,
                    watch=watch,
                    ended=judging.take,
                )
            with clock.part("verify"):  # what is left of it
                correct = judging.verdicts(rollouts, check)
        cost = Cost(row_steps=self.engine.served.row_steps, tokens=self.engine.served.tokens)
        size, places = self._group, range(0, len(rollouts), self._group)
        return [(rollouts[n : n + size], correct[n : n + size]) for n in places], cost

    def _outcomes(self, step: int, groups: Groups) -> Outcomes:
        asked, rollouts = groups.asked_of_rows, groups.rollouts
        return Outcomes(
            correct=np.asarray(groups.correct),
            num_tokens=np.asarray([r.num_tokens for r in rollouts], np.int32),
            stopped=np.asarray([r.finish_reason == "stop" for r in rollouts]),
            short=np.asarray([r.route == "short" for r in rollouts]),
            level=np.asarray([one.level for one in asked], np.int32),
            max_tokens=np.asarray([one.max_tokens for one in asked], np.int32),
            limit=self.engine.cfg.max_new_tokens,
            progress=np.float32(step / self.num_steps),
        )

    def _refilled(
        self, refill: Refill, step: int, chosen: list[Problem], groups: Groups, sample: Any
    ) -> tuple[Groups, Metrics]:
        """As many groups with contrast as a step takes, as far as the rounds allow."""
        wanted, rounds = len(groups.asked), 0
        spare = spare_problems(self.problems, chosen, seed=self.seed, step=step)
        contrast = self._contrast(step, groups)
        while rounds < refill.max_rounds:
            size = round_size(wanted, int(contrast.sum()), len(contrast))
            more, spare = spare[:size], spare[size:]
            if not more:
                break
            found = sample(more)
            groups, rounds = groups + found, rounds + 1
            contrast = np.concatenate([contrast, self._contrast(step, found)])
        # Those with contrast in the order they were drawn in, then others, if there are too few.
        kept = np.argsort(~contrast, kind="stable")[:wanted]
        counts = {
            "refill/rounds": rounds,
            "refill/groups": len(contrast) - wanted,
            "refill/flat_fraction": 1.0 - float(np.mean(contrast)),
            "refill/missing": wanted - min(wanted, int(contrast.sum())),
            "refill/unused": max(0, int(contrast.sum()) - wanted),
        }
        return groups.pick(kept.tolist()), counts

    def _contrast(self, step: int, groups: Groups) -> np.ndarray:
        outcomes = self._outcomes(step, groups)
        return np.asarray(self.preset.has_contrast(outcomes, group_size=self._group))

    def _signal(self, groups: Groups) -> Metrics:
        """What the step's own problems, not those that stand in for some, were answered like."""
        rows = groups.rollouts
        correct, tokens = np.asarray(groups.correct), np.asarray([r.num_tokens for r in rows])
        metrics = {
            "accuracy": np.mean(correct),
            "tokens": np.mean(tokens),
            "truncated": np.mean([r.finish_reason == "length" for r in rows]),
            "non_finite": np.mean([r.finish_reason == "non_finite" for r in rows]),
            "no_route": np.mean([r.route == "none" for r in rows]),
        }
        modes = group_modes(self.source, self._group)
        # Not by who chose the first token: a switch that replaces EASY leaves a forced one there.
        routed = [r.route == "short" for r in rows if modes[r.sample] == "auto"]
        if routed:
            metrics["easy_share"] = np.mean(routed)
        parts = {f"route/{r}": [row.route == r for row in rows] for r in ("short", "long")}
        asked = groups.asked_of_rows
        for level in sorted({one.level for one in asked} - {0}):
            parts[f"level/{level}"] = [one.level == level for one in asked]
        for name, here in parts.items():
            if any(here):
                metrics[f"{name}/accuracy"] = np.mean(correct[here])
                metrics[f"{name}/tokens"] = np.mean(tokens[here])
        told = np.asarray([one.max_tokens for one in asked])
        if told.any():
            metrics["budget"] = np.mean(told)
            metrics["budget_deviation"] = np.mean(np.abs(tokens - told) / np.maximum(told, 1))
            metrics["over_budget"] = np.mean(tokens > told)
        return {name: float(value) for name, value in metrics.items()}

    def _trained(self, groups: Groups, markers: list[int | None]) -> Metrics:
        """Whether routing itself is trained: the share of rollouts whose marker is in the loss."""
        by_design = self.preset.design_probability is not None
        inside = [
            marker is not None and (by_design or bool(rollout.free[marker]))
            for rollout, marker in zip(groups.rollouts, markers, strict=True)
        ]
        return {"marker_in_loss": float(np.mean(inside))}


@dataclasses.dataclass
class Cost:
    """What sampling cost, over a step's rounds."""

    row_steps: int = 0
    tokens: int = 0

    def add(self, other: "Cost") -> None:
        """Adds what another call cost, here or on another host."""
        self.row_steps += other.row_steps
        self.tokens += other.tokens


def marker_of(rollout: Rollout, table: RouteTable) -> int | None:
    """Where a completion's route was decided: the token that made it EASY or LONG, if one did.

    In a plain spelling that is the first piece that the other trigger does not have. A completion
    whose `<EASY>` was taken back opens with the short trigger, and has none.
    """
    if rollout.route == "none":
        return None
    state = 0
    for place, token in enumerate(rollout.token_ids):
        lead = table.leads_to[state, token]
        if lead in (TO_EASY, TO_LONG):
            return place
        if lead != BOTH:
            return None
        state = table.next_state[state, token]
    return None
