"""A checkpoint with an adapter, read as if it had been merged.

Lives here: merging leaf by leaf, so that a model which is never whole in memory can be merged too.
Not here: merging parameters in memory (`model/lora.py`), folders in PEFT's format
(`model/hf/peft.py`).
"""

from collections.abc import Collection

import jax.numpy as jnp
import numpy as np

from l2s_jax.model.hf.write import Fetch
from l2s_jax.model.lora import merged_kernel

ROWS = {"embed.embedding": "token_rows", "lm_head": "head_rows"}  # leaf → an adapter's own rows


def merging(fetch: Fetch, paths: Collection[str]) -> Fetch:
    """`fetch`, which gives merged leaves where the checkpoint's `paths` hold an adapter."""

    def fetch_merged(path: str) -> np.ndarray:
        leaf = fetch(path)
        adapter = f"lora.{path.removesuffix('.kernel')}"
        if f"{adapter}.a" in paths:
            adapted = [fetch(f"{adapter}.{name}") for name in ("a", "b", "scale")]
            for layer in range(len(leaf)):
                one = slice(layer, layer + 1)
                merged = merged_kernel(*(jnp.asarray(part[one]) for part in (leaf, *adapted)))
                leaf[one] = np.asarray(merged)
        if f"lora.{ROWS.get(path)}" in paths:
            ids, rows = fetch("lora.token_ids"), fetch(f"lora.{ROWS[path]}")
            table = leaf.T if path == "lm_head" else leaf  # a view: one row per token
            table[ids] = rows
        return leaf

    return fetch_merged
