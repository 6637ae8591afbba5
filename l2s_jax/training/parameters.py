"""A model's parameters alone, in a workdir and out of it.

Lives here: what the newest step holds, reading it onto any mesh in any type, writing a checkpoint
that is nothing but parameters. Not here: a run's whole state (`training/checkpoint.py`), one leaf
at a time on the host (`training/leaves.py`).

Who reads looks and touches nothing: the run that owns the workdir may be writing its next step. A
damaged step is an error here; a run that goes on falls back to the one before it.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from l2s_jax.training import manifest
from l2s_jax.training.checkpoint import (
    FOLDER,
    UNSEALED,
    by_path,
    describe,
    seal,
    step_folders,
    unlike,
)

ITEM = "params"


def params_folder(workdir: pathlib.Path) -> pathlib.Path:
    """The folder in which Orbax keeps the parameters of the newest finished step."""
    folder = (workdir / FOLDER).resolve()
    steps = step_folders(folder)
    if not steps:
        raise FileNotFoundError(
            f"{folder} holds no finished checkpoint. Let the run reach its first save, or give"
            " another workdir."
        )
    return steps[max(steps)] / ITEM


def refuse_damaged(folder: pathlib.Path) -> None:
    """Refuses parameters whose files are not those that were written."""
    faults = manifest.faults(folder.parent, inside=f"{ITEM}/")
    if faults:
        raise ValueError(
            f"checkpoint {folder.parent} is damaged: {'; '.join(faults[:3])}. Bring it back from a"
            " copy, or move it away to read the step before it."
        )


def params_words(workdir: pathlib.Path) -> dict[str, str]:
    """What the newest step says of every parameter's values, by its dotted path."""
    said = manifest.read(params_folder(workdir).parent)["arrays"]
    return {path: word for path, word in said.items() if path.startswith(f"{ITEM}.")}


def saved_params(workdir: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every parameter of the newest step, by its dotted path."""
    folder: Any = params_folder(workdir)  # Orbax has its own class of paths
    found: Any = ocp.PyTreeCheckpointHandler().metadata(folder)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in by_path(found.tree).items()
    }


def restore_params(workdir: pathlib.Path, like: Any) -> Any:
    """The parameters alone, of the newest step; `like` gives shapes, types and shardings.

    One leaf at a time: Orbax reads all at once into memory of its own, and changes types there.
    """
    folder: Any = params_folder(workdir)
    refuse_damaged(folder)
    check_shapes(folder, saved_params(workdir), by_path(like))
    handler = ocp.PyTreeCheckpointHandler()

    def restore(path: Any, leaf: Any) -> Any:
        item, how = leaf, ocp.checkpoint_utils.construct_restore_args(leaf)
        for key in reversed(path):
            item, how = {key.key: item}, {key.key: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        [found] = jax.tree.leaves(handler.restore(folder, args=args))
        return jax.block_until_ready(found)

    return jax.tree_util.tree_map_with_path(restore, jax.tree.map(describe, like))


def check_shapes(folder: pathlib.Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a checkpoint of other parameters; all that differs is listed."""
    have, want = ({path: leaf.shape for path, leaf in d.items()} for d in (saved, wanted))
    if wrong := unlike(have, want):
        raise ValueError(
            f"{folder} holds the parameters of another model than model.json describes:{wrong}"
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
    folder = (workdir / FOLDER).resolve()
    if step_folders(folder):
        raise FileExistsError(f"{workdir} holds a checkpoint already. Give another folder.")

    composite = ocp.CompositeCheckpointHandler(params=handler)
    beside = folder / f"0{UNSEALED}"
    with ocp.Checkpointer(composite) as orbax:
        args = ocp.args.Composite(params=ocp.args.PyTreeSave(params))
        orbax.save(beside, args=args, force=True)  # over what a killed import left
    seal(beside, {})
