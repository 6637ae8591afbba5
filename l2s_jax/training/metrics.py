"""Numbers of a run, one JSON line a step.

Lives here: the writer, and the check that stops a run on a number that is none. Not here: what is
measured (the losses return it).
"""

import json
import math
import pathlib
from typing import Any

import jax

from l2s_jax.types import Metrics

FILE = "metrics.jsonl"


class MetricsFile:
    """Appends to `metrics.jsonl`; on a resume, forgets what came after the checkpoint."""

    def __init__(self, workdir: pathlib.Path, *, resume_from: int):
        self._path = workdir / FILE
        kept = self._lines_before(resume_from)
        beside = self._path.with_suffix(".part")
        beside.write_text("".join(kept))
        beside.rename(self._path)
        self._file = self._path.open("a")

    def _lines_before(self, step: int) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill may cut the last one
        return [line for line in whole if json.loads(line)["step"] <= step]

    def write(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Writes the metrics of a step as plain numbers, and returns them.

        The first number that is not finite ends the run, unwritten: every later step would be
        lost anyway, and JSON has no such numbers.
        """
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        strange = {name: n for name, n in numbers.items() if not math.isfinite(n)}
        if strange:
            listed = ", ".join(f"{name}={number}" for name, number in strange.items())
            raise FloatingPointError(
                f"step {step}: not finite: {listed}. The last checkpoint is from before it; lower"
                " optim.peak_lr, or look at the batch of this step."
            )
        self._file.write(json.dumps({"step": step} | numbers) + "\n")
        self._file.flush()
        return numbers

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
