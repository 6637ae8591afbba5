"""Numbers of a run: what the log of a run writes where.

Lives here: the files of one JSON line a step, and `RunLog`, which feeds them, the other writers and
the progress bar. Not here: the writers for TensorBoard and W&B (`training/writers.py`), what is
measured (the losses return it), speed (`training/speed.py`).

`metrics.jsonl` holds what the run computed: killed and resumed it has the same bytes. What a clock
says can never be that, and lies in `speed.jsonl`.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm

from l2s_jax.data.store import replace_file
from l2s_jax.training.hosts import is_first
from l2s_jax.training.writers import TensorBoard, Wandb, WandbConfig, Writer
from l2s_jax.types import Metrics

FILE = "metrics.jsonl"
SPEED_FILE = "speed.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Who is told the numbers, beside the JSONL files that are always written."""

    tensorboard: bool = True  # event files in the workdir's `tensorboard`
    wandb: WandbConfig | None = None


class StepLines:
    """A file of JSON objects with a field `step`; a resume forgets what came after the checkpoint.

    Lines can stand in a web page as they are: nothing in them opens a tag. Of several hosts the
    first writes them; all have the same to say.
    """

    def __init__(self, path: pathlib.Path, *, resume_from: int):
        self._path, self._file = path, None
        if not is_first():
            return
        kept = self._lines_before(resume_from)
        replace_file(path, "".join(kept).encode())
        self._file = path.open("a")

    def _lines_before(self, step: int) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill may cut the last one
        return [line for line in whole if json.loads(line)["step"] <= step]

    def write(self, step: int, fields: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        text = json.dumps({"step": step} | dict(fields), allow_nan=False)
        for sign in "<>&":  # JSON reads them back as they were
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        self._file.write(text + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class MetricsFile:
    """`metrics.jsonl`: what each step computed, checked."""

    def __init__(self, workdir: pathlib.Path, *, resume_from: int):
        self._lines = StepLines(workdir / FILE, resume_from=resume_from)

    def write(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Writes the metrics of a step as plain numbers, and returns them.

        The first number that is not finite ends the run, unwritten: every later step would be
        lost anyway, and JSON has no such numbers. Those of a skipped step are left out and
        counted: it changed nothing, and `training/guard.py` says when there are too many of them.
        """
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        strange = {name: n for name, n in numbers.items() if not math.isfinite(n)}
        if strange and numbers.get("skipped"):
            numbers = {name: n for name, n in numbers.items() if name not in strange}
            numbers["not_finite"] = float(len(strange))
        elif strange:
            listed = ", ".join(f"{name}={number}" for name, number in strange.items())
            raise FloatingPointError(
                f"step {step}: not finite: {listed}. The last checkpoint is from before it; lower"
                " optim.peak_lr, or look at the batch of this step."
            )
        self._lines.write(step, numbers)
        return numbers

    def close(self) -> None:
        self._lines.close()


class RunLog:
    """All that a training loop says while it runs; use it as a context manager.

    Args:
      name: of the loop, for the bar.
      resume_from: steps that are done; lines after them are forgotten.
      config: of the run, as JSON, for W&B.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        name: str,
        num_steps: int,
        resume_from: int,
        cfg: LogConfig | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        cfg = cfg or LogConfig()
        self._writers: list[Writer] = []
        if cfg.tensorboard and is_first():
            self._writers.append(TensorBoard(workdir, resume_from=resume_from))
        if cfg.wandb is not None and is_first():
            self._writers.append(Wandb(cfg.wandb, workdir, config=config))
        self._metrics = MetricsFile(workdir, resume_from=resume_from)
        self._speed = StepLines(workdir / SPEED_FILE, resume_from=resume_from)
        self._bar = tqdm(
            total=num_steps,
            initial=resume_from,
            desc=name,
            unit="step",
            file=sys.stderr,
            leave=False,
            disable=not is_first(),
        )

    def write(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Writes the metrics of a step as plain numbers, as `MetricsFile` does; returns them."""
        numbers = self._metrics.write(step, metrics)
        self._tell(step, numbers)
        return numbers

    def speed(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes what clocks and counters of the machine said of a step."""
        self._speed.write(step, numbers)
        self._tell(step, {f"speed/{name}": number for name, number in numbers.items()})

    def _tell(self, step: int, numbers: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, numbers)

    def show(self, **words: str) -> None:
        """Shows a few words behind the bar, which itself has rate and time left."""
        self._bar.set_postfix(words)

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
        for file in (self._metrics, self._speed, *self._writers):
            file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
