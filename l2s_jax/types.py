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
from typing import Any, ClassVar, Literal

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
    is_cut: bool = False  # ended at the teacher's budget: never right, whatever it says on the way


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
    easy: Any  # [B, T] bool, True on tokens of EASY items
    routing: Any  # [B, T] bool, True where the target tells EASY from LONG; once in a segment
    num_tokens: Any  # [] float32, sum of weights over the whole step

    # [B, T], along the row, so that a mesh may cut them along T as well.
    TIMED: ClassVar = (
        "tokens",
        "targets",
        "weights",
        "positions",
        "segment_ids",
        "branches",
        "easy",
        "routing",
    )


@struct.dataclass
class RolloutBatch:
    """Rollouts for one policy update: packed for the model, a row each for the loss.

    R packed rows of W tokens hold B rollouts, so that the model reads no padding between a short
    completion and a long one. A segment is a prompt, as trunk, and completions of it, as branches:
    a prompt is read once for all that share a row. Rows and rollouts can be cut into M equal parts:
    what is in a part of the one is in the same part of the other.
    """

    tokens: Any  # [R, W] int32, what the model reads
    targets: Any  # [R, W] int32, the token that follows in the same rollout
    positions: Any  # [R, W] int32
    segment_ids: Any  # [R, W] int32, from 1; 0 is padding
    branches: Any  # [R, W] int32, one completion each, from 1; 0 is the trunk
    wanted: Any  # [R, W] bool, True where the target is a completion token that the loss may read
    places: Any  # [B, T] int32, where in the R * W of its part each completion token is the target
    old_logp: Any  # [B, T] float32, nats, under the behaviour policy
    advantages: Any  # [B] float32
    free: Any  # [B, T] bool, True on tokens that the policy chose
    marker: Any  # [B, T] bool, the token that decides the route, whoever chose it; one at most
    num_sequences: Any  # [] float32, rollouts of the whole step
    num_tokens: Any  # [] float32, free tokens of the whole step, at least 1
    max_tokens: Any  # [] float32, the most tokens that a rollout may have
    ref_logp: Any = None  # [B, T] float32, nats, under the reference policy; for a KL term
    sampler_logp: Any = None  # [B, T] float32, nats, as the sampler's program wrote it down; then
    # `old_logp` is the trainer's program on the same weights

    # [R, W], along the row, so that a mesh may cut them along W as well.
    TIMED: ClassVar = ("tokens", "targets", "positions", "segment_ids", "branches", "wanted")
