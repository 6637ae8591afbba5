"""What is asked of the sampler: one config for all, knobs of single completions, prompts.

Lives here: `SamplingConfig`, `Knobs`, `Request`, what is refused, and their translation into the
arrays of the compiled loop. Not here: serving them (`sampling/engine.py`).
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from l2s_jax.sampling.choose import Draw
from l2s_jax.sampling.controllers.routing import MODES, Mode, RoutingConfig
from l2s_jax.sampling.controllers.thought import ThoughtConfig, make_thoughts, places
from l2s_jax.sampling.state import Jobs
from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import refuse_triggers
from l2s_jax.types import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn."""

    num_samples: int = 1  # of each prompt
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0  # of the likeliest token's probability
    max_new_tokens: int = 256  # stop token included
    max_rows: int = 256  # rows side by side, rounded up to whole prompts on every device
    stop_sequences: tuple[tuple[int, ...], ...] = ()  # of ids, beside the tokenizer's stop ids
    prefix_ids: tuple[int, ...] = ()  # every completion is made to open with
    banned_ids: tuple[int, ...] = ()  # never drawn; a controller may still force them
    entropy: bool = False  # of every token's distribution; costs a pass over the vocabulary
    thought: ThoughtConfig | None = None  # how thoughts end; None leaves it to the policy
    cache_gib: float | None = None  # refuse a cache beyond this, per device; None: whatever fits
    routing: RoutingConfig = RoutingConfig()

    def __post_init__(self):
        if self.top_k < 0:
            raise ValueError(f"SamplingConfig.top_k={self.top_k}: 0 keeps all, k the k likeliest.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(
                f"SamplingConfig.min_p={self.min_p}: a share of the likeliest token's probability,"
                " 0 to 1."
            )
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
        if not all(self.stop_sequences):
            raise ValueError(
                "SamplingConfig.stop_sequences has an empty one: it would stop at once."
            )
        if self.max_rows < self.num_samples:
            raise ValueError(
                f"SamplingConfig.max_rows={self.max_rows} is below num_samples={self.num_samples}:"
                " the samples of a prompt run side by side. Raise max_rows."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knobs:
    """What one completion asks for instead of the config's; None leaves that as it is."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int | None = None  # at most the config's
    mode: Mode | None = None
    threshold: float | None = None  # on p(EASY); -1 leaves the choice to the policy
    prefix_ids: tuple[int, ...] | None = None  # at most as many as the config's
    max_thought: int | None = None  # these three: what SamplingConfig.thought says of all
    num_waits: int | None = None
    stop_tau: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt by its ids. Its id names its draws."""

    id: str
    prompt_ids: tuple[int, ...]
    knobs: tuple[Knobs, ...] = ()  # for each of its samples; none: the config's for all


def ask(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[Request]:
    """Each problem's question, put through the chat template."""
    for problem in problems:
        refuse_triggers(problem.id, {"question": problem.question})
    return [Request(id=p.id, prompt_ids=tuple(tokenizer.ask(p.question))) for p in problems]


def row_id(id: str, sample: int) -> int:
    """Names a row's draws by what it is, not by where in a batch it stands."""
    return zlib.crc32(f"{id}/{sample}".encode())


def make_jobs(
    cfg: SamplingConfig, routing: RoutingConfig, requests: Sequence[Request], stops: np.ndarray
) -> Jobs:
    """What each completion asks for, request by request; numpy arrays.

    Args:
      stops: [X, Y], as `right_aligned` makes it.
    """
    group, size = cfg.num_samples, len(requests) * cfg.num_samples
    knobs = [knob for request in requests for knob in (request.knobs or (Knobs(),) * group)]
    thoughts = make_thoughts(cfg.thought)
    modes = [routing.of_sample(sample, group) for sample in range(group)] * len(requests)

    def values(name: str, usual: Any, dtype: Any) -> np.ndarray:
        asked = (getattr(knob, name) for knob in knobs)
        return np.asarray([usual if value is None else value for value in asked], dtype)

    asked_modes = [knob.mode or mode for knob, mode in zip(knobs, modes, strict=True)]
    prefixes = [cfg.prefix_ids if k.prefix_ids is None else k.prefix_ids for k in knobs]
    prefix = np.full((size, prefix_room(cfg)), -1, np.int32)
    for row, ids in zip(prefix, prefixes, strict=True):
        row[: len(ids)] = ids
    threshold = -1.0 if routing.threshold is None else routing.threshold
    return Jobs(
        row_id=np.asarray([row_id(r.id, n) for r in requests for n in range(group)], np.uint32),
        draw=Draw(
            temperature=values("temperature", cfg.temperature, np.float32),
            top_k=values("top_k", cfg.top_k, np.int32),
            top_p=values("top_p", cfg.top_p, np.float32),
            min_p=values("min_p", cfg.min_p, np.float32),
        ),
        budget=values("max_new_tokens", cfg.max_new_tokens, np.int32),
        mode=np.asarray([MODES.index(mode) for mode in asked_modes], np.int32),
        threshold=values("threshold", threshold, np.float32),
        prefix=prefix,
        max_thought=values("max_thought", int(thoughts.max_tokens[0]), np.int32),
        num_waits=values("num_waits", int(thoughts.num_waits[0]), np.int32),
        stop_tau=values("stop_tau", float(thoughts.stop_tau[0]), np.float32),
        stops=np.broadcast_to(stops, (size, *stops.shape)),
    )


def prefix_room(cfg: SamplingConfig) -> int:
    """Ids that the arrays hold for a prefix."""
    return places(len(cfg.prefix_ids))


def right_aligned(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """[X, Y] int32: the sequences, filled up with -1 on the left, and rows of -1."""
    longest = places(max(map(len, sequences), default=0))
    table = np.full((places(len(sequences)), longest), -1, np.int32)
    for row, sequence in zip(table, sequences, strict=False):
        row[longest - len(sequence) :] = sequence
    return table


def check_requests(
    requests: Sequence[Request], cfg: SamplingConfig, *, vocab_size: int, max_positions: int
) -> None:
    """Refuses what the model cannot read, or what a knob cannot mean."""
    seen: set[str] = set()
    for request in requests:
        num = len(request.prompt_ids)
        if request.id in seen:
            raise ValueError(f"request id {request.id!r} comes twice; ids name the draws.")
        seen.add(request.id)
        if num == 0:
            raise ValueError(f"request {request.id!r} has an empty prompt; give it a token.")
        low, high = min(request.prompt_ids), max(request.prompt_ids)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"request {request.id!r}: token id {low if low < 0 else high} is outside the"
                f" vocabulary of {vocab_size}. Is it another tokenizer's?"
            )
        if num + cfg.max_new_tokens > max_positions:
            raise ValueError(
                f"request {request.id!r}: {num} prompt tokens and max_new_tokens="
                f"{cfg.max_new_tokens} exceed the model's {max_positions} positions."
                " Shorten the prompt or lower max_new_tokens."
            )
        _check_knobs(request, cfg)


def _check_knobs(request: Request, cfg: SamplingConfig) -> None:
    if len(request.knobs) not in (0, cfg.num_samples):
        raise ValueError(
            f"request {request.id!r} has {len(request.knobs)} knobs for {cfg.num_samples} samples."
            " Give none, or one for each sample."
        )
    for knob in request.knobs:
        asked = {name: value for name, value in vars(knob).items() if value is not None}
        shared = {
            name: asked[name]
            for name in ("temperature", "top_k", "top_p", "min_p")
            if name in asked
        }
        dataclasses.replace(cfg, **shared)  # refuses what the config would
        for name, most in (
            ("max_new_tokens", cfg.max_new_tokens),
            ("prefix_ids", prefix_room(cfg)),
        ):
            value = asked.get(name, 1)
            size = value if isinstance(value, int) else len(value)
            if not (isinstance(value, tuple) or size >= 1) or size > most:
                raise ValueError(
                    f"request {request.id!r}: Knobs.{name}={value!r}; arrays are made for"
                    f" {most}. Raise SamplingConfig.{name}."
                )
