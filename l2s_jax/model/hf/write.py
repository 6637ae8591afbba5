"""Our parameters into the safetensors of a Hugging Face folder.

Lives here: which tensor lies where in which file, known before any value is, and the writing of
the values, one leaf at a time. Not here: the name table (`model/hf/names.py`), where the values
come from (memory, or `training/leaves.py`), the rest of a folder (`export/hf.py`).

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header,
little end first; the header, JSON filled up with spaces to a multiple of eight; then the tensors,
row by row. Their order, the split into files and the index are those of transformers'
`save_pretrained`: what it wrote and we read, we write again byte for byte.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.files import INDEX, SINGLE, DiskDTypeName
from l2s_jax.model.hf.names import Tensor, expected_tensors, flatten

Fetch = Callable[[str], Any]  # dotted path of a leaf → its values, an array of any kind

SHARD_BYTES = 5_000_000_000 - 2**20
"""Tensors per file: 5 GB, less what the largest header takes."""

DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """One file to be written."""

    name: str
    head: bytes  # all that comes before the tensors
    starts: dict[str, int]  # tensor → where its bytes begin in the file
    size: int  # bytes of the whole file


def plan_files(
    cfg: ModelConfig, dtype: DiskDTypeName, shard_bytes: int = SHARD_BYTES
) -> list[WeightFile]:
    """The files of a model's weights; one passes `shard_bytes` only by a single tensor.

    A tied model is written without `lm_head.weight`, as transformers does.
    """
    shards = plan_shards(expected_tensors(cfg), dtype, shard_bytes)
    num = len(shards)
    names = [f"model-{i + 1:05d}-of-{num:05d}.safetensors" for i in range(num)]
    names = names if num > 1 else [SINGLE]
    return [plan_file(name, shard, dtype) for name, shard in zip(names, shards, strict=True)]


def plan_shards(
    expected: list[Tensor], dtype: DiskDTypeName, shard_bytes: int
) -> list[list[Tensor]]:
    """The tensors of each file: layer by layer, a new file where the next would not fit."""
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in by_layer(expected):
        size = num_bytes(tensor, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def by_layer(expected: list[Tensor]) -> list[Tensor]:
    """The tensors layer by layer; `expected` has them name by name."""
    stacked = [place for place, tensor in enumerate(expected) if tensor.layer is not None]
    first, end = stacked[0], stacked[-1] + 1
    middle = sorted(expected[first:end], key=lambda tensor: tensor.layer or 0)
    return [*expected[:first], *middle, *expected[end:]]


def num_bytes(tensor: Tensor, dtype: DiskDTypeName) -> int:
    return int(np.prod(tensor.shape)) * jnp.dtype(dtype).itemsize


def plan_file(name: str, shard: list[Tensor], dtype: DiskDTypeName) -> WeightFile:
    """Header and places of one file; its tensors lie in the order of their names."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for tensor in sorted(shard, key=lambda tensor: tensor.name):
        begin, end = end, end + num_bytes(tensor, dtype)
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    starts = {t.name: len(head) + entries[t.name]["data_offsets"][0] for t in shard}
    return WeightFile(name, head, starts, len(head) + end)


def index_text(cfg: ModelConfig, files: list[WeightFile], dtype: DiskDTypeName) -> str:
    """The index of a model in several files."""
    expected = expected_tensors(cfg)
    metadata = {
        "total_parameters": sum(int(np.prod(tensor.shape)) for tensor in expected),
        "total_size": sum(num_bytes(tensor, dtype) for tensor in expected),
    }
    where = {tensor: file.name for file in files for tensor in file.starts}
    index = {"metadata": metadata, "weight_map": where}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def write_weights(
    folder: pathlib.Path,
    cfg: ModelConfig,
    fetch: Fetch,
    *,
    dtype: DiskDTypeName,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, str]:
    """Writes the weights; returns the fingerprint of every tensor. Holds one leaf on the host."""
    files = plan_files(cfg, dtype, shard_bytes)
    prints = {}
    with contextlib.ExitStack() as stack:
        places: dict[str, tuple[BinaryIO, int]] = {}
        for file in files:
            handle = stack.enter_context((folder / file.name).open("wb"))
            handle.write(file.head)
            handle.truncate(file.size)
            places |= {tensor: (handle, start) for tensor, start in file.starts.items()}
        for name, array in hf_tensors(cfg, fetch, dtype):
            handle, start = places[name]
            handle.seek(start)
            handle.write(raw(array))
            prints[name] = fingerprint(array)
            del array  # it may be a view of its leaf, which must go before the next is fetched
    if len(files) > 1:
        (folder / INDEX).write_text(index_text(cfg, files, dtype))
    return prints


def hf_tensors(
    cfg: ModelConfig, fetch: Fetch, dtype: DiskDTypeName
) -> Iterator[tuple[str, np.ndarray]]:
    """Their name and array of every tensor, leaf by leaf; refuses what is not finite."""
    path = leaf = array = None
    for tensor in expected_tensors(cfg):  # lists the tensors of a leaf together
        if tensor.leaf != path:
            leaf = array = None  # let go of the last leaf, and of views of it, before the next
            path, leaf = tensor.leaf, fetch(tensor.leaf)
        assert leaf is not None
        array = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
        array = array.T if tensor.transposed else array
        if array.shape != tensor.shape:
            raise ValueError(
                f"parameter {path} does not fit the model: {tensor.name} would be {array.shape},"
                f" and the decoder has {tensor.shape}. Checkpoint and model.json are not one run's."
            )
        with np.errstate(over="ignore"):  # what float16 cannot hold is reported below
            array = array.astype(jnp.dtype(dtype), copy=False)
        if not np.isfinite(array).all():
            raise ValueError(
                f"parameter {path} (layer {tensor.layer}) is not finite as {dtype}."
                " Export an earlier checkpoint, or as float32."
            )
        yield tensor.name, np.ascontiguousarray(array)


def raw(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def fingerprint(array: np.ndarray) -> str:
    """Type, shape and the SHA-256 of the bytes of a contiguous array."""
    return f"{array.dtype} {array.shape} {hashlib.sha256(raw(array)).hexdigest()}"


def from_memory(params: Params) -> Fetch:
    """The leaves of parameters in memory, whatever their sharding."""
    if "lora" in params:
        raise ValueError(
            "the parameters hold an adapter (params['lora']), which a model's folder cannot: merge"
            " it first, or write it as an adapter of its own."
        )
    return flatten(params).__getitem__


def save_hf_weights(
    folder: str | pathlib.Path,
    cfg: ModelConfig,
    params: Params,
    *,
    dtype: DiskDTypeName = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes parameters in memory as safetensors; returns the file names."""
    folder = pathlib.Path(folder)
    write_weights(folder, cfg, from_memory(params), dtype=dtype, shard_bytes=shard_bytes)
    files = [file.name for file in plan_files(cfg, dtype, shard_bytes)]
    return files if len(files) == 1 else [*files, INDEX]
