"""The policies that the methods of `stage2_methods.py` begin from.

Lives here: how each is trained, and why a method needs it. Not here: the methods' own runs and what
is measured (`stage2_methods.py`), stage 1 itself (`l2s_jax/cli/recipes.py`, that of `l2s demo`).

    sft        the demo's stage 1; `plus` begins from it
    weak       the same in a third of its steps: `dapo`, and `grpo` beside it
    undecided  stage 1 that knows both paths and goes long: `adaptthink`, `thinkless`
    reader     stage 1 to whom a word behind the question means a little: `tldr`

Stage 1 has learned from verified labels where the short path will do, which is what AdaptThink and
Thinkless set out to learn by reward. Their papers begin from a model that always thinks, and from
one that takes either mode by chance. `undecided` is stage 1 trained on with most of the short
paths taken out of its items, at random: greedily it always goes long, drawn it sometimes does not.

TLDR asks for its levels in words, of a model that follows instructions. This world's model follows
none. `reader` brings a little of it: stage 1 trained on, with a word behind each question that in
some of the items fits the length of the answer among those of its level, and is drawn in the rest.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from l2s_jax.cli import recipes
from l2s_jax.config import claim_workdir
from l2s_jax.curation import reject
from l2s_jax.data.store import MANIFEST, read_items, write_items
from l2s_jax.training import sft
from l2s_jax.training.optim import OptimConfig
from l2s_jax.types import Item

START_OF = {
    "adaptthink": "undecided",
    "tldr": "reader",
    "thinkless": "undecided",
    "dapo": "weak",
    "grpo": "weak",
    "plus": "sft",
}
LEVEL_WORDS = {"long": "{question} steps", "medium": "{question} so", "short": "{question} brief"}
WEAK = recipes.Scale(sft_steps=60)
MORE_STEPS = {"undecided": 100, "reader": 180}  # after stage 1
SHORT_KEPT = 0.4  # of the EASY items of `undecided`
SHORT_READ = 0.67  # of those of `reader`: at every level some of its answers are short, some long
WORD_FITS = 0.67  # share of the items of `reader` whose word was chosen to fit


def make_start(name: str, folder: pathlib.Path, seed: int) -> None:
    """Trains a start of a seed in `folder`, unless it is there."""
    items = folder / "items"
    claim_workdir(recipes.curate(seed), items)
    if not (items / "items" / MANIFEST).exists():
        reject.run(recipes.curate(seed), items)
    stage1 = recipes.stage1(str(items), seed, scale=WEAK if name == "weak" else recipes.FULL)
    if name in ("sft", "weak"):
        return train(stage1, folder / name)
    make_start("sft", folder, seed)
    changed = folder / f"items_{name}"
    if not (changed / "items" / MANIFEST).exists():
        change = {"undecided": long_mostly, "reader": with_words}[name]
        write_items(changed / "items", change(read_items(items / "items"), seed), {})
    optim = OptimConfig(peak_lr=1e-3, warmup_steps=10, b2=0.99)
    data = dataclasses.replace(stage1.data, path=str(changed))
    model = str(folder / "sft")
    more = {"num_steps": MORE_STEPS[name], "optim": optim}
    train(dataclasses.replace(stage1, model=model, data=data, **more), folder / name)


def train(cfg: sft.SftRun, folder: pathlib.Path) -> None:
    """The run of a config in its folder; of a finished one its checkpoint is read, no more."""
    claim_workdir(cfg, folder)
    sft.run(cfg, folder)


def long_mostly(items: Sequence[Item], seed: int, kept: float = SHORT_KEPT) -> list[Item]:
    """The items, most of the EASY ones without their short paths, whatever they are."""
    keeps = np.random.default_rng(seed).random(len(items)) < kept
    without = {"short": None, "short_answer": None}
    return [
        item if keep or not item.is_easy else dataclasses.replace(item, **without)
        for item, keep in zip(items, keeps, strict=True)
    ]


def with_words(items: Sequence[Item], seed: int) -> list[Item]:
    """Behind each question one of TLDR's words, which fits the answer's length in some."""
    rng = np.random.default_rng(seed)
    items = long_mostly(items, seed, SHORT_READ)
    fits = rng.random(len(items)) < WORD_FITS
    drawn = rng.integers(len(LEVEL_WORDS), size=len(items))
    words = np.where(fits, fitting(items, rng), drawn)
    forms = list(LEVEL_WORDS.values())
    return [
        dataclasses.replace(item, question=forms[k].replace("{question}", item.question))
        for item, k in zip(items, words, strict=True)
    ]


def fitting(items: Sequence[Item], rng: np.random.Generator) -> np.ndarray:
    """The word of each item by its answer's length: 0 of its level's longest third, 2 shortest."""
    lengths = np.asarray([len((item.short or item.long).split()) for item in items])
    levels, ties = np.asarray([item.level for item in items]), rng.random(len(items))
    words = np.empty(len(items), int)
    for level in np.unique(levels):
        at = np.flatnonzero(levels == level)
        ranked = at[np.lexsort((ties[at], -lengths[at]))]
        words[ranked] = np.arange(len(at)) * len(LEVEL_WORDS) // len(at)
    return words
