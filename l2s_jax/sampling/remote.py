"""The sampler protocol over an OpenAI-compatible server (OpenAI, vLLM, SGLang, llama.cpp, ...).

Lives here: `RemoteSampler`, and what becomes of a failed request. Not here: its config and a single
request (`sampling/endpoint.py`), reading an answer (`sampling/reply.py`), waits and threads
(`sampling/retry.py`), a record on disk of what has been paid for (`curation`).

Every sample is a request of its own to /v1/chat/completions, with a seed made of key, problem id
and sample number. A server that honours seeds answers alike; none promises to.

| what happens                      | what is done                                               |
|-----------------------------------|------------------------------------------------------------|
| 429, 408, 5xx, no answer in time, | asked again after what Retry-After says, else after a      |
| no connection, an unreadable one  | growing wait; a failure once the retries are used up       |
| another 4xx, 429 without credit   | all stops: nothing new is sent, what is at work is kept    |
| finish_reason length              | a rollout like any other                                   |
| content_filter, tool_calls, ...   | a failure, not asked again: it was paid for                |

A request that times out may still be charged by the server; the next try then pays again.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Key

from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.endpoint import Endpoint, RemoteConfig, Trouble, import_openai, read_key
from l2s_jax.sampling.pace import Pace
from l2s_jax.sampling.reply import RemoteRollout, Unreadable, Unusable, read_reply
from l2s_jax.sampling.retry import Gate, answered, backoff
from l2s_jax.tokens.triggers import refuse_triggers
from l2s_jax.types import Problem

IN_A_ROW = 8  # so many requests (or `concurrency`, if more) given up without one answer: it is down

Cause = Literal["rejected", "exhausted", "unusable"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A completion that was asked for and is not there."""

    id: str
    sample: int
    cause: Cause  # by the server at once; after all retries; an answer that is no completion
    message: str
    num_tries: int
    text: str | None = None  # of an unusable answer


Outcome = RemoteRollout | Failure | None  # None: not asked, since all stops or another has it
Through = Callable[[str, int, Callable[[], Outcome]], Outcome]
"""Called in the thread that asks, with problem id, sample and the request itself: it may keep what
came of the request before anybody sees it, or leave the request to another (None)."""


def _at_once(id: str, sample: int, go: Callable[[], Outcome]) -> Outcome:
    return go()


class RemoteError(RuntimeError):
    """Raised once no more rollouts will come. What was paid for is in here or was handed out.

    `sampler.stream(problems, key, have=[(r.id, r.sample) for r in rollouts])` asks for the rest.
    """

    def __init__(self, failures: Sequence[Failure], unasked: Sequence[tuple[str, int]]):
        super().__init__(_told(failures, unasked))
        self.failures = tuple(failures)
        self.unasked = tuple(unasked)  # (problem id, sample) that have neither answer nor failure
        self.rollouts: tuple[RemoteRollout, ...] = ()  # of `sample`; `stream` handed them out


