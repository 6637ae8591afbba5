"""Requests to rollouts: the host side of the compiled loop.

Lives here: `Engine`. Not here: what a request is (`sampling/requests.py`), the programs
(`sampling/loop.py`), who is served when (`sampling/serve.py`).
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from l2s_jax.model.cache import PAGE
from l2s_jax.model.decoder import Params
from l2s_jax.sampling.controllers.routing import MODES, RoutingConfig, make_router
from l2s_jax.sampling.controllers.thought import make_thoughts
from l2s_jax.sampling.loop import Steering
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import (
    Request,
    SamplingConfig,
    check_requests,
    make_jobs,
    prefix_room,
    right_aligned,
)
from l2s_jax.sampling.serve import MIN_WIDTH, Program, Queue, Served, Sizes, Watch, serve
from l2s_jax.sampling.state import Jobs, Results
from l2s_jax.sampling.weights import mesh_of, sampling_weights
from l2s_jax.sharding import MeshConfig, host_mesh, make_mesh
from l2s_jax.tokens.automaton import route_table
from l2s_jax.types import FinishReason, Rollout, Route

ROUTES: tuple[Route, ...] = ("short", "long", "none")


class Engine:
    """Samples from one policy. Weights may be exchanged without compiling anew.

    Rows are cut over the mesh's data axes, weights over its tensor axis. The default mesh is this
    host's part of that on which the policy's weights lie; for weights on no mesh all its devices,
    on the data axis. No host waits for another's longest row.
    """

    def __init__(
        self,
        policy: Policy,
        cfg: SamplingConfig,
        mesh: Mesh | None = None,
        largest_page: int = PAGE,
    ):
        if cfg.temperature == 0 and cfg.num_samples > 1 and len(cfg.routing.modes) == 1:
            warnings.warn(
                f"temperature 0 is greedy: the {cfg.num_samples} samples of a prompt will be the"
                " same. Raise the temperature, or ask for one sample.",
                stacklevel=2,
            )
        self.cfg = cfg
        self.policy = policy
        self.served = Served()
        self._largest_page = largest_page
        self._mesh = _around(policy.params) if mesh is None else mesh
        self._given: Params | None = None
        self._placed: Params = {}
        self._table = None
        if policy.triggers is not None:
            size = policy.model.vocab_size
            self._table = route_table(policy.triggers, policy.tokenizer, size)
        # Without stops, rows run to their budget.
        self._stops = right_aligned([*((i,) for i in policy.stop_ids), *cfg.stop_sequences])

    def sample(
        self,
        requests: Sequence[Request],
        key: Key[Array, ""],
        *,
        params: Params | None = None,
        routing: RoutingConfig | None = None,
        watch: Watch | None = None,
        ended: Callable[[list[Rollout]], None] | None = None,
    ) -> list[Rollout]:
        """`num_samples` rollouts of each request, in the order of the requests.

        The same key, request id and sample number draw the same, whatever else is asked for.
        `served` then says what the call cost.

        Args:
          params: weights to use instead of the policy's own.
          routing: instead of the config's.
          watch: is shown the rows at work every so many steps, and may change them.
          ended: is given rollouts while others go on, each once, whenever the loop comes back to
            the host: `watch.every` says how often. Not all need come this way.
        """
        model = self.policy.model
        check_requests(
            requests,
            self.cfg,
            vocab_size=model.vocab_size,
            max_positions=model.max_positions,
        )
        self.served = Served()
        if not requests:
            return []
        routing, group = routing or self.cfg.routing, self.cfg.num_samples
        queue = self.queue(requests, routing)
        found: dict[int, Rollout] = {}

        def cut(results: Results, jobs: Sequence[int]) -> list[Rollout]:
            for job in jobs:
                found[job] = self._cut(requests[job // group], job % group, results, job)
            return [found[job] for job in jobs]

        def take(results: Results, jobs: np.ndarray) -> None:
            new = [job for job in jobs.tolist() if job not in found]
            if new and ended is not None:
                ended(cut(results, new))

        program = Program(
            model=self.policy.model,
            mesh=self._mesh,
            params=self.place(self.policy.params if params is None else params),
            steering=self.steering(routing, queue.jobs),
            key=key,
            watch=watch,
            ended=None if ended is None else take,
        )
        results, self.served = serve(program, queue, self.sizes(requests))
        if self.served.not_finite:
            warnings.warn(
                f"{self.served.not_finite} of {len(results.lengths)} completions ended because the"
                " model's logits were not finite (finish_reason non_finite).",
                stacklevel=2,
            )
        jobs = range(len(requests) * group)
        cut(results, [job for job in jobs if job not in found])
        return [found[job] for job in jobs]

    def queue(self, requests: Sequence[Request], routing: RoutingConfig) -> Queue:
        """The prompts of a call, and its jobs."""
        return Queue(
            prompts=[request.prompt_ids for request in requests],
            jobs=make_jobs(self.cfg, routing, requests, self._stops),
            group=self.cfg.num_samples,
        )

    def steering(self, routing: RoutingConfig, jobs: Jobs) -> Steering:
        """The controllers' settings for a call."""
        size = self.policy.model.vocab_size
        router = make_router(
            self.policy.triggers,
            self._table,
            [MODES[mode] for mode in np.unique(jobs.mode)],
            routing.threshold,
            routing.switch,
            size,
        )
        banned = np.zeros(size, bool)
        banned[list(self.cfg.banned_ids)] = True
        return Steering(
            router=router.without_rows(),
            thoughts=make_thoughts(self.cfg.thought),
            banned=jnp.asarray(banned),
            entropy=jnp.asarray(self.cfg.entropy),
        )

    def place(self, params: Params) -> Params:
        """The weights as the sampler reads them; the last ones asked for stay.

        All hosts must come here together for weights that lie on several, before they sample.
        """
        if params is not self._given:
            self._given = params
            self._placed = sampling_weights(self.policy.model, self._mesh, params)
        return self._placed

    def forget(self) -> None:
        """Lets go of the weights that `place` made; whoever asks next waits until they are again.

        For whoever needs their memory between two calls more than the moment that they take.
        """
        self._given, self._placed = None, {}

    def keep_placed(self) -> None:
        """Lets go of the policy's weights as they were loaded; those that `place` makes serve.

        For whoever samples from one policy alone: what the weights took is room for more rows. All
        hosts must come here together for weights that lie on several.
        """
        self.place(self.policy.params)
        self._given = {}
        self.policy = dataclasses.replace(self.policy, params=self._given)

    def sizes(self, requests: Sequence[Request]) -> Sizes:
        """The shapes of a device's state for a call; refuses a cache beyond the stated bound."""
        cfg, model = self.cfg, self.policy.model
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        groups = -(-cfg.max_rows // (cfg.num_samples * shards))
        longest = max(len(request.prompt_ids) for request in requests)
        sizes = Sizes(
            rows=groups * cfg.num_samples,
            group=cfg.num_samples,
            # While long rows go on, their prompts stay: room for others keeps all rows at work.
            prompts=groups if len(requests) <= groups * shards else 4 * groups,
            width=max(MIN_WIDTH, 1 << (longest - 1).bit_length()),
            max_tokens=cfg.max_new_tokens,
            stops=self._stops.shape,
            prefix=prefix_room(cfg),
            largest_page=self._largest_page,
        )
        gib = sizes.cache_bytes(model) / 2**30
        if cfg.cache_gib is not None and gib > cfg.cache_gib:
            raise ValueError(
                f"the cache of {sizes.rows} rows of {cfg.max_new_tokens} tokens and"
                f" {sizes.prompts} prompts of {sizes.width} takes {gib:.2f} GiB per device, above"
                f" SamplingConfig.cache_gib={cfg.cache_gib}. Lower max_rows={cfg.max_rows} or"
                " max_new_tokens."
            )
        return sizes

    def _cut(self, request: Request, sample: int, results: Results, job: int) -> Rollout:
        """One completion, cut at its length."""
        length, stopped = int(results.lengths[job]), bool(results.stopped[job])
        reason: FinishReason = "stop" if stopped else "length"
        if not results.finite[job]:
            reason = "non_finite"
        token_ids = results.tokens[job, :length]
        p_easy = float(results.p_easy[job])
        return Rollout(
            id=request.id,
            sample=sample,
            prompt_ids=np.asarray(request.prompt_ids, np.int32),
            token_ids=token_ids,
            logp=results.logp[job, :length],
            free=results.free[job, :length],
            text=self._text(token_ids[: length - 1] if stopped else token_ids),
            route=ROUTES[int(results.route[job])],
            p_easy=None if np.isnan(p_easy) else p_easy,
            finish_reason=reason,
            kept_logp=results.kept_logp[job, :length],
            entropy=results.entropy[job, :length] if self.cfg.entropy else None,
        )

    def _text(self, token_ids: np.ndarray) -> str | None:
        tokenizer = self.policy.tokenizer
        return None if tokenizer is None else tokenizer.decode(token_ids.tolist())


def _around(params: Params) -> Mesh:
    """This host's part of the mesh that weights lie on, or all its devices."""
    found = mesh_of(params)
    return make_mesh(MeshConfig(), jax.local_devices()) if found is None else host_mesh(found)
