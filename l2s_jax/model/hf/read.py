"""Weights of a Hugging Face folder into our parameters, laid over a mesh.

Lives here: `load_hf`, and which part of which tensor goes to which device. Not here: the name
table (`model/hf/names.py`), what is wrong with files (`model/hf/files.py`), the copying of values
(`model/hf/blocks.py`).

Each device's part of a leaf is filled from the file as it will lie on the device, and no other
copy is made: on a CPU the device takes over the host's memory, elsewhere the host holds its
devices' parts of two leaves at most.
"""

import concurrent.futures
import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, abstract_params
from l2s_jax.model.hf.blocks import Scratch, Target, aligned_empty, fill, row_tasks, same_values
from l2s_jax.model.hf.files import (
    DISK_DTYPES,
    DiskDTypeName,
    Found,
    check_sizes,
    complaints,
    find_tensors,
    read_hf_config,
)
from l2s_jax.model.hf.names import EMBEDDING, HEAD, Tensor, expected_tensors, flatten, unflatten
from l2s_jax.sharding import shardings

Part = tuple  # of a leaf: (start, stop) of every axis


def load_hf(
    folder: str | pathlib.Path,
    *,
    dtype: DiskDTypeName | None = "float32",
    mesh: Mesh | None = None,
    allow_non_finite: bool = False,
) -> tuple[ModelConfig, Params]:
    """The decoder and the weights of a Hugging Face folder.

    Args:
      dtype: of the parameters in memory; None keeps each as it is on disk (where the layers of a
        leaf differ, the type that holds them all).
      mesh: where the parameters go, cut by `sharding.RULES`; None is the default device.
      allow_non_finite: take NaN and infinities, which are refused otherwise.
    """
    cfg = read_hf_config(folder)
    folder = pathlib.Path(folder)
    found = find_tensors(folder)
    check_sizes(folder, cfg, found)
    boxed = abstract_params(cfg)
    expected = expected_tensors(cfg, boxed)
    wrong = complaints(expected, found, tied=cfg.tied)
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"{folder}: weights do not fit config.json:\n  {listed}")
    shapes = {path: leaf.shape for path, leaf in flatten(nn.unbox(boxed)).items()}
    places = flatten(shardings(boxed, mesh)) if mesh is not None else {}
    members: dict[str, list[Tensor]] = {}
    for tensor in expected:
        members.setdefault(tensor.leaf, []).append(tensor)
    leaves: dict[str, jax.Array] = {}
    with Reader(found, finite=not allow_non_finite) as reader:
        if cfg.tied and HEAD in found:
            check_tied(reader)
        for path, tensors in members.items():
            kept = jnp.dtype(dtype) if dtype is not None else widest(found, tensors)
            before = list(leaves.values())[-1:]
            leaves[path] = place_leaf(reader, tensors, shapes[path], kept, places.get(path))
            jax.block_until_ready(before)  # its memory on the host is free for the next
    reader.refuse_wrong()
    return cfg, unflatten(leaves)


class Reader:
    """Open files, and the threads that copy from them; remembers which tensors are wrong."""

    def __init__(self, found: Mapping[str, Found], *, finite: bool):
        self.found = found
        self._finite = finite
        self._scratch = Scratch()
        self._wrong: dict[str, str] = {}

    def __enter__(self) -> "Reader":
        with contextlib.ExitStack() as stack:
            files = {here.file for here in self.found.values()}
            self._files = {f: stack.enter_context(f.open("rb", buffering=0)) for f in files}
            # Reading and copying leave Python's lock to the other threads.
            workers = min(16, os.cpu_count() or 1)
            pool = concurrent.futures.ThreadPoolExecutor(workers)
            self._pool = stack.enter_context(pool)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def copy(self, wanted: Mapping[str, list[Target]]) -> None:
        """Fills the targets of each named tensor."""
        tasks = []
        for name, targets in wanted.items():
            here = self.found[name]
            file = self._files[here.file].fileno()
            for rows in row_tasks(here, targets):
                task = self._pool.submit(
                    fill, file, here, targets, rows, self._scratch, finite=self._finite
                )
                tasks.append((name, task))
        for name, task in tasks:
            wrong = task.result()
            if wrong:
                self._wrong[name] = f"{self.found[name].file}: tensor {name!r} {wrong}"

    def same_values(self, one: str, other: str) -> bool:
        """Whether two tensors are equal."""
        both = [self.found[name] for name in (one, other)]
        return same_values(*((self._files[here.file].fileno(), here) for here in both))

    def refuse_wrong(self) -> None:
        """Raises where some tensor holds what it must not; all are named."""
        if self._wrong:
            listed = "\n  ".join(self._wrong.values())
            raise ValueError(
                f"the checkpoint is broken, or asked for in a type that is too small. Take"
                " another, or allow values that are not finite (allow_non_finite=True, l2s import"
                f" --allow-non-finite):\n  {listed}"
            )


def widest(found: Mapping[str, Found], tensors: list[Tensor]) -> jnp.dtype:
    """The type that holds every value of these tensors."""
    names = {DISK_DTYPES[found[tensor.name].dtype] for tensor in tensors}
    return jnp.dtype(jnp.result_type(*map(jnp.dtype, sorted(names))))


def check_tied(reader: Reader) -> None:
    """Refuses a second head that a tied config would silently drop."""
    head = reader.found[HEAD]
    if not reader.same_values(HEAD, EMBEDDING):
        raise ValueError(
            f"{head.file}: config.json has tie_word_embeddings=true, but {HEAD} differs from"
            f" {EMBEDDING}. Set it to false if the model has a head of its own."
        )


def place_leaf(
    reader: Reader,
    tensors: list[Tensor],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    sharding: Sharding | None,
) -> jax.Array:
    """A leaf on its devices, each part filled from its tensors."""
    if sharding is None:
        owners = {None: Part((0, size) for size in shape)}
    else:
        owners = {
            device: Part(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
            for device, index in sharding.devices_indices_map(shape).items()
            if device in sharding.addressable_devices
        }
    # Devices that hold the same part are filled from the same memory.
    buffers = {
        part: aligned_empty(tuple(stop - start for start, stop in part), dtype)
        for part in dict.fromkeys(owners.values())
    }
    wanted = {
        tensor.name: [
            target(tensor, part, buffer)
            for part, buffer in buffers.items()
            if tensor.layer is None or tensor.layer in range(*part[0])
        ]
        for tensor in tensors
    }
    reader.copy(wanted)
    arrays = [jax.device_put(buffers[part], device) for device, part in owners.items()]
    if sharding is None:
        return arrays[0]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def target(tensor: Tensor, part: Part, buffer: np.ndarray) -> Target:
    """Where in the buffer of a leaf's part the values of a tensor go."""
    axes = list(part)
    if tensor.layer is not None:
        buffer = buffer[tensor.layer - axes.pop(0)[0]]
    if tensor.transposed:
        buffer, axes = buffer.T, axes[::-1]
    if len(axes) == 1:
        buffer, axes = buffer[None], [(0, 1), *axes]
    rows, columns = (slice(*axis) for axis in axes)
    return Target(buffer, rows, columns)
