"""A run's state on disk, through Orbax.

Lives here: saving, finding the newest whole step, restoring onto any mesh, deleting old steps. Not
here: the digests (`training/digests.py` of arrays, `training/manifest.py` of files), which steps
stay (`training/retention.py`), parameters alone (`training/parameters.py`).

`checkpoints/<step>/` holds `params`, `rest` (all else that the state carries: whoever wants the
model alone reads only the former), `record` (the loop's own JSON), sometimes `behaviour`, and
`digests.json`. What a run does not train it does not write (`training/adapter.py`). A step is
written beside, sealed by its digests, and then renamed: one that is listed was whole when it was
written, and whether it still is, the digests tell at restore.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from l2s_jax.config import refuse_changes, to_json
from l2s_jax.training import manifest
from l2s_jax.training.digests import as_text, digests
from l2s_jax.training.hosts import is_first
from l2s_jax.training.retention import KeepConfig
from l2s_jax.training.state import TrainState

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
BEHAVIOUR = "behaviour"
UNSEALED, LEAVING = ".unsealed", ".leaving"  # endings of a step's name while it comes and goes

_digests = jax.jit(digests)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What a checkpoint gives back."""

    state: TrainState
    record: dict[str, Any]  # what the loop gave to `save`
    behaviour: Any = None  # likewise; None where it gave none


class Checkpoints:
    """The checkpoints of one workdir; close it before the program ends.

    Args:
      cfg: the run's config. It is saved with each step, and a step of another is not restored.
    """

    def __init__(self, workdir: pathlib.Path, *, cfg: Any = None, keep: KeepConfig | None = None):
        self._workdir, self._cfg, self._keep = workdir, cfg, keep or KeepConfig()
        self._folder = (workdir / FOLDER).resolve()
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._writing: concurrent.futures.Future[None] | None = None
        if is_first():
            # What a killed run left behind is removed here, and only here: this is the one writer.
            for ending in (UNSEALED, f"{UNSEALED}.orbax-checkpoint-tmp*", LEAVING):
                for path in self._folder.glob(f"*{ending}"):
                    shutil.rmtree(path)
        _meet("checkpoints are tidy")
        self._newest = self.latest()

    def latest(self) -> int | None:
        """The newest step on disk."""
        return max(step_folders(self._folder), default=None)

    def save(
        self,
        state: TrainState,
        record: Mapping[str, Any] | None = None,
        *,
        behaviour: Any = None,
    ) -> None:
        """Writes in the background; the previous write is waited for, and its errors raised.

        A step that is on disk already is left as it is.

        Args:
          record: what else the loop needs to go on, as JSON; "metrics" in it, by name, are what
            `KeepConfig.metric` is looked up in.
          behaviour: earlier values of the trained parameters, where something still works with
            them and would not find them again: a sampler between two refreshes.
        """
        self.wait()
        step = int(state.step)
        if step == self._newest:
            return
        record = dict(record or {})
        if self._newest is None:  # a wrong name shows at once; later a step may lack a right one
            self._keep.check(record.get("metrics", {}))
        parts = _parts(state) | ({} if behaviour is None else {BEHAVIOUR: behaviour})
        # Begun before the next step takes the state's buffers, fetched when all is written.
        words = zip(by_path(parts).items(), _digests(parts), strict=True)
        arrays = {path: (describe(leaf), word) for (path, leaf), word in words}
        said = {} if self._cfg is None else {"config": to_json(self._cfg)}
        saves: dict[str, Any] = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        saves["record"] = ocp.args.JsonSave(said | {"loop": record})
        beside = self._folder / f"{step}{UNSEALED}"
        self._orbax.save(beside, args=ocp.args.Composite(**saves))
        self._newest, self._writing = step, self._thread.submit(self._finish, beside, arrays)

    def _finish(self, beside: pathlib.Path, arrays: Mapping[str, tuple[Any, Any]]) -> None:
        """In the background: what Orbax has written gets its digests, and then its name."""
        self._orbax.wait_until_finished()
        if is_first():
            seal(beside, {path: as_text(leaf, word) for path, (leaf, word) in arrays.items()})
            self._prune()

    def wait(self) -> None:
        """Returns when the last save is on disk, and raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _prune(self) -> None:
        """Deletes what need not stay; a name that is gone is no step any more."""
        folders = step_folders(self._folder)
        stay = self._keep.stay({step: self._value(path) for step, path in folders.items()})
        for step in folders.keys() - stay:
            leaving = folders[step].rename(folders[step].with_name(f"{step}{LEAVING}"))
            shutil.rmtree(leaving)

    def _value(self, folder: pathlib.Path) -> float | None:
        if self._keep.metric is None:
            return None
        with contextlib.suppress(ValueError, KeyError, OSError):  # damaged: restoring will tell
            return float(read_record(folder)["loop"]["metrics"][self._keep.metric])
        return None

    def restore(self, like: TrainState) -> Restored | None:
        """The newest step that is still what was written; None where the workdir has no step.

        Damaged ones are told on stderr and moved out of the way, so that their steps can be saved
        again; where no other is left they stay, and a ValueError says so.

        Args:
          like: shapes, types and shardings, of arrays or in their place; `frozen` is handed back.
            Other arrays are given up where a step is found, as a device may not hold both.
        """
        self.wait()
        found: dict[int, list[str]] = {}
        for step, folder in sorted(step_folders(self._folder).items(), reverse=True):
            found[step] = self._file_faults(folder)
            if found[step]:
                continue
            restored, found[step] = self._read(step, folder, like)
            if not found[step]:
                self._move_away({s: wrong for s, wrong in found.items() if wrong}, step)
                self._newest = step
                return restored
        if found:
            raise ValueError(
                f"{self._folder}: no checkpoint is left that is what was written."
                f"{_listed(found)}\nBring them back from a copy, or start anew in another"
                " --workdir."
            )
        return None

    def _file_faults(self, folder: pathlib.Path) -> list[str]:
        """One process reads the files, and all go by what it found."""
        faults = manifest.faults(folder) if is_first() else []
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(len(faults)):
            return faults or ["its files are not what was written"]
        return faults

    def _read(
        self, step: int, folder: pathlib.Path, like: TrainState
    ) -> tuple[Restored, list[str]]:
        """What a step holds, and which of its arrays are not those that were saved."""
        record = read_record(folder)
        if self._cfg is not None and "config" in record:
            refuse_changes(record["config"], self._cfg, f"checkpoint {folder}")
        parts = _parts(like)
        if (folder / BEHAVIOUR).is_dir():
            parts[BEHAVIOUR] = like.params
        saved = manifest.read(folder)["arrays"]
        _check_arrays(folder, saved, by_path(parts))
        restores: dict[str, Any] = {
            name: ocp.args.StandardRestore(jax.tree.map(describe, part))
            for name, part in parts.items()
        }
        for leaf in jax.tree.leaves(parts):
            if isinstance(leaf, jax.Array):
                leaf.delete()
        read: Any = self._orbax.restore(folder, args=ocp.args.Composite(**restores))
        parts = {name: read[name] for name in parts}
        words = jax.device_get(_digests(parts))
        wrong = [
            f"array {path} is not what was saved"
            for (path, leaf), word in zip(by_path(parts).items(), words, strict=True)
            if as_text(leaf, word) != saved[path]
        ]
        state = dataclasses.replace(like, params=parts["params"], **parts["rest"])
        assert int(state.step) == step, f"{folder} holds step {int(state.step)}"
        found = Restored(state=state, record=record["loop"], behaviour=parts.get(BEHAVIOUR))
        return found, wrong

    def _move_away(self, found: Mapping[int, list[str]], instead: int) -> None:
        if not found or not is_first():
            return
        there = self._workdir / DAMAGED_FOLDER
        there.mkdir(exist_ok=True)
        for step in found:
            shutil.rmtree(there / str(step), ignore_errors=True)
            (self._folder / str(step)).rename(there / str(step))
        print(
            f"{self._folder}: damaged, and moved to {there}:{_listed(found)}\n"
            f"going on from step {instead}",
            file=sys.stderr,
        )

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def seal(beside: pathlib.Path, arrays: Mapping[str, str]) -> None:
    """A step that is written whole gets its digests, and last its name."""
    manifest.write(beside, arrays)
    beside.rename(beside.with_name(beside.name.removesuffix(UNSEALED)))


def step_folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Step → its folder, of every step that was written whole."""
    found = folder.iterdir() if folder.is_dir() else []
    return {int(path.name): path for path in found if path.name.isdigit() and path.is_dir()}


