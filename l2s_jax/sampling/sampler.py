"""Who answers problems: one protocol for a policy here and for a server elsewhere.

Lives here: the `Sampler` protocol, and `LocalSampler` with an engine behind it. Not here: the same
over an OpenAI-compatible server (`sampling/remote.py`), the engine itself (`sampling/engine.py`),
reading a teacher from a folder (`training/policy.py`).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Key

from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import ask
from l2s_jax.types import Problem, Rollout


@runtime_checkable
class Sampler(Protocol):
    """Rollouts of problems. What each is asked with is settled when the sampler is made."""

    @property
    def repeats(self) -> bool:
        """True where the same key, problem id and sample number always draw the same.

        False: the same seeds are asked for again, and the server does what it can.
        """
        ...

    def sample(
        self,
        problems: Sequence[Problem],
        key: Key[Array, ""],
        *,
        routing: RoutingConfig | None = None,
    ) -> Sequence[Rollout]:
        """The rollouts of every problem, sample by sample, in the order of the problems.

        Args:
          routing: how rows are routed; None is how the sampler was set up.
        """
        ...


class LocalSampler:
    """An engine's policy, asked problems through its chat template."""

    repeats = True

    def __init__(self, engine: Engine):
        if engine.policy.tokenizer is None:
            raise ValueError(
                "LocalSampler: a model without a tokenizer cannot be asked questions. Put the"
                " tokenizer's files into its folder, or give ids to Engine.sample."
            )
        self.engine = engine
        self._tokenizer = engine.policy.tokenizer

    def sample(
        self,
        problems: Sequence[Problem],
        key: Key[Array, ""],
        *,
        routing: RoutingConfig | None = None,
    ) -> list[Rollout]:
        """`num_samples` of the engine's config for each problem, in the order of the problems."""
        return self.engine.sample(ask(problems, self._tokenizer), key, routing=routing)
