"""Tensors in files to arrays on the host: reading, checking, changing type and transposing.

Lives here: all that touches values, a block of rows at a time, so that a block stays in the
processor's cache on its way. Not here: which tensors and which parts of them
(`model/hf/read.py`), what the headers say (`model/hf/files.py`).

Files are read and not mapped: mapped pages count as this process's memory. A host reads the rows
that its devices hold; columns come with their rows, as whole pages come from a disk anyway.
"""

import dataclasses
import os
import threading
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from l2s_jax.model.hf.files import DISK_DTYPES, Found

BLOCK_BYTES = 1 << 20  # about what a core's own cache holds
TASK_BLOCKS = 16  # per task of a thread, which makes its block's memory once
TILE = 64  # rows transposed at once, at least: two cache lines of 16-bit values
TILE_VALUES = 1 << 16  # more rows where they are short, as each call costs a microsecond
ALIGNMENT = 64  # JAX takes an aligned array on a CPU as it is, and copies another
# A value with all of these bits set is infinite or no number.
EXPONENT = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}
BITS = {2: np.uint16, 4: np.uint32}


@dataclasses.dataclass(frozen=True)
class Target:
    """A part of a tensor, and where it goes.

    Arrays here are [rows, columns] as theirs, whatever ours is; a vector is one row.
    """

    array: np.ndarray  # may be a transposed view
    rows: slice
    columns: slice

    def place_of(self, row: int, block: np.ndarray) -> np.ndarray | None:
        """Where a block (from `row` on) lies here as it is in the file; None if it does not."""
        first = row - self.rows.start
        place = self.array[max(first, 0) : first + len(block)]
        same = first >= 0 and place.shape == block.shape and place.dtype == block.dtype
        return place if same and place.flags.c_contiguous else None


def aligned_empty(shape: tuple[int, ...], dtype: jnp.dtype) -> np.ndarray:
    """An array that JAX takes without a copy on a CPU."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size].view(dtype).reshape(shape)


def matrix_shape(found: Found) -> tuple[int, int]:
    """A tensor's rows and columns."""
    *rows, columns = found.shape
    return int(np.prod(rows, dtype=int)), columns


def row_tasks(found: Found, targets: list[Target]) -> Iterator[range]:
    """The rows that `targets` need, in parts for the threads."""
    first = min(target.rows.start for target in targets)
    last = max(target.rows.stop for target in targets)
    step = TASK_BLOCKS * rows_per_block(found)
    for row in range(first, last, step):
        yield range(row, min(row + step, last))


def rows_per_block(found: Found) -> int:
    row_bytes = matrix_shape(found)[1] * jnp.dtype(DISK_DTYPES[found.dtype]).itemsize
    return max(TILE, BLOCK_BYTES // row_bytes // TILE * TILE)


class Scratch(threading.local):
    """A block's memory, once per thread: fresh memory costs more than what is done with it."""

    def __init__(self):
        self._memory = aligned_empty((2, BLOCK_BYTES), jnp.dtype(np.uint8))

    def arrays(self, shape: tuple[int, int], dtype: jnp.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Two arrays whose values are of earlier blocks: one of values, one of their bits."""
        size = shape[0] * shape[1] * dtype.itemsize
        if size > self._memory.shape[1]:
            self._memory = aligned_empty((2, size), jnp.dtype(np.uint8))
        block, spare = (one[:size].view(dtype).reshape(shape) for one in self._memory)
        return block, spare.view(BITS[dtype.itemsize])


def fill(
    file: int, found: Found, targets: list[Target], rows: range, scratch: Scratch, *, finite: bool
) -> str:
    """Copies some rows of a tensor to its targets; says what is wrong with them, or "".

    Args:
      file: descriptor of the open file.
      finite: whether values that are not finite are wrong.
    """
    dtype, columns = jnp.dtype(DISK_DTYPES[found.dtype]), matrix_shape(found)[1]
    step = rows_per_block(found)
    for row in range(rows.start, rows.stop, step):
        num = min(step, rows.stop - row)
        block, spare = scratch.arrays((num, columns), dtype)
        direct = [place for t in targets if (place := t.place_of(row, block)) is not None]
        block = direct[0] if direct else block
        read_exactly(file, block, found, found.start + row * columns * dtype.itemsize)
        if finite and not all_finite(block, spare):
            return "holds values that are not finite (NaN or infinity)"
        for target in targets:
            if wrong := put(block, row, target):
                return wrong
    return ""


def put(block: np.ndarray, row: int, target: Target) -> str:
    """Copies what of a block (from `row` on) belongs to a target, in the target's type."""
    first = max(row, target.rows.start)
    last = min(row + len(block), target.rows.stop)
    if first >= last:
        return ""
    part = block[first - row : last - row, target.columns]
    to = target.array[first - target.rows.start : last - target.rows.start]
    if part.dtype != to.dtype:
        with np.errstate(over="ignore", invalid="ignore"):
            part = part.astype(to.dtype)
        is_smaller = jnp.finfo(to.dtype).max < jnp.finfo(block.dtype).max
        # A block that had them may keep them; one that had none must not gain any.
        if is_smaller and not all_finite(part) and all_finite(block):
            return f"holds values that {to.dtype} cannot hold"
    if np.may_share_memory(part, to):
        return ""  # it was read there
    bits = BITS[to.dtype.itemsize]  # numpy copies these faster than ml_dtypes' types
    part, to = part.view(bits), to.view(bits)
    step = max(TILE, TILE_VALUES // part.shape[1] // TILE * TILE)
    for tile in range(0, len(part), step):
        to[tile : tile + step] = part[tile : tile + step]
    return ""


def all_finite(block: np.ndarray, spare: np.ndarray | None = None) -> bool:
    """Whether no value is NaN or infinite; by its bits, ten times as fast as by its values."""
    mask = EXPONENT[block.dtype.name]
    exponents = np.bitwise_and(block.view(BITS[block.dtype.itemsize]), mask, out=spare)
    return bool(exponents.max() < mask)


def same_values(one: tuple[int, Found], other: tuple[int, Found]) -> bool:
    """Whether two tensors, each given with its open file, hold the same values."""
    if one[1].shape != other[1].shape:
        return False
    step = min(rows_per_block(here) for _, here in (one, other))
    num_rows, columns = matrix_shape(one[1])
    for row in range(0, num_rows, step):
        blocks = []
        for file, here in (one, other):
            block = np.empty(
                (min(step, num_rows - row), columns), jnp.dtype(DISK_DTYPES[here.dtype])
            )
            read_exactly(file, block, here, here.start + row * columns * block.itemsize)
            blocks.append(block.astype(np.float32).view(np.uint32))
        if not np.array_equal(*blocks):
            return False
    return True


def read_exactly(file: int, into: np.ndarray, found: Found, offset: int) -> None:
    """Fills an array with the file's bytes from `offset` on."""
    view = into.reshape(-1).view(np.uint8).data
    while view:
        num = os.preadv(file, [view], offset)
        if num == 0:
            raise ValueError(f"{found.file} was cut off while it was read; download it again.")
        view, offset = view[num:], offset + num
