"""A model so small that a whole run of it takes seconds, and what it is trained on."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from l2s_jax.data.arithmetic import ArithmeticProblems, ArithmeticTeachers, make_tokenizer
from l2s_jax.data.pipeline import Batches
from l2s_jax.data.store import write_items
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import init_params
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import MeshConfig
from l2s_jax.tokens.layouts import Example, Layout, LayoutConfig, encode_item
from l2s_jax.tokens.triggers import TriggerStarts
from l2s_jax.training.policy import teach_triggers
from l2s_jax.types import Item, Rollout

MODEL = ModelConfig(
    vocab_size=32,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ffn_width=24,
    rope_theta=1e4,
    max_positions=128,
)
MESHES = {
    "data": MeshConfig(),
    "all axes": MeshConfig(data=2, fsdp=2, tensor=2),
}


@functools.cache
def untaught_policy(seed: int = 0) -> Policy:
    """A random decoder with the arithmetic tokenizer, no triggers; its choices are no near ties."""
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(seed)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else leaf * 8, params
    )
    return Policy(model=MODEL, params=params, tokenizer=make_tokenizer(), triggers=None)


@functools.cache
def taught_policy(seed: int = 0) -> Policy:
    """The same with triggers, one token each."""
    # Words that the random decoder likes to open with, so that samples take either route.
    starts = TriggerStarts(easy="-1", long="=")
    return teach_triggers(untaught_policy(seed), "added", starts)


def make_items(num_per_level: int = 8, seed: int = 0) -> list[Item]:
    """Arithmetic items, EASY where the first terse trial is right."""
    problems = ArithmeticProblems(num_per_level=num_per_level, seed=seed, levels=(3, 4, 5))
    teachers = ArithmeticTeachers(problems=problems, seed=seed)
    items = []
    for problem in problems.load():
        long, short = teachers.long(problem), teachers.short_candidates(problem, 1)[0]
        is_easy = short.answer == problem.answer
        items.append(
            Item(
                id=problem.id,
                question=problem.question,
                reference=problem.answer,
                long=long.thought,
                long_answer=long.answer,
                short=short.thought if is_easy else None,
                short_answer=short.answer if is_easy else None,
                level=problem.level,
            )
        )
    assert {item.is_easy for item in items} == {True, False}
    return items


def write_curation(workdir: pathlib.Path) -> pathlib.Path:
    """A finished curation's workdir."""
    write_items(workdir / "items", make_items(), {})
    return workdir


def make_examples(layout: Layout = "matched") -> list[Example]:
    policy = taught_policy()
    assert policy.tokenizer is not None and policy.triggers is not None
    cfg = LayoutConfig(name=layout)
    return [encode_item(item, cfg, policy.tokenizer, policy.triggers) for item in make_items()]


def make_batches(rows: int = 8, layout: Layout = "matched") -> Batches:
    return Batches(make_examples(layout), row_length=64, batch_rows=rows, seed=0)


def made_up(seed: int, name: str, prompt: int, length: int, **changes: Any) -> Rollout:
    """A rollout of random ids, so many of prompt and completion."""
    rng = np.random.default_rng((seed, length))
    fields: dict[str, Any] = {
        "id": name,
        "sample": 0,
        "prompt_ids": rng.integers(0, 26, prompt).astype(np.int32),
        "token_ids": rng.integers(0, 26, length).astype(np.int32),
        "logp": -rng.exponential(size=length).astype(np.float32),
        "free": rng.random(length) < 0.7,
        "text": None,
        "route": "none",
        "p_easy": None,
        "finish_reason": "stop",
    }
    return Rollout(**fields | changes)


def rows_of(batch: Any, chosen: slice) -> Any:
    """Some rows of a batch, with the denominator of the whole."""
    return jax.tree.map(lambda array: jnp.asarray(array[chosen] if array.ndim else array), batch)


def assert_trees_equal(got: Any, want: Any) -> None:
    """Equal bit for bit, wherever they lie."""
    jax.tree.map(
        lambda g, w: np.testing.assert_array_equal(jax.device_get(g), jax.device_get(w)), got, want
    )
