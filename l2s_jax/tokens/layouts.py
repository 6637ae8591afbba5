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
from collections.abc import Iterator, Sequence
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
    trigger_weight: float = 1.0  # of every other trigger; `<ANSWER>` is the end of a thought
    stop_weight: float = 1.0  # of the stop token
    short_weight: float = 1.0  # of each token of a short path; multiplies the two above there

    def __post_init__(self):
        for name in ("route_weight", "trigger_weight", "stop_weight", "short_weight"):
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
    easy: bool = False  # True: made from an EASY item
    decision: int | None = None  # where the target tells EASY from LONG; None: nothing is routed

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


TEXTS = ("long", "long_answer", "short", "short_answer")
CHUNK = 256  # items whose texts are held as lists of ids at a time; these take much room

Path = list[tuple[list[int], float]]  # parts of a path with the loss weight of their tokens


def encode_items(
    items: Sequence[Item], cfg: LayoutConfig, tokenizer: Tokenizer, triggers: Triggers
) -> Iterator[Example]:
    """The training sequences of items in a layout, in order. Texts are encoded many at a time."""
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        for item in chunk:
            texts = {name: getattr(item, name) for name in ("question", *TEXTS)}
            refuse_triggers(item.id, {n: text for n, text in texts.items() if text is not None})
        ids = iter(tokenizer.encode_all([getattr(i, n) or "" for i in chunk for n in TEXTS]))
        for item in chunk:
            yield _lay_out(item, {n: next(ids) for n in TEXTS}, cfg, tokenizer, triggers)


def encode_item(item: Item, cfg: LayoutConfig, tokenizer: Tokenizer, triggers: Triggers) -> Example:
    """The training sequence of an item in a layout."""
    return next(encode_items([item], cfg, tokenizer, triggers))


def _lay_out(
    item: Item,
    ids: dict[str, list[int]],
    cfg: LayoutConfig,
    tokenizer: Tokenizer,
    triggers: Triggers,
) -> Example:
    """The sequence of an item whose texts are encoded."""
    stop: Path = [([tokenizer.stop_ids[0]], cfg.stop_weight)]

    def after(trigger: tuple[int, ...], *text: int) -> Path:
        return [(list(trigger), cfg.trigger_weight), (list(text), 1.0)]

    def briefly(path: Path) -> Path:
        return [(part, weight * cfg.short_weight) for part, weight in path]

    long_path: Path = [(ids["long"], 1.0)]
    long_end = [*after(triggers.answer, *ids["long_answer"]), *stop]
    short_path = briefly(after(triggers.short, *ids["short"]))
    short_end = briefly([*after(triggers.answer, *ids["short_answer"]), *stop])
    to_easy: Path = [(list(triggers.easy), cfg.route_weight)]
    to_long: Path = [(list(triggers.long), cfg.route_weight)]
    given_long: Path = [(list(triggers.long), 0.0)]
    later_long: Path = [(list(triggers.long), cfg.trigger_weight)]
    if not item.is_easy or cfg.name == "long-only":
        paths = [[*to_long, *long_path, *long_end]]
    elif cfg.name == "separated":
        paths = [[*to_easy, *short_path, *short_end]]
    elif cfg.name == "long-short":
        paths = [[*to_easy, *later_long, *long_path, *short_path, *short_end]]
    elif cfg.name == "short-long":
        paths = [[*to_easy, *short_path, *later_long, *long_path, *long_end]]
    else:
        paths = [[*to_easy, *short_path, *short_end], [*given_long, *long_path, *long_end]]
    prompt = tokenizer.ask(item.question)
    example = assemble(item.id, prompt, paths)
    decision = len(prompt) - 1 + triggers.fork
    return dataclasses.replace(example, easy=item.is_easy, decision=decision)


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
