"""Teachers asked, through the ledger: what is on record is not asked again.

Lives here: `answers`, which yields the samples of one teacher; and `AskedTeachers`, a long and a
short teacher on the same problems as a source of `CurateRun`. Not here: the teachers' configs
(`curation/teachers.py`), the record on disk (`curation/ledger.py`), the live line
(`curation/bill.py`), single requests (`sampling/remote.py`).

An answer is in the ledger before it is yielded, so a run that is killed and started again asks only
for what has no record. Two runs that want the same request at the same time share its answer.
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax

from l2s_jax.curation.bill import Bill, followed
from l2s_jax.curation.ledger import Answer, Ledger
from l2s_jax.curation.teachers import (
    AskedTeacher,
    LocalTeacher,
    ServerTeacher,
    Wanted,
    trace_of,
    wanted,
)
from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.data.recorded import PublishedTraces, RecordedTraces
from l2s_jax.data.sources import JsonlProblems, LeftOut
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.remote import Failure, Outcome, RemoteError, RemoteRollout, RemoteSampler
from l2s_jax.sampling.sampler import LocalSampler
from l2s_jax.training.policy import load_to_sample
from l2s_jax.types import Problem, Rollout, Trace

POLL_SECONDS = 0.5  # between two looks for an answer that another process is asking for

Place = tuple[str, int]  # problem id, sample
Judge = Callable[[Problem, Trace], bool]  # True where the trace's answer is right


def answers(
    teacher: AskedTeacher, problems: list[Problem], num_samples: int, seed: int, ledger: Ledger
) -> Generator[tuple[Answer, bool], None, None]:
    """Every sample of every problem once, as they come; True where it was asked for just now.

    A `RemoteError` comes last, where a server would not answer some.
    """
    left = wanted(teacher, problems, num_samples, seed)
    yield from _on_record(left, teacher.budget, ledger)
    if not left:
        return
    ask = _ask_server(teacher) if isinstance(teacher, ServerTeacher) else _ask_local(teacher)
    while True:
        # Closed at once where one gives up: no thread may write to a ledger that is closed.
        with contextlib.closing(ask(left, seed, ledger)) as coming:
            for place, answer in coming:
                del left[place]
                yield answer, True
        ledger.refresh()
        yield from _on_record(left, teacher.budget, ledger)
        if not left:
            return
        time.sleep(POLL_SECONDS)  # another process is at the rest, or was killed over it


def _on_record(
    left: dict[Place, Wanted], budget: int, ledger: Ledger
) -> Iterator[tuple[Answer, bool]]:
    """What the ledger has of `left`, which it is taken out of."""
    for place, want in list(left.items()):
        answer = ledger.find(want.key, budget)
        if answer is not None:
            del left[place]
            yield answer, False


Ask = Callable[[dict[Place, Wanted], int, Ledger], Generator[tuple[Place, Answer], None, None]]


def _ask_server(teacher: ServerTeacher) -> Ask:
    def ask(
        left: dict[Place, Wanted], seed: int, ledger: Ledger
    ) -> Generator[tuple[Place, Answer], None, None]:
        num_samples = 1 + max(sample for _, sample in left)
        sampler = RemoteSampler(dataclasses.replace(teacher.server, num_samples=num_samples))
        todo, kept = dict(left), {}
        problems = list({want.problem.id: want.problem for want in todo.values()}.values())

        def through(id: str, sample: int, go: Callable[[], Outcome]) -> Outcome:
            want = todo[id, sample]
            with ledger.claimed(want.key) as mine:
                if not mine:
                    return None
                ledger.refresh()  # another process may have had it a moment ago
                if ledger.find(want.key, teacher.budget) is not None:
                    return None
                outcome = go()
                answer = _from_server(teacher, want, outcome)
                if answer is not None:
                    ledger.append(answer)
                    kept[id, sample] = answer
                return outcome

        every = {(p.id, sample) for p in problems for sample in range(num_samples)}
        have = every - set(todo)
        try:
            stream = sampler.stream(problems, jax.random.key(seed), have=have, through=through)
            with contextlib.closing(stream):
                for rollout in stream:
                    yield (rollout.id, rollout.sample), kept.pop((rollout.id, rollout.sample))
        except RemoteError as error:
            # Paid for and on record: no completion, and no reason to stop.
            yield from kept.items()
            open_failures = [f for f in error.failures if f.cause != "unusable"]
            if open_failures:
                raise RemoteError(open_failures, error.unasked) from None

    return ask


def _from_server(teacher: ServerTeacher, want: Wanted, outcome: Outcome) -> Answer | None:
    """The answer that is written down; None where nothing was paid for."""
    told: dict[str, Any] = {"text": "", "thought": None, "finish_reason": "unusable"}
    tokens: dict[str, Any] = {"prompt_tokens": None, "completion_tokens": None}
    if isinstance(outcome, RemoteRollout):
        told = {name: getattr(outcome, name) for name in told}
        tokens = {name: getattr(outcome, name) for name in tokens}
    elif isinstance(outcome, Failure) and outcome.cause == "unusable":
        told["text"] = outcome.text or ""
    else:
        return None
    return Answer(
        key=want.key,
        request=want.request,
        max_new_tokens=teacher.budget,
        num_tries=outcome.num_tries,
        where=teacher.server.base_url,
        **told,
        **tokens,
    )


def _ask_local(teacher: LocalTeacher) -> Ask:
    # One host curates, whatever others there are.
    policy = load_to_sample(
        teacher.model, mesh=teacher.mesh, dtype=teacher.dtype, devices=jax.local_devices()
    )

    def ask(
        left: dict[Place, Wanted], seed: int, ledger: Ledger
    ) -> Generator[tuple[Place, Answer], None, None]:
        todo = dict(left)
        num_samples = 1 + max(sample for _, sample in todo)
        rows = max(teacher.sampling.max_rows, num_samples)
        cfg = dataclasses.replace(teacher.sampling, num_samples=num_samples, max_rows=rows)
        sampler = LocalSampler(Engine(policy, cfg))
        problems = list({want.problem.id: want.problem for want in todo.values()}.values())
        for start in range(0, len(problems), teacher.chunk):
            chunk = problems[start : start + teacher.chunk]
            for rollout in sampler.sample(chunk, jax.random.key(seed)):
                want = todo.get((rollout.id, rollout.sample))
                if want is not None:  # a problem is sampled whole, even where some is on record
                    answer = _from_engine(teacher, want, rollout)
                    ledger.append(answer)
                    yield (rollout.id, rollout.sample), answer

    return ask


def _from_engine(teacher: LocalTeacher, want: Wanted, rollout: Rollout) -> Answer:
    finish = rollout.finish_reason
    return Answer(
        key=want.key,
        request=want.request,
        max_new_tokens=teacher.budget,
        finish_reason="unusable" if finish == "non_finite" else finish,
        text=rollout.text or "",
        thought=None,
        prompt_tokens=len(rollout.prompt_ids),
        completion_tokens=rollout.num_tokens,
        where=teacher.model,
    )


class Unanswered(ValueError):
    """Answers are missing that asking again may bring; all others are in the ledger.

    A ValueError, since what to do about it is the user's to decide, like a mistake in the config.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskedTeachers:
    """A long and a short teacher that are asked on the same problems; either may be on record.

    The long teacher is asked once for each problem, the short one `CurateRun.num_candidates` times.
    """

    problems: JsonlProblems | ArithmeticProblems | RecordedTraces | PublishedTraces
    long: AskedTeacher | RecordedTraces | PublishedTraces  # of a record, its long teacher
    short: AskedTeacher | RecordedTraces | PublishedTraces  # of a record, its short teachers
    seed: int = 0
    ledger: str | None = None  # a folder that several runs may share; None: `ledger` in the workdir

    def __post_init__(self):
        for kind in ("long", "short"):
            teacher = getattr(self, kind)
            if isinstance(teacher, PublishedTraces) and teacher != self.problems:
                raise ValueError(
                    f"AskedTeachers.{kind} is a PublishedTraces, whose questions have ids of their"
                    " own. Give the same one as problems."
                )

    def load(self) -> list[Problem]:
        return self.problems.load()

    def left_out(self) -> LeftOut:
        parts = (self.problems, self.long, self.short)
        records = [part for part in parts if isinstance(part, RecordedTraces | PublishedTraces)]
        of_files = [record.left_out() for record in dict.fromkeys(records)]
        faults = tuple(fault for one in of_files for fault in one.faults)
        counts = {what: number for one in of_files for what, number in one.counts.items()}
        return LeftOut(faults=faults, counts=counts)

    def ask(
        self,
        problems: Sequence[Problem],
        num_candidates: int,
        workdir: pathlib.Path,
        judge: Judge,
    ) -> "Answered":
        """All traces of both teachers; `Unanswered` where some are missing.

        Args:
          judge: for the count of accepted answers on the live line; called in one other thread.
        """
        folder = workdir / "ledger" if self.ledger is None else pathlib.Path(self.ledger)
        known, bills, troubles = list(problems), [], []
        traces: dict[str, dict[str, list[Trace]]] = {"long": {}, "short": {}}
        with Ledger(folder) as ledger:
            for kind, teacher, number in (
                ("long", self.long, 1),
                ("short", self.short, num_candidates),
            ):
                if isinstance(teacher, RecordedTraces | PublishedTraces):
                    traces[kind] = _recorded(teacher, kind, known, number)
                    continue
                found = answers(teacher, known, number, self.seed, ledger)
                bill = _bill(teacher, kind, len(known) * number)
                bills.append(bill)
                try:
                    traces[kind] = _traces(found, teacher.name, kind, known, bill, judge)
                except RemoteError as error:
                    bill.missing = len(error.failures) + len(error.unasked)
                    troubles.append(error)
                    if error.unasked:  # the server is down or refuses: the next teacher can wait
                        break
            if troubles:
                raise Unanswered(_told(bills, troubles, folder))
        return Answered(problems=tuple(known), traces=traces, bills=tuple(bills))


