"""From sampled rollouts to the arrays of one policy update.

Lives here: which modes a group is sampled in, whether a rollout is right, and the padded batch.
Not here: sampling (`sampling/engine.py`), advantages and losses (`objectives/presets.py`).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from l2s_jax.sampling.controllers import Mode
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
    prompt_width: int,
    completion_width: int,
) -> RolloutBatch:
    """Rollouts in fixed columns: prompts end, and completions begin, at `prompt_width`."""
    rows, width = len(rollouts), prompt_width + completion_width
    tokens = np.zeros((rows, width), np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    old_logp = np.zeros((rows, completion_width), np.float32)
    free = np.zeros((rows, completion_width), bool)
    for row, rollout in enumerate(rollouts):
        begin = prompt_width - len(rollout.prompt_ids)
        end = prompt_width + rollout.num_tokens
        assert begin >= 0 and end <= width, (rollout.id, begin, end, width)
        tokens[row, begin:prompt_width] = rollout.prompt_ids
        tokens[row, prompt_width:end] = rollout.token_ids
        segments[row, begin:end] = 1
        positions[row, begin:end] = np.arange(end - begin)
        old_logp[row, : rollout.num_tokens] = rollout.logp
        free[row, : rollout.num_tokens] = rollout.free
    return RolloutBatch(
        tokens=tokens,
        segment_ids=segments,
        positions=positions,
        old_logp=old_logp,
        advantages=np.asarray(advantages, np.float32),
        free=free,
        num_sequences=np.float32(rows),
    )