def read_record(folder: pathlib.Path) -> dict[str, Any]:
    """The JSON that a step's folder holds: the run's config, and the loop's own record."""
    path = folder / "record" / "metadata"
    if not path.exists():
        raise ValueError(
            f"{folder} holds a model and no interrupted run. Use another --workdir, and name this"
            " one as the run's model."
        )
    return json.loads(path.read_text())


def by_path(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their dotted paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def describe(leaf: Any) -> Any:
    """Shape, type and sharding of an array."""
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else ocp.utils.to_shape_dtype_struct(leaf)


def _parts(state: TrainState) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(state) if f.name not in ("params", "frozen")]
    return {"params": state.params, "rest": {name: getattr(state, name) for name in names}}


def _check_arrays(folder: pathlib.Path, saved: dict[str, str], wanted: dict[str, Any]) -> None:
    """Refuses a state of other shapes or types; all that differs is listed."""
    have = {path: text.rsplit(" ", 1)[0] for path, text in saved.items()}
    want = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in wanted.items()}
    if wrong := unlike(have, want):
        raise ValueError(
            f"{folder} holds the state of another run:{wrong}\nUse another --workdir, or undo"
            " the change of model, adapter or optimizer."
        )


def unlike(have: Mapping[str, Any], want: Mapping[str, Any]) -> str:
    """A line for each path at which a checkpoint holds something else than is asked for."""
    return "".join(
        f"\n  {path} is {have.get(path, 'missing')}, asked for: {want.get(path, 'nothing')}"
        for path in sorted({**have, **want})
        if have.get(path) != want.get(path)
    )


def _listed(found: Mapping[int, list[str]]) -> str:
    def line(wrong: list[str]) -> str:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return "; ".join(wrong[:3]) + more

    return "".join(f"\n  step {step}: {line(wrong)}" for step, wrong in found.items())


def _meet(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
