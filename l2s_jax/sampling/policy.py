"""A model that can be asked: shape, weights, tokenizer, triggers.

Lives here: the record. Not here: how it is read from a folder (`training/policy.py`).
"""

import dataclasses

from l2s_jax.model.config import DTypeName, ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.origin import Origin
from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import Triggers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Everything that sampling needs. No tokenizer: ids in, ids out. No triggers: free only."""

    model: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    triggers: Triggers | None
    origin: Origin | None = None  # the folder that it came from; None for one made here

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a completion; without any, rows run to their budget."""
        if self.tokenizer is not None:
            return self.tokenizer.stop_ids
        return () if self.origin is None else self.origin.stop_ids

    def computed_in(self, dtype: DTypeName) -> "Policy":
        """The same policy, computed in a type; its weights stay as they are."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, dtype=dtype))
