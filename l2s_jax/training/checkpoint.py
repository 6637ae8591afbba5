"""A run's state on disk, through Orbax.

Lives here: saving, the latest step, restoring onto any mesh. Not here: reading a finished model
for use (`training/policy.py`).

A checkpoint is params and opt_state, kept apart so that whoever wants the model alone reads only
that. What a run does not train it does not write (`training/adapter.py`). Orbax writes beside and
renames, so a step that is listed is whole.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from l2s_jax.training.state import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one workdir; close it before the program ends."""

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2):
        # What a killed write left behind is removed here, and only here: this is the one writer.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager((workdir / FOLDER).resolve(), options=options)

    def latest(self) -> int | None:
        """The newest whole step."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes in the background; the previous write is waited for."""
        parts = {"params": state.params, "opt_state": state.opt_state}
        saves = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        self._manager.save(int(state.step), args=ocp.args.Composite(**saves))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, laid out as `like` is."""
        parts = {"params": like.params, "opt_state": like.opt_state}
        restores = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, part))
            for name, part in parts.items()
        }
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**restores))
        except KeyError:
            raise ValueError(
                f"{self._manager.directory}/{step} holds a model without an optimizer's state: it"
                " is no interrupted run. Use another --workdir, and name this one as the run's"
                " model."
            ) from None
        place = like.step.sharding
        return dataclasses.replace(
            like,
            step=jax.device_put(jnp.int32(step), place),
            params=found["params"],
            opt_state=found["opt_state"],
        )

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def params_folder(workdir: pathlib.Path) -> pathlib.Path:
    """The folder in which Orbax keeps the parameters of the newest finished step.

    Looks and touches nothing: the run that owns the workdir may be writing its next step.
    """
    folder = (workdir / FOLDER).resolve()
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        raise FileNotFoundError(
            f"{folder} holds no finished checkpoint. Let the run reach its first save, or give"
            " another workdir."
        )
    return folder / str(max(steps)) / "params"


def saved_params(workdir: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every parameter of the newest step, by its dotted path."""
    folder: Any = params_folder(workdir)  # Orbax has its own class of paths
    found: Any = ocp.PyTreeCheckpointHandler().metadata(folder)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in by_path(found.tree).items()
    }


def by_path(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their dotted paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def restore_params(workdir: pathlib.Path, like: Any) -> Any:
    """The parameters alone, of the newest step; `like` gives shapes, types and shardings.

    One leaf at a time: Orbax reads all at once into memory of its own, and changes types there.
    """
    folder: Any = params_folder(workdir)
    check_shapes(folder, saved_params(workdir), by_path(like))
    handler = ocp.PyTreeCheckpointHandler()

    def restore(path: Any, leaf: Any) -> Any:
        item, how = leaf, ocp.checkpoint_utils.construct_restore_args(leaf)
        for key in reversed(path):
            item, how = {key.key: item}, {key.key: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        [found] = jax.tree.leaves(handler.restore(folder, args=args))
        return jax.block_until_ready(found)

    return jax.tree_util.tree_map_with_path(restore, jax.tree.map(_describe, like))


def _describe(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else ocp.utils.to_shape_dtype_struct(leaf)


def check_shapes(folder: pathlib.Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a checkpoint of other parameters; all that differs is listed."""
    have, want = ({path: leaf.shape for path, leaf in d.items()} for d in (saved, wanted))
    wrong = [
        f"{path} is {have.get(path, 'missing')}, asked for: {want.get(path, 'nothing')}"
        for path in sorted(have | want)
        if have.get(path) != want.get(path)
    ]
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(
            f"{folder} holds the parameters of another model than model.json describes:\n  {listed}"
        )


def save_params(workdir: pathlib.Path, params: Any) -> None:
    """A checkpoint that is nothing but parameters, as step 0.

    Little more than one leaf is copied at a time: without the limit, Orbax copies them all.
    """
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    limit: Any = 1.1 * largest / 1e9 + 1e-3  # Orbax waits for ever where a leaf just fits
    handler = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=limit, save_device_host_concurrent_gb=limit
    )
    folder, handlers = (workdir / FOLDER).resolve(), {"params": handler}
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
        if manager.latest_step() is not None:  # Orbax would keep the old one without a word
            raise FileExistsError(f"{workdir} holds a checkpoint already. Give another folder.")
        manager.save(0, args=ocp.args.Composite(params=ocp.args.PyTreeSave(params)))
        manager.wait_until_finished()
