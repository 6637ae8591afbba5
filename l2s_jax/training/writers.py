"""A run's numbers for programs that draw them: TensorBoard's event files, Weights & Biases.

Lives here: both writers. Not here: the JSONL files, which need neither (`training/metrics.py`).

Neither makes a file before the first number: a run that is finished and started again leaves
nothing. A resumed run tells the steps after its checkpoint again, which are the same numbers.
"""

import dataclasses
import importlib
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from l2s_jax.data.store import replace_file

TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb_id"


class Writer(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the workdir's folder `tensorboard`."""

    def __init__(self, workdir: pathlib.Path, *, resume_from: int):
        self._folder = workdir / TENSORBOARD_FOLDER
        self._resume_from = resume_from
        self._events: Any = None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._events is None:
            writer = importlib.import_module("tensorboardX").SummaryWriter
            # With a purge, TensorBoard forgets what an interrupted run wrote past the checkpoint.
            self._events = writer(str(self._folder), purge_step=self._resume_from + 1)
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """A run on Weights & Biases; takes the extra `wandb`."""

    project: str
    mode: Literal["online", "offline"] = "online"  # offline writes files that `wandb sync` sends

    def __post_init__(self):
        if not self.project:
            raise ValueError("WandbConfig.project is empty: name the project that runs go to.")


class Wandb:
    """One run on Weights & Biases for one workdir, however often that is resumed."""

    def __init__(
        self, cfg: WandbConfig, workdir: pathlib.Path, *, config: Mapping[str, Any] | None = None
    ):
        self._cfg, self._workdir, self._config = cfg, workdir, dict(config or {})
        self._run: Any = None
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError:
            raise ValueError(
                "log.wandb is set, but the package wandb is not installed: in this checkout"
                " pip install -e '.[wandb]', or leave log.wandb out."
            ) from None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = self._wandb.init(
                project=self._cfg.project,
                mode=self._cfg.mode,
                dir=str(self._workdir),
                id=self._run_id(),
                resume="allow",
                config=self._config,
                # The console is the progress bar's.
                settings=self._wandb.Settings(console="off", silent=True),
            )
        self._run.log(dict(numbers), step=step)

    def _run_id(self) -> str:
        path = self._workdir / WANDB_ID_FILE
        if not path.exists():
            replace_file(path, uuid.uuid4().hex.encode())
        return path.read_text()

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
