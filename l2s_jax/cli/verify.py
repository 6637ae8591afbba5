"""`l2s verify`: a file of pairs to a file of verdicts.

Lives here: reading pairs, writing verdicts, the progress bar. Not here: how a pair is decided
(`verify/math.py`).
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

from tqdm import tqdm

from l2s_jax.cli.output import json_lines
from l2s_jax.data.sources import read_jsonl
from l2s_jax.verify.math import Verifier

CHUNK = 64  # pairs handed over at once; bounds how stale the progress bar may be


def verify(pairs: pathlib.Path, out: pathlib.Path | None) -> None:
    """Writes one verdict per line of `pairs` to `out`, in order."""
    wanted = list(_read_pairs(pairs))  # whole, so that line 9,000's mistake costs no hour of work
    workers = Verifier(num_workers=os.cpu_count() or 1)
    with json_lines(out) as write, workers as verifier, tqdm(total=len(wanted), unit="pair") as bar:
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            for verdict in verifier.equivalent_many(chunk):
                write(dataclasses.asdict(verdict))
            bar.update(len(chunk))


def _read_pairs(path: pathlib.Path) -> Iterator[tuple[str, str | None]]:
    for number, record in read_jsonl(path):
        for field, kinds in (("gold", str), ("prediction", str | None)):
            if field not in record:
                raise ValueError(f"{path}:{number}: no {field!r}. A line is {{gold, prediction}}.")
            if not isinstance(record[field], kinds):
                raise ValueError(
                    f"{path}:{number}: {field}={record[field]!r} is no text. Put it in quotes."
                )
        yield record["gold"], record["prediction"]
