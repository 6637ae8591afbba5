"""A process that asks a bad server, killed at random instants and started again, in the end twice.

python -m tests.faults.teacher_kills [--kills 20] [--problems 100] [--samples 4] [--seed 0]

A script. The server on loopback fails half of the requests, in every way that it knows, and keeps
a log. The killed process is a real one, and asks through the ledger. One JSON line for each kill,
and one in the end: what was delivered and on record and asked for all the same (must be 0), what
was lost of the record (must be 0), and what was at work at a kill, had been delivered, and was
asked for again.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from l2s_jax.curation.asking import answers
from l2s_jax.curation.ledger import ANSWERS, Ledger, read_answers
from l2s_jax.curation.teachers import ServerTeacher
from l2s_jax.sampling.endpoint import RemoteConfig
from l2s_jax.types import Problem
from tests.conftest import REPOSITORY
from tests.sampling.teacher_server import MODEL, Reply, Server, echo, misbehaving, serving

CONCURRENCY = 8
LONGEST = 30  # requests of one process before it is killed
PATIENCE = 300  # seconds for anything

Place = tuple[str, int]  # question, seed


def ask(url: str, folder: str, number: int, samples: int) -> None:
    """What the process does that is killed."""
    server = RemoteConfig(
        base_url=url,
        model=MODEL,
        api_key_env=None,
        concurrency=CONCURRENCY,
        backoff_seconds=0.002,
        max_retries=60,
    )
    teacher = ServerTeacher(server=server, instruction=None)
    problems = [Problem(id=f"p{n}", question=f"q{n}", answer="0") for n in range(number)]
    with Ledger(folder) as ledger:
        assert sum(1 for _ in answers(teacher, problems, samples, 0, ledger)) == number * samples


class Log:
    """What the server has delivered whole and good, and to which process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.delivered: list[Place] = []
        self._rule = misbehaving(echo)

    def __call__(self, body: dict[str, Any], before: int) -> Reply:
        reply = self._rule(body, before)
        good = echo(body, before)
        if (reply.body, reply.cut) == (good.body, 1.0):
            with self._lock:
                self.delivered.append(place(body))
        return dataclasses.replace(reply, delay=0.003)


def place(body: dict[str, Any]) -> Place:
    return body["messages"][0]["content"], body["seed"]


def recorded(folder: pathlib.Path) -> set[Place]:
    if not (folder / ANSWERS).exists():
        return set()
    return {(one.request["question"], one.request["seed"]) for one in read_answers(folder)}


def start(server: Server, folder: pathlib.Path, run: int, number: int, samples: int) -> Any:
    call = ["--ask", server.url, str(folder), str(number), str(samples)]
    env = {"PYTHONPATH": str(REPOSITORY), "OPENAI_CUSTOM_HEADERS": f"X-Run: {run}"}
    env |= {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.faults.teacher_kills", *call]
    return subprocess.Popen(command, env=os.environ | env, cwd=REPOSITORY)


def asked_by(server: Server, run: int) -> list[Place]:
    pairs = zip(list(server.bodies), list(server.headers), strict=False)
    return [place(body) for body, headers in pairs if headers["x-run"] == str(run)]


def kill_and_go_on(
    folder: pathlib.Path, num_kills: int, number: int, samples: int, seed: int
) -> dict[str, Any]:
    """The counts; raises where a promise was broken."""
    chance, log = random.Random(seed), Log()
    records = [recorded(folder)]
    with serving(log) as server:
        for run in range(num_kills):
            child = start(server, folder, run, number, samples)
            _wait(child, server, run, chance.randint(1, LONGEST))
            time.sleep(chance.uniform(0.0, 0.02))
            assert child.poll() is None, "it was done before it was killed: give it more to ask"
            child.kill()
            child.wait()
            records.append(recorded(folder))
            told = {"kill": run, "asked": len(asked_by(server, run)), "recorded": len(records[-1])}
            print(json.dumps(told), flush=True)
        last = [num_kills, num_kills + 1]  # two at once do the rest, and share it
        pair = [start(server, folder, run, number, samples) for run in last]
        assert [child.wait(PATIENCE) for child in pair] == [0, 0]
    counts = _counts(server, log, folder, records)
    first, second = (set(asked_by(server, run)) for run in last)
    counts |= {"asked_by_both_of_two": len(first & second), "by_one": [len(first), len(second)]}
    assert counts["asked_by_both_of_two"] == 0
    counts |= {"kills": num_kills, "wanted": number * samples, "requests": len(server.bodies)}
    assert counts["recorded_and_asked_again"] == counts["lost"] == counts["recorded_twice"] == 0
    assert counts["recorded"] == number * samples
    assert counts["at_work_and_asked_again"] <= num_kills * CONCURRENCY
    return counts


def _wait(child: Any, server: Server, run: int, num_requests: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(asked_by(server, run)) < num_requests:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)


def _counts(
    server: Server, log: Log, folder: pathlib.Path, records: list[set[Place]]
) -> dict[str, Any]:
    """Args: records: what was on record before each process began, in their order."""
    final = list(read_answers(folder))
    for one in final:
        assert one.text == f"{one.request['question']} s{one.request['seed']}"
    places = collections.Counter(log.delivered)
    known = recorded(folder)
    return {
        "recorded": len(known),
        "recorded_twice": len(final) - len(known),
        "lost": sum(len(a - b) for a, b in itertools.pairwise([*records, known])),
        "recorded_and_asked_again": sum(
            one in before for run, before in enumerate(records) for one in asked_by(server, run)
        ),
        "at_work_and_asked_again": sum(places.values()) - len(places),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ask", nargs=4, help="what the killed process is started with")
    args = parser.parse_args()
    if args.ask:
        url, folder, number, samples = args.ask
        ask(url, folder, int(number), int(samples))
        return
    with tempfile.TemporaryDirectory() as folder:
        given = (args.kills, args.problems, args.samples, args.seed)
        print(json.dumps(kill_and_go_on(pathlib.Path(folder), *given)))


if __name__ == "__main__":
    main()
