"""The policies beside the one that is trained: which samples, and which is the reference.

Lives here: `Others`, their weights and what the objective needs of them. Not here: the program that
computes log-probs (`training/scoring.py`), when the sampler takes over new weights
(`training/grpo.py`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from l2s_jax.model.decoder import Params
from l2s_jax.model.lora import join, merge
from l2s_jax.objectives.objective import Objective
from l2s_jax.training.scoring import Scorer
from l2s_jax.training.state import TrainState
from l2s_jax.types import Metrics, RolloutBatch


class Others:
    """The behaviour policy and the reference; both are the run's first policy at the beginning."""

    def __init__(self, preset: Objective, first: Params, scorer: Scorer):
        self._preset, self._scorer = preset, scorer
        self.behaviour = first
        self._trained: Params | None = None  # what it was made of, where that was trained here
        self._reference = scorer.place(first) if preset.needs_reference else None

    def refresh(self, state: TrainState) -> None:
        """The sampler takes over what is trained: a copy, for the update gives its own away."""
        self.sample_from(jax.tree.map(jnp.copy, state.params), state)

    def sample_from(self, trained: Params, state: TrainState) -> None:
        """The sampler takes over these values of the trained parameters."""
        self._trained = trained
        self.behaviour = merge(join(trained, state.frozen))

    @property
    def trained(self) -> Params | None:
        """What the sampler's weights were made of; None where they are still the first ones."""
        return self._trained

    def score(self, batch: RolloutBatch) -> tuple[RolloutBatch, Metrics]:
        """The batch with the log-probs that the objective needs of these policies.

        Where the behaviour policy's are among them, the distance between trainer and sampler is
        known in this step too (`sampler_gap`): the two programs read the same weights.
        """
        if not (self._preset.needs_reference or self._preset.needs_sampler_logp):
            return batch, {}
        ref_logp, behaviour_logp = None, None
        if self._reference is not None:
            ref_logp = self._scorer(self._reference, batch)
        if self._reference is not None and self._trained is None:
            behaviour_logp = ref_logp  # both are still the run's first policy
        elif self._preset.needs_sampler_logp:
            behaviour_logp = self._scorer(self._scorer.place(self.behaviour), batch)
        gap = {}
        if behaviour_logp is not None:
            gap = jax.device_get(self._scorer.gap(batch, behaviour_logp))
        changes: dict[str, Any] = {"ref_logp": ref_logp}
        if self._preset.needs_sampler_logp:
            changes |= {"sampler_logp": batch.old_logp, "old_logp": behaviour_logp}
        return dataclasses.replace(batch, **changes), gap