def _told(failures: Sequence[Failure], unasked: Sequence[tuple[str, int]]) -> str:
    causes = collections.Counter(failure.cause for failure in failures)
    counts = ", ".join(f"{number} {cause}" for cause, number in causes.items())
    ids = list(dict.fromkeys(failure.id for failure in failures))
    shown = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    worst = next((f for f in failures if f.cause == "rejected"), failures[0])
    rest = f" {len(unasked)} were not asked any more." if unasked else ""
    return (
        f"no rollout for {shown}: {counts}.{rest}"
        f" {worst.id!r} at try {worst.num_tries}: {worst.message}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ask:
    problem: Problem
    sample: int
    seed: int | None


class RemoteSampler:
    """A teacher behind a server. It writes freely: nobody can force its tokens.

    Calls are safe from several threads; each has its own connections. Under a running event loop
    use `await asyncio.to_thread(sampler.sample, problems, key)`.
    """

    repeats = False  # best effort: seeds are sent, servers need not honour them

    def __init__(self, cfg: RemoteConfig):
        self.cfg = cfg
        import_openai()
        read_key(cfg)  # a missing key shows now; it is read again for each call, and never kept
        if cfg.temperature == 0 and cfg.num_samples > 1:
            warnings.warn(
                f"RemoteConfig.temperature=0 with num_samples={cfg.num_samples}: the samples of a"
                " problem will be (nearly) the same, and each is paid for.",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"RemoteSampler({self.cfg.model!r} at {self.cfg.base_url})"

    def sample(
        self,
        problems: Sequence[Problem],
        key: Key[Array, ""],
        *,
        routing: RoutingConfig | None = None,
    ) -> list[RemoteRollout]:
        """`num_samples` rollouts of each problem, in the order of the problems.

        A `RemoteError` at the end holds the rollouts that there are. Where minutes of a teacher
        matter, read `stream` and keep each as it comes.
        """
        order = {problem.id: n for n, problem in enumerate(problems)}
        rollouts: list[RemoteRollout] = []

        def in_order() -> list[RemoteRollout]:
            return sorted(rollouts, key=lambda rollout: (order[rollout.id], rollout.sample))

        try:
            rollouts.extend(self.stream(problems, key, routing=routing))
        except RemoteError as error:
            error.rollouts = tuple(in_order())
            raise
        return in_order()

    def stream(
        self,
        problems: Sequence[Problem],
        key: Key[Array, ""],
        *,
        routing: RoutingConfig | None = None,
        have: Collection[tuple[str, int]] = (),
        through: Through = _at_once,
    ) -> Generator[RemoteRollout, None, None]:
        """Rollouts as they finish; raises `RemoteError` after the last if any failed.

        Args:
          have: (problem id, sample) that are there already and are not asked for again.
          through: around each request, with all its retries.
        """
        if routing is not None and (
            set(routing.modes) != {"free"} or routing.threshold is not None
        ):
            raise ValueError(
                f"RoutingConfig.modes={routing.modes}, threshold={routing.threshold}: a server's"
                ' tokens cannot be forced. Use RoutingConfig(modes=("free",)); to route a model'
                " that knows the triggers, load its folder into a LocalSampler."
            )
        return self._run(_asks(self.cfg, problems, key, frozenset(have)), through)

    def _run(self, asks: list[_Ask], through: Through) -> Generator[RemoteRollout, None, None]:
        halt, gate = threading.Event(), Gate()
        limits = (self.cfg.requests_per_minute, self.cfg.tokens_per_minute)
        pace = Pace(*limits, self.cfg.max_new_tokens)
        left = {(ask.problem.id, ask.sample): None for ask in asks}
        failures: list[Failure] = []
        num_given_up = 0  # since the last answer
        with contextlib.ExitStack() as stack:
            endpoint = stack.enter_context(Endpoint(self.cfg))

            def answer(ask: _Ask) -> Outcome:
                if halt.is_set():
                    return None
                go = functools.partial(self._answer, endpoint, ask, gate, pace, halt)
                return through(ask.problem.id, ask.sample, go)

            # Closed before the endpoint is: one who gives up waits for the threads first.
            crew = answered(asks, answer, self.cfg.concurrency, halt, endpoint.hang_up)
            coming = stack.enter_context(contextlib.closing(crew))
            for one in coming:
                if one is None:
                    continue
                del left[one.id, one.sample]
                if isinstance(one, RemoteRollout):
                    num_given_up = 0
                    yield one
                    continue
                failures.append(one)
                num_given_up += one.cause == "exhausted"
                if num_given_up >= max(IN_A_ROW, self.cfg.concurrency):
                    halt.set()
        if failures:
            raise RemoteError(failures, list(left))

    def _answer(
        self, endpoint: Endpoint, ask: _Ask, gate: Gate, pace: Pace, halt: threading.Event
    ) -> Outcome:
        """What came of a request; None where all was halted before it got an answer."""
        for num_tries in range(1, self.cfg.max_retries + 2):
            wait, charged = pace.book(ask.problem.question)
            halt.wait(wait)
            gate.wait(halt)
            if halt.is_set():
                return None
            try:
                reply = endpoint.ask(ask.problem.question, ask.seed)
                rollout = read_reply(
                    reply,
                    id=ask.problem.id,
                    sample=ask.sample,
                    seed=ask.seed,
                    num_tries=num_tries,
                )
                if rollout.completion_tokens is not None:
                    used = rollout.prompt_tokens or 0
                    pace.settle(charged, used, rollout.completion_tokens)
                return rollout
            except Unusable as error:
                return _failure(ask, "unusable", endpoint.safe(str(error)), num_tries, error.text)
            except Unreadable as error:
                trouble = Trouble(endpoint.safe(str(error)), again=True)
            except Trouble as error:
                trouble = error
                pace.refund(charged)
            if not trouble.again:
                halt.set()  # here, so that not one more request goes out
                return _failure(ask, "rejected", str(trouble), num_tries)
            if num_tries > self.cfg.max_retries:
                break
            if (trouble.after or 0) > self.cfg.max_wait_seconds:
                told = f"{trouble} (asks to wait {trouble.after:g} s, beyond max_wait_seconds)"
                return _failure(ask, "exhausted", told, num_tries)
            self._wait(trouble, num_tries, gate, halt)
        return _failure(ask, "exhausted", str(trouble), num_tries)

    def _wait(self, trouble: Trouble, num_tries: int, gate: Gate, halt: threading.Event) -> None:
        """Waits as long as the server says, else longer each time."""
        first = self.cfg.backoff_seconds
        if trouble.after is None:
            halt.wait(backoff(num_tries, first))
        else:
            gate.close_for(trouble.after)  # what one is told holds for all
            halt.wait(trouble.after + backoff(1, first))


def _failure(
    ask: _Ask, cause: Cause, message: str, num_tries: int, text: str | None = None
) -> Failure:
    return Failure(
        id=ask.problem.id,
        sample=ask.sample,
        cause=cause,
        message=message,
        num_tries=num_tries,
        text=text,
    )


def _asks(
    cfg: RemoteConfig,
    problems: Sequence[Problem],
    key: Key[Array, ""],
    have: Collection[tuple[str, int]],
) -> list[_Ask]:
    """What is to be asked. Refuses, before anything is paid for, what a local sampler refuses."""
    counts = collections.Counter(problem.id for problem in problems)
    twice = [id for id, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"problem ids {twice[:20]} come twice; ids name the draws.")
    for problem in problems:
        refuse_triggers(problem.id, {"question": problem.question})
    words = np.asarray(jax.random.key_data(key)).tobytes()
    return [
        _Ask(
            problem=problem,
            sample=sample,
            seed=request_seed(words, problem.id, sample) if cfg.seeded else None,
        )
        for problem in problems
        for sample in range(cfg.num_samples)
        if (problem.id, sample) not in have
    ]


def request_seed(key_bytes: bytes, id: str, sample: int) -> int:
    """31 bits (all that every server takes) that name one draw."""
    digest = hashlib.sha256(key_bytes + f"{id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
