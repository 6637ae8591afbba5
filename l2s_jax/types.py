"""The records that travel between rooms, and nothing that acts on them.

Lives here: problems, teachers' traces, curated items, rollouts, verdicts, and the array record
that one training step reads. Not here: how any of them is made (`data`, `curation`, `sampling`)
or used (`objectives`, `training`).

Shape letters, used as suffixes in every file (`logits_BTV`): B rows, N prompts, G samples of one
prompt (B = N*G), P prompt time, T query time, S key time, L layers, D width, H query heads,
K key-value heads, E per-head size, F feed-forward width, V vocabulary.

Words: *thought* is a reasoning text without triggers, *answer text* what a trace says after it,
*reference* the known right answer of a problem.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from flax import struct

Metrics = dict[str, Any]  # name → scalar array or float

Route = Literal["long", "short", "none"]
"""The path a rollout took; "none" where it opened with no trigger."""

FinishReason = Literal["stop", "length", "non_finite"]  # the last: the logits were no numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with its reference answer."""

    id: str
    question: str
    answer: str
    level: int | None = None  # difficulty, where the source knows one; higher is harder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """What one teacher wrote on one problem."""

    problem_id: str
    teacher: str
    thought: str
    answer: str  # the text after the thought, which states the final answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a prediction equals the reference, why, and how long the decision took."""

    equivalent: bool
    reason: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One supervised example: a long path, and a verified short one where a teacher found it."""

    id: str  # of the problem
    question: str
    reference: str
    long: str  # thought
    long_answer: str
    short: str | None = None  # thought; None makes this a regular item
    short_answer: str | None = None
    level: int | None = None
    num_trials: int = 0  # short candidates that were verified
    num_right: int = 0  # of them, how many were right

    def __post_init__(self):
        if (self.short is None) != (self.short_answer is None):
            raise ValueError(
                f"Item {self.id!r}: short={self.short!r} but short_answer={self.short_answer!r}."
                " Give both (an EASY item) or neither (a regular one)."
            )

    @property
    def is_easy(self) -> bool:
        return self.short is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled completion. Arrays are as long as the completion, stop token included."""

    id: str  # of the problem or prompt
    sample: int  # which of the prompt's samples
    prompt_ids: np.ndarray  # [P] int32
    token_ids: np.ndarray  # [T] int32
    logp: np.ndarray  # [T] float32, nats, under the policy at the row's temperature
    free: np.ndarray  # [T] bool, True where the policy chose, False where a controller did
    text: str | None  # without the stop token; None where no tokenizer was given
    route: Route
    p_easy: float | None  # probability of EASY against LONG where the row decided between them
    finish_reason: FinishReason
    kept_logp: np.ndarray | None = None  # [T] float32, nats, after truncation and shaping
    entropy: np.ndarray | None = None  # [T] float32, nats, of the policy before each token

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@struct.dataclass
class Batch:
    """Packed rows for one training step.

    A row holds segments (examples), a segment a trunk and any number of branches: tokens of
    branch b see the trunk and b itself. Every layout but `matched` uses the trunk alone.
    """

    tokens: Any  # [B, T] int32, what the model reads
    targets: Any  # [B, T] int32, what it should say next on the same path
    weights: Any  # [B, T] float32, loss weight of the target; 0 on prompt, forced and padding
    positions: Any  # [B, T] int32, within the segment; a branch continues the trunk
    segment_ids: Any  # [B, T] int32, from 1; 0 is padding
    branches: Any  # [B, T] int32, 0 is the trunk
    num_tokens: Any  # [] float32, sum of weights over the whole step


@struct.dataclass
class RolloutBatch:
    """Rollouts for one policy update: packed for the model, a row each for the loss.

    R packed rows of W tokens hold B rollouts, prompt and completion side by side, so that the
    model reads no padding between a short completion and a long one.
    """

    tokens: Any  # [R, W] int32, what the model reads
    targets: Any  # [R, W] int32, the token that follows in the same rollout
    positions: Any  # [R, W] int32
    segment_ids: Any  # [R, W] int32, from 1, one rollout each; 0 is padding
    places: Any  # [B, T] int32, where in R * W each completion token is the target
    old_logp: Any  # [B, T] float32, nats, under the behaviour policy
    advantages: Any  # [B] float32
    free: Any  # [B, T] bool, True on tokens that the policy chose
    num_sequences: Any  # [] float32, denominator: rollouts of the whole step
