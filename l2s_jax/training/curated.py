"""What `l2s curate` wrote, as training sequences.

Lives here: `CuratedItems`, and which of its items are too long. Not here: the files
(`data/store.py`), layouts (`tokens/layouts.py`), the loop that trains on them (`training/sft.py`).
"""

import dataclasses
import pathlib
import sys

from l2s_jax.data.store import read_items
from l2s_jax.sampling.policy import Policy
from l2s_jax.tokens.layouts import Example, LayoutConfig, encode_items
from l2s_jax.tokens.triggers import Spelling, TriggerStarts
from l2s_jax.training.policy import teach_triggers
from l2s_jax.types import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class CuratedItems:
    """Items that `l2s curate` wrote, in one annotation layout."""

    path: str  # the curation's workdir
    layout: LayoutConfig = LayoutConfig()
    spelling: Spelling = "added"
    starts: TriggerStarts = TriggerStarts()
    max_tokens: int | None = None  # longer examples are left out, and counted; None: none may be

    def __post_init__(self):
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(
                f"CuratedItems.max_tokens={self.max_tokens}: at least 1, or null to leave out none."
            )

    def prepare(self, policy: Policy) -> tuple[Policy, list[Example], list[str]]:
        """The policy with its triggers, one example per item, and the ids of those left out."""
        policy = teach_triggers(policy, self.spelling, self.starts)
        assert policy.tokenizer is not None and policy.triggers is not None
        items = read_items(pathlib.Path(self.path) / "items")
        examples = encode_items(items, self.layout, policy.tokenizer, policy.triggers)
        return policy, *self._short_enough(list(examples))

    def problems(self) -> list[Problem]:
        """The questions of all items, with their references."""
        items = read_items(pathlib.Path(self.path) / "items")
        return [Problem(id=i.id, question=i.question, answer=i.reference) for i in items]

    def _short_enough(self, examples: list[Example]) -> tuple[list[Example], list[str]]:
        """The examples that `max_tokens` admits, and the ids of the others, which are counted."""
        limit = self.max_tokens
        left_out = [e.id for e in examples if limit is not None and e.num_tokens > limit]
        if limit is None:
            return examples, left_out
        told = f"data.max_tokens={limit} leaves out {len(left_out)} of {len(examples)} items"
        kept = [example for example in examples if example.num_tokens <= limit]
        if not kept:
            shortest = min(example.num_tokens for example in examples)
            raise ValueError(f"{told}: the shortest has {shortest} tokens. Raise it.")
        print(told, file=sys.stderr)
        return kept, left_out
