"""Items to training sequences: which tokens, which targets, who sees whom, what is trained.

Lives here: the annotation layouts of AutoL2S (arXiv 2505.22662) and ours, `matched`. Not here:
packing of sequences into rows (`data/packing.py`).

| layout      | EASY item, after the prompt P                                    |
|-------------|------------------------------------------------------------------|
| long-short  | `<EASY><LONG> L <SHORT> S <ANSWER> A` (the paper's method)       |
| short-long  | `<EASY><SHORT> S <LONG> L <ANSWER> A`                            |
| separated   | `<EASY><SHORT> S <ANSWER> A`                                     |
| long-only   | `<LONG> L <ANSWER> A`                                            |
| matched     | P forks: `<EASY><SHORT> S <ANSWER> A` and `<LONG> L <ANSWER> A`  |

A regular item is `<LONG> L <ANSWER> A` in every layout. `matched` trains each path in the very
context in which the sampler will continue it: neither sees the other, both continue P's
positions. The choice after P is trained towards `<EASY>` alone; the `<LONG>` that opens the other
branch is given, not learned.
"""

import dataclasses
from typing import Literal

import numpy as np

from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import Triggers, refuse_triggers
from l2s_jax.types import Item

Layout = Literal["long-short", "short-long", "separated", "long-only", "matched"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """A layout and the loss weights of its parts; 1 is an ordinary token."""

    name: Layout = "matched"
    route_weight: float = 1.0  # of the first trigger, the one decision that routes
    short_weight: float = 1.0  # of each token of a short path

    def __post_init__(self):
        for name in ("route_weight", "short_weight"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"LayoutConfig.{name}={getattr(self, name)}: must not be negative."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One training sequence. Index t holds a token read, and the target that follows it."""

    id: str
    tokens: np.ndarray  # [T] int32
    targets: np.ndarray  # [T] int32
    weights: np.ndarray  # [T] float32; 0 where the target is not trained
    positions: np.ndarray  # [T] int32
    branches: np.ndarray  # [T] int32; 0 is the trunk

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


TEXTS = ("question", "long", "long_answer", "short", "short_answer")

Path = list[tuple[list[int], float]]  # parts of a path with the loss weight of their tokens


def encode_item(item: Item, cfg: LayoutConfig, tokenizer: Tokenizer, triggers: Triggers) -> Example:
    """The training sequence of an item in a layout."""
    texts = {name: getattr(item, name) for name in TEXTS}
    refuse_triggers(item.id, {name: text for name, text in texts.items() if text is not None})
    prompt = tokenizer.ask(item.question)
    stop = [tokenizer.stop_ids[0]]
    short: Path = []
    if item.short is not None and item.short_answer is not None:
        text = [*tokenizer.encode(item.short), *triggers.answer]
        text += [*tokenizer.encode(item.short_answer), *stop]
        short = [([*triggers.short, *text], cfg.short_weight)]
    thought = tokenizer.encode(item.long)
    ending = [*triggers.answer, *tokenizer.encode(item.long_answer), *stop]
    easy, long = list(triggers.easy), list(triggers.long)
    regular: Path = [(long, cfg.route_weight), ([*thought, *ending], 1.0)]
    opening: Path = [(easy, cfg.route_weight)]
    if not short or cfg.name == "long-only":
        paths = [regular]
    elif cfg.name == "separated":
        paths = [opening + short]
    elif cfg.name == "long-short":
        paths = [[*opening, ([*long, *thought], 1.0), *short]]
    elif cfg.name == "short-long":
        without_answer = [
            ([*triggers.short, *tokenizer.encode(item.short or "")], cfg.short_weight)
        ]
        paths = [[*opening, *without_answer, ([*long, *thought, *ending], 1.0)]]
    else:
        paths = [opening + short, [(long, 0.0), ([*thought, *ending], 1.0)]]
    return assemble(item.id, prompt, paths)


def assemble(id: str, prompt: list[int], paths: list[Path]) -> Example:
    """A prompt and the paths that continue it, as one sequence.

    A single path stands on the trunk with its prompt; several become branches 1, 2, ... The
    prompt's last token predicts how the *first* path begins; the others' beginnings are given.
    The last token of a path is only ever a target.
    """
    tokens, targets, weights = list(prompt), list(prompt[1:]), [0.0] * (len(prompt) - 1)
    positions, branches = list(range(len(prompt))), [0] * len(prompt)
    for number, path in enumerate(paths):
        ids = [i for part, _ in path for i in part]
        cost = [weight for part, weight in path for _ in part]
        if number == 0:
            targets.append(ids[0])
            weights.append(cost[0])
        tokens += ids[:-1]
        targets += ids[1:]
        weights += cost[1:]
        positions += range(len(prompt), len(prompt) + len(ids) - 1)
        branches += [number + 1 if len(paths) > 1 else 0] * (len(ids) - 1)
    return Example(
        id=id,
        tokens=np.asarray(tokens, np.int32),
        targets=np.asarray(targets, np.int32),
        weights=np.asarray(weights, np.float32),
        positions=np.asarray(positions, np.int32),
        branches=np.asarray(branches, np.int32),
    )
