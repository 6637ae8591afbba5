"""Requests to rollouts: the host side of the compiled loop.

Lives here: `SamplingConfig`, `Request`, `Engine`. Not here: the loop (`sampling/loop.py`).

A call sorts its prompts by length, fills batches of a fixed number of rows, and pads prompts to
a declared set of widths, so that a run compiles a known number of programs.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from l2s_jax.model.decoder import Params
from l2s_jax.sampling.controllers import Mode, Router, RoutingConfig, make_router
from l2s_jax.sampling.loop import Generated, Rows, decode, prefill
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import MeshConfig, make_mesh, replicated
from l2s_jax.tokens.automaton import route_table
from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import refuse_triggers
from l2s_jax.types import Problem, Rollout, Route

ROUTES: tuple[Route, ...] = ("short", "long", "none")
MIN_WIDTH = 16  # prompts are padded to this or a power of two above it


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn."""

    num_samples: int = 1  # of each prompt
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    max_new_tokens: int = 256  # stop token included
    max_rows: int = 256  # rows side by side, rounded up to whole prompts on every device
    routing: RoutingConfig = RoutingConfig()

    def __post_init__(self):
        for name in ("num_samples", "max_new_tokens", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"SamplingConfig.{name}={getattr(self, name)}: at least 1.")
        if self.temperature < 0:
            raise ValueError(
                f"SamplingConfig.temperature={self.temperature}: 0 is greedy, above it random;"
                " it cannot be negative."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"SamplingConfig.top_p={self.top_p}: the mass to keep, above 0 and at most 1."
            )
        if self.max_rows < self.num_samples:
            raise ValueError(
                f"SamplingConfig.max_rows={self.max_rows} is below num_samples={self.num_samples}:"
                " the samples of a prompt run side by side. Raise max_rows."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt by its ids. Its id names its draws."""

    id: str
    prompt_ids: tuple[int, ...]


def ask(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[Request]:
    """Each problem's question, put through the chat template."""
    for problem in problems:
        refuse_triggers(problem.id, {"question": problem.question})
    return [Request(id=p.id, prompt_ids=tuple(tokenizer.ask(p.question))) for p in problems]


def row_id(id: str, sample: int) -> int:
    """Names a row's draws by what it is, not by where in a batch it stands."""
    return zlib.crc32(f"{id}/{sample}".encode())


class Engine:
    """Samples from one policy. Weights may be exchanged without compiling anew.

    Rows are cut over the mesh's data axes (default: all devices), weights are on every device.
    """

    def __init__(self, policy: Policy, cfg: SamplingConfig, mesh: Mesh | None = None):
        self.cfg = cfg
        self.policy = policy
        self._mesh = make_mesh(MeshConfig()) if mesh is None else mesh
        self._given: Params | None = None
        self._placed: Params = {}
        self._table = None
        if policy.triggers is not None:
            size = policy.model.vocab_size
            self._table = route_table(policy.triggers, policy.tokenizer, size)
        self._stop_ids = policy.stop_ids

    def sample(
        self,
        requests: Sequence[Request],
        key: Key[Array, ""],
        *,
        params: Params | None = None,
        routing: RoutingConfig | None = None,
    ) -> list[Rollout]:
        """`num_samples` rollouts of each request, in the order of the requests.

        The same key, request id and sample number draw the same, whatever else is asked for.

        Args:
          params: weights to use instead of the policy's own.
          routing: instead of the config's.
        """
        self._check(requests)
        routing = routing or self.cfg.routing
        params = self._place(self.policy.params if params is None else params)
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        per_batch = -(-self.cfg.max_rows // (self.cfg.num_samples * shards)) * shards
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        rollouts: dict[int, list[Rollout]] = {}
        for begin in range(0, len(order), per_batch):
            chosen = order[begin : begin + per_batch]
            batch = [requests[i] for i in chosen]
            generated = self._run(batch, per_batch, params, routing, key)
            for place, i in enumerate(chosen):
                rollouts[i] = self._cut(requests[i], place, generated)
        return [rollout for i in range(len(requests)) for rollout in rollouts[i]]

    def _place(self, params: Params) -> Params:
        """The weights on every device; the last ones asked for stay there."""
        if params is not self._given:
            self._given, self._placed = params, jax.device_put(params, replicated(self._mesh))
        return self._placed

    def _check(self, requests: Sequence[Request]) -> None:
        seen: set[str] = set()
        limit = self.policy.model.max_positions
        for request in requests:
            num = len(request.prompt_ids)
            if request.id in seen:
                raise ValueError(f"request id {request.id!r} comes twice; ids name the draws.")
            seen.add(request.id)
            if num == 0:
                raise ValueError(f"request {request.id!r} has an empty prompt; give it a token.")
            low, high = min(request.prompt_ids), max(request.prompt_ids)
            if low < 0 or high >= self.policy.model.vocab_size:
                raise ValueError(
                    f"request {request.id!r}: token id {low if low < 0 else high} is outside the"
                    f" vocabulary of {self.policy.model.vocab_size}. Is it another tokenizer's?"
                )
            if num + self.cfg.max_new_tokens > limit:
                raise ValueError(
                    f"request {request.id!r}: {num} prompt tokens and max_new_tokens="
                    f"{self.cfg.max_new_tokens} exceed the model's {limit} positions."
                    " Shorten the prompt or lower max_new_tokens."
                )

    def _run(
        self,
        batch: Sequence[Request],
        num_prompts: int,
        params: Params,
        routing: RoutingConfig,
        key: Key[Array, ""],
    ) -> Generated:
        """One batch through both programs; missing prompts become rows that never start."""
        model, cfg = self.policy.model, self.cfg
        prompt_NP, lengths_N = _pad(batch, num_prompts)
        kv, logits_NV = prefill(model, self._mesh, params, prompt_NP, lengths_N)
        generated = decode(
            model,
            self._mesh,
            params,
            kv,
            logits_NV,
            lengths_N,
            self._rows(batch, num_prompts),
            self._router(routing, num_prompts),
            jnp.asarray(self._stop_ids or (-1,), jnp.int32),
            key,
            group=cfg.num_samples,
            max_tokens=cfg.max_new_tokens,
        )
        return jax.device_get(generated)

    def _rows(self, batch: Sequence[Request], num_prompts: int) -> Rows:
        cfg, num_rows = self.cfg, num_prompts * self.cfg.num_samples
        names = [row_id(r.id, sample) for r in batch for sample in range(cfg.num_samples)]
        filling = num_rows - len(names)
        return Rows(
            row_id=jnp.asarray(names + [0] * filling, jnp.uint32),
            temperature=jnp.full(num_rows, cfg.temperature, jnp.float32),
            top_p=jnp.full(num_rows, cfg.top_p, jnp.float32),
            budget=jnp.asarray([cfg.max_new_tokens] * len(names) + [0] * filling, jnp.int32),
        )

    def _router(self, routing: RoutingConfig, num_prompts: int) -> Router:
        group = self.cfg.num_samples
        modes: list[Mode] = [routing.of_sample(sample, group) for sample in range(group)]
        return make_router(
            self.policy.triggers,
            self._table,
            modes * num_prompts,
            routing.threshold,
            routing.switch,
            self.policy.model.vocab_size,
        )

    def _cut(self, request: Request, place: int, generated: Generated) -> list[Rollout]:
        """One prompt's rows, cut at their lengths."""
        rollouts = []
        for sample in range(self.cfg.num_samples):
            row = place * self.cfg.num_samples + sample
            length, stopped = int(generated.lengths[row]), bool(generated.stopped[row])
            token_ids = generated.tokens[row, :length]
            p_easy = float(generated.p_easy[row])
            rollouts.append(
                Rollout(
                    id=request.id,
                    sample=sample,
                    prompt_ids=np.asarray(request.prompt_ids, np.int32),
                    token_ids=token_ids,
                    logp=generated.logp[row, :length],
                    free=generated.free[row, :length],
                    text=self._text(token_ids[: length - 1] if stopped else token_ids),
                    route=ROUTES[int(generated.route[row])],
                    p_easy=None if np.isnan(p_easy) else p_easy,
                    finish_reason="stop" if stopped else "length",
                )
            )
        return rollouts

    def _text(self, token_ids: np.ndarray) -> str | None:
        tokenizer = self.policy.tokenizer
        return None if tokenizer is None else tokenizer.decode(token_ids.tolist())


def _pad(batch: Sequence[Request], num_prompts: int) -> tuple[Int[Array, "N P"], Int[Array, " N"]]:
    """Prompts, right-padded to a declared width, and their lengths; missing ones have one token."""
    longest = max(len(request.prompt_ids) for request in batch)
    width = max(MIN_WIDTH, 1 << (longest - 1).bit_length())
    prompt_NP = np.zeros((num_prompts, width), np.int32)
    lengths_N = np.ones(num_prompts, np.int32)
    for n, request in enumerate(batch):
        prompt_NP[n, : len(request.prompt_ids)] = request.prompt_ids
        lengths_N[n] = len(request.prompt_ids)
    return jnp.asarray(prompt_NP), jnp.asarray(lengths_N)
