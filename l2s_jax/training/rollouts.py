"""From sampled rollouts to the arrays of one policy update.

Lives here: which modes a group is sampled in, whether a rollout is right, and the packed batch.
Not here: sampling (`sampling/engine.py`), advantages and losses (`objectives/presets.py`).

The completions of one prompt are branches of one trunk, so that the model reads the prompt once for
all of them. The trunk ends before the prompt's last token, and each branch begins with that one:
there each completion has a first token of its own to predict.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from l2s_jax.data.packing import pack
from l2s_jax.model.seen import MAX_BRANCHES
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
    check: Callable[[], None] | None = None,
) -> list[bool]:
    """True where a rollout ended by itself and its answer equals its problem's reference.

    Args:
      check: asked now and then; what it raises ends the work.
    """
    pairs = [(references[rollout.id], predict(rollout)) for rollout in rollouts]
    verdicts = verifier.equivalent_many(pairs, check)
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


def share_out(lengths: Sequence[int], num_parts: int, together: int = 1) -> list[list[int]]:
    """Indices of the rollouts of each part: as many in each, and nearly as many tokens.

    Longest first, each to the part that has the fewest tokens of those that still have room; in a
    part they stand in their old order.

    Args:
      together: so many neighbours share a part.
    """
    if len(lengths) % num_parts:
        raise ValueError(
            f"num_microbatches={num_parts}, but a step has {len(lengths)} rollouts. Make"
            " prompts_per_step * num_samples a multiple of it."
        )
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    tokens = [0] * num_parts
    sums = {at: sum(lengths[at : at + together]) for at in range(0, len(lengths), together)}
    for begin in sorted(sums, key=lambda at: (-sums[at], at)):
        open_parts = [p for p in range(num_parts) if len(parts[p]) < len(lengths) // num_parts]
        least = min(open_parts, key=lambda p: tokens[p])
        parts[least].extend(range(begin, begin + together))
        tokens[least] += sums[begin]
    return [sorted(part) for part in parts]


def same_prompt(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Indices of the rollouts by prompt, in their order."""
    groups: dict[bytes, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        groups.setdefault(rollout.prompt_ids.tobytes(), []).append(index)
    return list(groups.values())


def trees(rollouts: Sequence[Rollout], row_length: int) -> list[list[int]]:
    """Indices of the rollouts by tree: a prompt with as many completions as a row can hold."""
    found: list[list[int]] = []
    for group in same_prompt(rollouts):
        room = row_length - (len(rollouts[group[0]].prompt_ids) - 1)
        for one in pack([rollouts[i].num_tokens for i in group], room):
            whole = [group[place] for place in sorted(one)]
            found += [whole[at : at + MAX_BRANCHES] for at in range(0, len(whole), MAX_BRANCHES)]
    return found


def num_read(rollouts: Sequence[Rollout], tree: Sequence[int]) -> int:
    """Tokens that the model reads of a tree; a completion's last is only ever a target."""
    trunk = len(rollouts[tree[0]].prompt_ids) - 1
    return trunk + sum(rollouts[index].num_tokens for index in tree)


def into_rows(rollouts: Sequence[Rollout], row_length: int) -> list[list[list[int]]]:
    """The trees of each row."""
    grown = trees(rollouts, row_length)
    rows = pack([num_read(rollouts, tree) for tree in grown], row_length)
    return [[grown[n] for n in row] for row in rows]


def build_batch(
    rollouts: Sequence[Rollout],
    advantages: np.ndarray,
    *,
    row_length: int,
    row_quantum: int,
    max_tokens: int,
    markers: Sequence[int | None] | None = None,
    num_microbatches: int = 1,
) -> RolloutBatch:
    """Rollouts packed into rows, and where in them each rollout's completion is predicted.

    Args:
      row_length: no rollout may be longer.
      row_quantum: rows of a micro-batch come in multiples of it, so that few shapes, and
        programs, exist.
      max_tokens: columns of the loss's arrays.
      markers: which completion token of each rollout decided its route; None where none did.
      num_microbatches: parts of which each holds its rollouts whole. With more than one, rollouts
        change places among the rows, all arrays alike.
    """
    if markers is None:
        markers = [None] * len(rollouts)
    # Samples of a prompt stay together as far as equal parts allow.
    sizes = [len(group) for group in same_prompt(rollouts)]
    together = math.gcd(len(rollouts) // num_microbatches, *sizes)
    lengths = [r.num_tokens + len(r.prompt_ids) // together for r in rollouts]
    parts = share_out(lengths, num_microbatches, together)
    packed = [into_rows([rollouts[i] for i in part], row_length) for part in parts]
    num_rows = -(-max(map(len, packed)) // row_quantum) * row_quantum
    filled = [
        _fill(
            [rollouts[i] for i in part],
            [markers[i] for i in part],
            rows,
            (num_rows, row_length),
            max_tokens,
        )
        for part, rows in zip(parts, packed, strict=True)
    ]
    joined = {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}
    order = [index for part in parts for index in part]
    return RolloutBatch(
        **joined,
        advantages=np.asarray(advantages, np.float32)[order],
        num_sequences=np.float32(len(rollouts)),
        num_tokens=np.float32(max(1, joined["free"].sum())),
        max_tokens=np.float32(max_tokens),
    )


def _fill(
    rollouts: Sequence[Rollout],
    markers: Sequence[int | None],
    trees_of_row: list[list[list[int]]],
    shape: tuple[int, int],
    max_tokens: int,
) -> dict[str, np.ndarray]:
    """The arrays of one micro-batch, by field; `shape` is (number of packed rows, their length)."""
    names = ("tokens", "targets", "positions", "segment_ids", "branches")
    packed = {name: np.zeros(shape, np.int32) for name in names} | {"wanted": np.zeros(shape, bool)}
    wide = (len(rollouts), max_tokens)
    columns = {
        "places": np.zeros(wide, np.int32),
        "old_logp": np.zeros(wide, np.float32),
        "free": np.zeros(wide, bool),
        "marker": np.zeros(wide, bool),
    }
    for row, held in enumerate(trees_of_row):
        begin = 0
        for segment, tree in enumerate(held, start=1):
            prompt = rollouts[tree[0]].prompt_ids
            end = begin + len(prompt) - 1
            packed["tokens"][row, begin:end] = prompt[:-1]
            packed["positions"][row, begin:end] = np.arange(end - begin)
            for branch, index in enumerate(tree, start=1):
                rollout, marker = rollouts[index], markers[index]
                length = rollout.num_tokens
                here = slice(end, end + length)
                packed["tokens"][row, here] = [prompt[-1], *rollout.token_ids[:-1]]
                packed["targets"][row, here] = rollout.token_ids
                packed["positions"][row, here] = len(prompt) - 1 + np.arange(length)
                packed["branches"][row, here] = branch
                columns["places"][index, :length] = row * shape[1] + np.arange(end, here.stop)
                columns["old_logp"][index, :length] = rollout.logp
                columns["free"][index, :length] = rollout.free
                if marker is not None:
                    columns["marker"][index, marker] = True
                read = columns["free"][index, :length] | columns["marker"][index, :length]
                packed["wanted"][row, here] = read
                end = here.stop
            packed["segment_ids"][row, begin:end] = segment
            begin = end
    return packed | columns