def _told(bills: Sequence[Bill], troubles: Sequence[RemoteError], folder: pathlib.Path) -> str:
    missing, total = sum(b.missing for b in bills), sum(b.total for b in bills)
    causes = " ".join(f"{trouble}." for trouble in troubles)
    return (
        f"{missing} of {total} answers are missing: {causes} What has come is kept in {folder}:"
        " the same command asks for the rest alone."
    )


def _bill(teacher: AskedTeacher, kind: str, total: int) -> Bill:
    prices = (0.0, 0.0)
    if isinstance(teacher, ServerTeacher):
        prices = (teacher.price_in, teacher.price_out)
    return Bill(f"{kind}: {teacher.name}", total, *prices)


def _recorded(
    source: RecordedTraces | PublishedTraces, kind: str, problems: Sequence[Problem], number: int
) -> dict[str, list[Trace]]:
    if kind == "short":
        found = {p.id: source.short_candidates(p, number) for p in problems}
    else:
        found = {p.id: [t] for p in problems if (t := source.long(p)) is not None}
    if not any(found.values()):
        raise ValueError(
            f"AskedTeachers.{kind}: {source.path} has no {kind} trace of any of the problems. Its"
            " `qid` must be the problems' `id`."
        )
    return found


def _traces(
    found: Generator[tuple[Answer, bool], None, None],
    teacher: str,
    kind: Any,
    problems: Sequence[Problem],
    bill: Bill,
    judge: Judge,
) -> dict[str, list[Trace]]:
    """Each problem's traces in the order of their samples, whatever the order they came in."""
    by_id = {problem.id: problem for problem in problems}
    by_place: dict[Place, Trace] = {}

    def count(problem: Problem, trace: Trace) -> None:
        bill.accepted += judge(problem, trace)

    with concurrent.futures.ThreadPoolExecutor(1) as beside, contextlib.closing(found):
        judged = []
        for answer in followed(found, bill):
            id, sample = answer.request["id"], answer.request["sample"]
            trace = trace_of(answer, id, teacher, kind)
            if trace is not None:
                by_place[id, sample] = trace
                judged.append(beside.submit(count, by_id[id], trace))
        for one in judged:
            one.result()  # raises what the judge has raised
    traces: dict[str, list[Trace]] = {}
    for id, sample in sorted(by_place):
        traces.setdefault(id, []).append(by_place[id, sample])
    return traces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """What both teachers wrote; implements `Teachers`."""

    problems: tuple[Problem, ...]
    traces: dict[str, dict[str, list[Trace]]]  # kind → problem id → traces
    bills: tuple[Bill, ...]

    def load(self) -> list[Problem]:
        return list(self.problems)

    def left_out(self) -> LeftOut:
        return LeftOut()

    def long(self, problem: Problem) -> Trace | None:
        return next(iter(self.traces["long"].get(problem.id, [])), None)

    def short_candidates(self, problem: Problem, k: int) -> list[Trace]:
        return self.traces["short"].get(problem.id, [])[:k]
