"""`l2s verify`: a file of pairs to a file of verdicts.

Lives here: reading pairs, writing verdicts, the progress bar. Not here: how a pair is decided
(`verify/math.py`), JSON lines (`data/jsonl.py`).

A faulty line gets a verdict too, "bad-input" and not equivalent, so that verdicts stand beside
their lines; the faults are named at the end, and then the exit code is 2.
"""

import dataclasses
import os
import pathlib
from typing import Literal

from tqdm import tqdm

from l2s_jax.cli.output import json_lines
from l2s_jax.data.jsonl import Fault, Ids, refuse, scan_jsonl
from l2s_jax.types import Verdict
from l2s_jax.verify.math import Pair, Verifier
from l2s_jax.verify.policy import Policy

CHUNK = 256  # pairs handed over at once; bounds how stale the progress bar may be

BAD = Verdict(equivalent=False, reason="bad-input", seconds=0.0)


def verify(
    pairs: pathlib.Path, out: pathlib.Path | None, answers: Literal["strict", "lenient"] = "strict"
) -> None:
    """Writes one verdict per line of `pairs` to `out`, in order."""
    wanted, faults = _read_pairs(pairs)
    workers = Verifier(num_workers=os.cpu_count() or 1, policy=Policy(answers=answers))
    with json_lines(out) as write, workers as verifier, tqdm(total=len(wanted), unit="pair") as bar:
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            verdicts = iter(verifier.equivalent_many([pair for pair in chunk if pair is not None]))
            for pair in chunk:
                write(dataclasses.asdict(BAD if pair is None else next(verdicts)))
            bar.update(len(chunk))
    refuse(faults, f"their verdicts say {BAD.reason}; the others are decided.")


def _read_pairs(path: pathlib.Path) -> tuple[list[Pair | None], list[Fault]]:
    """(the pairs, None for a faulty line; the faults)."""
    pairs: list[Pair | None] = []
    faults, ids = [], Ids(path)
    for line, record in scan_jsonl(path):
        try:
            if isinstance(record, Fault):
                raise ValueError(record.message)
            if "id" in record:
                ids.claim(str(record["id"]), "id", line)
            pairs.append(_pair(record, f"{path}:{line}"))
        except ValueError as error:
            pairs.append(None)
            faults.append(Fault(str(error)))
    return pairs, faults


def _pair(record: dict, where: str) -> Pair:
    for field, kinds in (("gold", str), ("prediction", str | None)):
        if field not in record:
            raise ValueError(f"{where}: no {field!r}. A line is {{gold, prediction}}.")
        if not isinstance(record[field], kinds):
            raise ValueError(f"{where}: {field}={record[field]!r} is no text. Put it in quotes.")
    return record["gold"], record["prediction"]
