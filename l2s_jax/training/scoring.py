"""Log-probs of a step's completions: of the policy in its loss, and of others beside it.

Lives here: how a packed batch becomes a log-prob per completion token, stage 2's loss around it,
and the same program for weights that are not trained. Not here: what the loss makes of log-probs
(`objectives`), the batch (`training/rollouts.py`), the step (`training/step.py`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from l2s_jax.model.blockwise import attend_blocks
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, abstract_params, forward
from l2s_jax.model.routes import attend_on
from l2s_jax.model.seen import Attend, Seen
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.terms import Terms
from l2s_jax.sharding import batch_sharding, settled, shardings
from l2s_jax.training.logp import target_logp
from l2s_jax.training.microbatches import cut_rows
from l2s_jax.training.state import TrainState
from l2s_jax.types import Metrics, RolloutBatch


def completion_logp(
    cfg: ModelConfig,
    params: Params,
    batch: RolloutBatch,
    temperature: float,
    attend: Attend = attend_blocks,
    mesh: Mesh | None = None,
) -> Float[Array, "B T"]:
    """Log-prob of the completion tokens that a loss reads, nats, at the draw's temperature.

    0 where a controller wrote and no marker stands, and past a completion's end.

    Args:
      mesh: of the program.
    """
    seen = Seen(batch.segment_ids, batch.branches)
    hidden = forward(cfg, params, batch.tokens, batch.positions, seen=seen, attend=attend)
    logp_RW = target_logp(
        params, hidden, batch.targets, batch.wanted, temperature=temperature, mesh=mesh
    )
    read_BT = batch.free | batch.marker  # elsewhere a place may be that of another rollout
    return jnp.where(read_BT, logp_RW.reshape(-1)[batch.places], 0.0)


def loss_of(
    cfg: ModelConfig,
    preset: Objective,
    temperature: float,
    attend: Attend = attend_blocks,
    mesh: Mesh | None = None,
):
    """`loss(params, batch)` of stage 2 for one decoder and preset.

    Its metrics `max_log_ratio` and `log_ratio` are the greatest and the mean distance between the
    policy's log-prob of a free token and what the sampler wrote down. Right after a refresh the
    two policies are one, and what is left is numerics or a bug; later it is training as well.
    """

    def loss(params: Params, batch: RolloutBatch) -> tuple[Array, Metrics]:
        logp_BT = completion_logp(cfg, params, batch, temperature, attend, mesh)
        terms = Terms(
            logp=logp_BT,
            old_logp=batch.old_logp,
            advantages=batch.advantages,
            free=batch.free,
            marker=batch.marker,
            num_sequences=batch.num_sequences,
            num_tokens=batch.num_tokens,
            max_tokens=batch.max_tokens,
            ref_logp=batch.ref_logp,
            sampler_logp=batch.sampler_logp,
        )
        value, metrics = preset.loss(terms)
        return value, metrics | {
            "max_log_ratio": jnp.max(distance(batch, logp_BT)),
            "log_ratio": jnp.sum(distance(batch, logp_BT)) / batch.num_tokens,
        }

    return loss


def distance(batch: RolloutBatch, logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """How far log-probs of free tokens are from those that the sampler wrote down; 0 elsewhere."""
    wrote_BT = batch.old_logp if batch.sampler_logp is None else batch.sampler_logp
    return jnp.where(batch.free, jnp.abs(logp_BT - wrote_BT), 0.0)


class Scorer:
    """Log-probs under weights that are not trained: the reference's, or the behaviour policy's.

    Args:
      places: of the training state; weights lie as its parameters do.
    """

    def __init__(
        self, model: ModelConfig, temperature: float, places: TrainState, num_microbatches: int
    ):
        self._mesh = places.step.mesh
        attend = attend_on(self._mesh)
        self._weights = shardings(abstract_params(model), self._mesh)

        def score(params: Params, batch: RolloutBatch) -> Float[Array, "B T"]:
            parts = jax.tree.map(lambda x: cut_rows(x, self._mesh, num_microbatches), batch)

            def of_part(index: Any) -> Float[Array, "B T"]:
                part = jax.tree.map(lambda array: array[index] if array.ndim else array, parts)
                return completion_logp(model, params, part, temperature, attend, self._mesh)

            logp_MBT = jax.lax.map(of_part, jnp.arange(num_microbatches))
            return logp_MBT.reshape(batch.old_logp.shape)

        self.program = jax.jit(score, out_shardings=batch_sharding(self._mesh))

    def place(self, params: Params) -> Params:
        """The weights where the program reads them; no copy where they lie there already."""
        return jax.device_put(params, self._weights)

    def __call__(self, params: Params, batch: RolloutBatch) -> Float[Array, "B T"]:
        """Log-prob of every completion token, nats."""
        return settled(self.program(params, batch), self._mesh)

    @functools.cached_property
    def gap(self) -> Any:
        """`gap(batch, logp)`: metrics of the distance between two programs on the same weights."""

        @jax.jit
        def gap(batch: RolloutBatch, logp_BT: Float[Array, "B T"]) -> Metrics:
            gap_BT = distance(batch, logp_BT)
            return {
                "max_sampler_gap": jnp.max(gap_BT),
                "sampler_gap": jnp.sum(gap_BT) / batch.num_tokens,
            }

        return gap
