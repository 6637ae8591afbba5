"""The parameters of a checkpoint, one leaf at a time.

Lives here: what the newest step of a workdir holds, and reading one leaf of it as a numpy array,
whatever mesh wrote it. Not here: restoring all of it onto devices (`training/parameters.py`).

Orbax calls this a partial restore. While a leaf is read the host holds its bytes as they are on
disk and as an array, so twice the leaf at most.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from l2s_jax.model.hf.names import flatten
from l2s_jax.training.parameters import params_folder, refuse_damaged


class CheckpointLeaves:
    """The leaves of the newest step; looks and touches nothing."""

    def __init__(self, workdir: pathlib.Path):
        self._folder: Any = params_folder(workdir)  # Orbax has its own class of paths
        refuse_damaged(self._folder)
        self._orbax = ocp.PyTreeCheckpointHandler()
        found: Any = self._orbax.metadata(self._folder)
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in flatten(found.tree).items()
        }

    def fetch(self, path: str) -> np.ndarray:
        """The leaf at a dotted path, whole and on the host."""
        if path not in self.shapes:
            raise ValueError(
                f"{self._folder} holds no parameter {path!r}: model.json describes another model."
            )
        item: Any = 0
        how: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(path.split(".")):
            item, how = {key: item}, {key: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        return flatten(self._orbax.restore(self._folder, args=args))[path]
