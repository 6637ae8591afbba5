"""Our parameters into the safetensors of a Hugging Face folder.

Lives here: the order and split of the files, and their index. Not here: the name table
(`model/hf/names.py`), the rest of a folder (tokenizer, generation config, card: `export/hf.py`).
"""

import json
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.files import INDEX, SINGLE, DiskDTypeName
from l2s_jax.model.hf.names import Tensor, expected_tensors, flatten


def hf_tensors(
    cfg: ModelConfig, params: Params, dtype: DiskDTypeName
) -> Iterator[tuple[str, np.ndarray]]:
    """Their name and array of every tensor, one at a time; refuses what is not finite."""
    leaves = flatten(params)
    for tensor in expected_tensors(cfg):
        leaf = leaves[tensor.leaf]
        array = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
        with np.errstate(over="ignore"):  # what float16 cannot hold is reported below
            array = array.astype(jnp.dtype(dtype))
        if not np.isfinite(array).all():
            raise ValueError(
                f"parameter {tensor.leaf} (layer {tensor.layer}) is not finite as {dtype}."
                " Export an earlier checkpoint, or as float32."
            )
        yield tensor.name, np.ascontiguousarray(array.T if tensor.transposed else array)


def plan_shards(expected: list[Tensor], *, itemsize: int, shard_bytes: float) -> list[list[str]]:
    """Tensor names per file, in order; a file passes `shard_bytes` only by a single tensor."""
    shards: list[list[str]] = [[]]
    filled = 0
    for tensor in expected:
        size = int(np.prod(tensor.shape)) * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor.name)
        filled += size
    return shards


def save_hf_weights(
    folder: str | pathlib.Path,
    cfg: ModelConfig,
    params: Params,
    *,
    dtype: DiskDTypeName = "float32",
    shard_bytes: float = 5e9,
) -> list[str]:
    """Writes the weights as safetensors; returns the file names. Holds one shard on the host.

    A tied model is written without `lm_head.weight`, as transformers does.
    """
    folder = pathlib.Path(folder)
    expected = expected_tensors(cfg)
    itemsize = jnp.dtype(dtype).itemsize
    shards = plan_shards(expected, itemsize=itemsize, shard_bytes=shard_bytes)
    num = len(shards)
    files = [f"model-{i + 1:05d}-of-{num:05d}.safetensors" for i in range(num)]
    files = files if num > 1 else [SINGLE]
    tensors = hf_tensors(cfg, params, dtype)
    for file, names in zip(files, shards, strict=True):
        # transformers reads the format from this metadata.
        save_file(dict(next(tensors) for _ in names), folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # it is made for its owner alone; the folder is to be shared
    if num == 1:
        return files
    total = sum(int(np.prod(tensor.shape)) * itemsize for tensor in expected)
    where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [*files, INDEX]
