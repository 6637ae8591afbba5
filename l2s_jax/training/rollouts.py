"""From sampled rollouts to the arrays of one policy update.

Lives here: which modes a group is sampled in, whether a rollout is right, and the packed batch.
Not here: sampling (`sampling/engine.py`), advantages and losses (`objectives/presets.py`).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from l2s_jax.data.packing import pack
from l2s_jax.sampling.controllers.routing import Mode
from l2s_jax.tokens.triggers import answer_text
from l2s_jax.types import Problem, Rollout, RolloutBatch
from l2s_jax.verify.answers import answer_or_text
from l2s_jax.verify.math import Verifier

RolloutSource = Literal["auto", "forced_pair", "mixed"]
"""auto: the policy routes itself. forced_pair: half of a group is made to go long, half short.
mixed: half auto, a quarter each forced. The paper's sources disagree on which it used."""


FORCED: tuple[Mode, Mode] = ("force-long", "force-short")


def group_modes(source: RolloutSource, group: int) -> tuple[Mode, ...]:
    """The routing mode of each sample of a prompt."""
    parts = {"auto": 1, "forced_pair": 2, "mixed": 4}[source]
    if group % parts:
        raise ValueError(
            f"rollouts={source!r} cuts a group into equal parts, but num_samples={group} is no"
            f" multiple of {parts}. Change sampling.num_samples."
        )
    forced = 0 if source == "auto" else group // parts
    auto: list[Mode] = ["auto" for _ in range(group - 2 * forced)]
    pairs: list[Mode] = [mode for mode in FORCED for _ in range(forced)]
    return (*auto, *pairs)


def prediction_of(rollout: Rollout) -> str | None:
    """The final answer of a rollout: in what follows its answer trigger, never elsewhere."""
    text = None if rollout.text is None else answer_text(rollout.text)
    return None if text is None else answer_or_text(text)


def untaught_prediction(rollout: Rollout) -> str | None:
    """The final answer of a policy that knows no triggers: the last box of all that it wrote."""
    return None if rollout.text is None else answer_or_text(rollout.text)


def judge(
    rollouts: Sequence[Rollout],
    references: dict[str, str],
    verifier: Verifier,
    predict: Callable[[Rollout], str | None] = prediction_of,
) -> list[bool]:
    """True where a rollout ended by itself and its answer equals its problem's reference."""
    pairs = [(references[rollout.id], predict(rollout)) for rollout in rollouts]
    verdicts = verifier.equivalent_many(pairs)
    return [
        verdict.equivalent and rollout.finish_reason == "stop"
        for verdict, rollout in zip(verdicts, rollouts, strict=True)
    ]


def choose_problems(
    problems: Sequence[Problem], number: int, *, seed: int, step: int
) -> list[Problem]:
    """The problems of a step: a pure function of (seed, step), no problem twice in an epoch."""
    per_epoch = len(problems) // number
    if per_epoch == 0:
        raise ValueError(
            f"prompts_per_step={number}, but there are {len(problems)} problems. Lower it."
        )
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(len(problems))
    return [problems[i] for i in order[place * number : (place + 1) * number]]


def build_batch(
    rollouts: Sequence[Rollout],
    advantages: np.ndarray,
    *,
    row_length: int,
    row_quantum: int,
    max_tokens: int,
) -> RolloutBatch:
    """Rollouts packed into rows, and where in them each rollout's completion is predicted.

    Args:
      row_quantum: rows come in multiples of it, so that few shapes, and programs, exist.
      max_tokens: columns of the loss's arrays.
    """
    sequences = [np.concatenate([r.prompt_ids, r.token_ids]) for r in rollouts]
    # The last token is only ever a target.
    bins = pack([len(sequence) - 1 for sequence in sequences], row_length)
    num_rows = -(-len(bins) // row_quantum) * row_quantum
    packed = {
        name: np.zeros((num_rows, row_length), np.int32)
        for name in ("tokens", "targets", "positions", "segment_ids")
    }
    shape = (len(rollouts), max_tokens)
    places, old_logp, free = (
        np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
        np.zeros(shape, bool),
    )
    for row, chosen in enumerate(bins):
        begin = 0
        for segment, index in enumerate(chosen, start=1):
            rollout, sequence = rollouts[index], sequences[index]
            end = begin + len(sequence) - 1
            packed["tokens"][row, begin:end] = sequence[:-1]
            packed["targets"][row, begin:end] = sequence[1:]
            packed["positions"][row, begin:end] = np.arange(end - begin)
            packed["segment_ids"][row, begin:end] = segment
            length = rollout.num_tokens
            places[index, :length] = row * row_length + np.arange(end - length, end)
            old_logp[index, :length] = rollout.logp
            free[index, :length] = rollout.free
            begin = end
    return RolloutBatch(
        **packed,
        places=places,
        old_logp=old_logp,
        advantages=np.asarray(advantages, np.float32),
        free=free,
        num_sequences=np.float32(len(rollouts)),
    )
