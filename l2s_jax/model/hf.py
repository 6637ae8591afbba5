"""Weights from and to Hugging Face folders, by one name table read in both directions.

Lives here: the table, reading safetensors (one file or sharded), writing them. Not here: the
rest of a folder (tokenizer, generation config, card: `export/hf.py`), what `config.json` means
(`model/config.py`). Only safetensors are read: pickle runs code, so it is refused by name.

Format: https://huggingface.co/docs/safetensors; tensor names as in transformers' Qwen2.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from l2s_jax.model.config import DTypeName, ModelConfig, from_hf_config
from l2s_jax.model.decoder import Params, abstract_params
from l2s_jax.sharding import shardings

DiskDTypeName = Literal["float32", "bfloat16", "float16"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
DISK_DTYPES = ("F32", "BF16", "F16")  # safetensors' names of what we read


@dataclasses.dataclass(frozen=True)
class Name:
    """One leaf of our tree and the tensors of theirs that fill it."""

    ours: str  # path in the parameters, joined by dots
    theirs: str  # with `{}` for the layer; such tensors are stacked on axis 0
    transposed: bool = False  # linear layers: ours [in, out], theirs [out, in]


TABLE = (
    Name("embed.embedding", "model.embed_tokens.weight"),
    Name("layers.input_norm.scale", "model.layers.{}.input_layernorm.weight"),
    Name("layers.attention.q_proj.kernel", "model.layers.{}.self_attn.q_proj.weight", True),
    Name("layers.attention.q_proj.bias", "model.layers.{}.self_attn.q_proj.bias"),
    Name("layers.attention.k_proj.kernel", "model.layers.{}.self_attn.k_proj.weight", True),
    Name("layers.attention.k_proj.bias", "model.layers.{}.self_attn.k_proj.bias"),
    Name("layers.attention.v_proj.kernel", "model.layers.{}.self_attn.v_proj.weight", True),
    Name("layers.attention.v_proj.bias", "model.layers.{}.self_attn.v_proj.bias"),
    Name("layers.attention.o_proj.kernel", "model.layers.{}.self_attn.o_proj.weight", True),
    Name("layers.post_norm.scale", "model.layers.{}.post_attention_layernorm.weight"),
    Name("layers.mlp.gate_proj.kernel", "model.layers.{}.mlp.gate_proj.weight", True),
    Name("layers.mlp.up_proj.kernel", "model.layers.{}.mlp.up_proj.weight", True),
    Name("layers.mlp.down_proj.kernel", "model.layers.{}.mlp.down_proj.weight", True),
    Name("final_norm.scale", "model.norm.weight"),
    Name("lm_head", "lm_head.weight", True),
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of theirs, and its place in our tree."""

    name: str
    leaf: str
    layer: int | None  # place on axis 0 of the leaf
    transposed: bool
    shape: tuple[int, ...]  # theirs


def flatten(params: Params) -> dict[str, Any]:
    """The leaves by their dotted paths."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {".".join(key.key for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The tree whose leaves `flatten` lists."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def expected_tensors(cfg: ModelConfig) -> list[Tensor]:
    """Every tensor that a Hugging Face folder of this decoder holds, in table order."""
    shapes = flatten(nn.unbox(abstract_params(cfg)))
    names = [name for name in TABLE if name.ours in shapes]
    left = set(shapes) - {name.ours for name in names}
    assert not left, f"parameters without a Hugging Face name: {sorted(left)}"
    tensors = []
    for name in names:
        stacked = "{}" in name.theirs
        shape = shapes[name.ours].shape[1:] if stacked else shapes[name.ours].shape
        shape = shape[::-1] if name.transposed else shape
        for layer in range(cfg.num_layers) if stacked else (None,):
            theirs = name.theirs.format(layer)
            tensors.append(Tensor(theirs, name.ours, layer, name.transposed, shape))
    return tensors


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a Hugging Face model folder needs it.")
    try:
        obj = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid JSON ({error}); download it again.") from None
    if not isinstance(obj, dict):
        raise ValueError(f"{path} holds {type(obj).__name__}, not an object; download it again.")
    return obj


def read_hf_config(folder: str | pathlib.Path) -> ModelConfig:
    """The decoder that a Hugging Face folder holds, from its `config.json` alone."""
    folder = pathlib.Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"model folder {folder} does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the folder that holds config.json.")
    return from_hf_config(read_json(folder / "config.json"))


def tensor_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a folder: the single one, or those that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return sorted({folder / name for name in weight_map(folder).values()})
    pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
    if pickles:
        raise ValueError(
            f"{folder} holds pickled weights only ({', '.join(pickles)}). Pickle can run code and"
            " is never read: convert them to safetensors (transformers' save_pretrained does)."
        )
    raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}.")


def weight_map(folder: pathlib.Path) -> dict[str, str]:
    """Tensor name → file name, from the index of a sharded folder.

    The check is on the written path, not on where a link leads: the Hub's own cache links the
    files of a snapshot to a store beside it.
    """
    where = folder / INDEX
    files = read_json(where).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{where} has no weight_map; download it again.")
    for tensor, file in files.items():
        path = pathlib.PurePosixPath(str(file))
        if not isinstance(file, str) or path.is_absolute() or ".." in path.parts or "\\" in file:
            raise ValueError(f"{where}: weight_map[{tensor!r}]={file!r} leaves the folder.")
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{where}: weight_map[{tensor!r}]={file!r} is no safetensors file; pickle and"
                " other formats are never read."
            )
    return files


@dataclasses.dataclass(frozen=True)
class Found:
    """A tensor as its file's header describes it."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it


def open_all(
    files: list[pathlib.Path], stack: contextlib.ExitStack
) -> tuple[dict[pathlib.Path, Any], dict[str, Found]]:
    """The open files (closed with `stack`), and every tensor that their headers list."""
    handles, found = {}, {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, though {INDEX} names it; download it.")
        try:
            handles[file] = handle = stack.enter_context(safe_open(file, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is damaged or cut off ({error}); download it again."
            ) from None
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            part = handle.get_slice(name)
            if name in found:
                raise ValueError(f"tensor {name!r} is in {found[name].file.name} and {file.name}.")
            found[name] = Found(file, tuple(part.get_shape()), part.get_dtype())
    return handles, found


def complaints(expected: list[Tensor], found: Mapping[str, Found], *, tied: bool) -> list[str]:
    """What is wrong between the tensors that a config asks for and those that are there."""
    wrong = []
    for tensor in expected:
        if tensor.name not in found:
            wrong.append(f"missing: {tensor.name} {tensor.shape}")
        elif found[tensor.name].shape != tensor.shape:
            shape = found[tensor.name].shape
            wrong.append(f"shape: {tensor.name} is {shape}, config.json asks for {tensor.shape}")
    known = {tensor.name for tensor in expected} | ({HEAD} if tied else set())
    wrong += [f"unknown: {name} {found[name].shape}" for name in sorted(set(found) - known)]
    for name in sorted(known & set(found)):
        if found[name].dtype not in DISK_DTYPES:
            wrong.append(f"dtype: {name} is {found[name].dtype}, not one of {[*DISK_DTYPES]}")
    return wrong


def load_hf(
    folder: str | pathlib.Path, *, dtype: DTypeName = "float32", mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """The decoder and the weights of a Hugging Face folder; one leaf at a time on the host.

    Args:
      dtype: of the parameters in memory; on disk they may be float32, bfloat16 or float16.
      mesh: where the parameters go, cut by `sharding.RULES`; None is the default device.
    """
    cfg = read_hf_config(folder)
    folder = pathlib.Path(folder)
    expected = expected_tensors(cfg)
    with contextlib.ExitStack() as stack:
        handles, found = open_all(tensor_files(folder), stack)
        wrong = complaints(expected, found, tied=cfg.tied)
        if wrong:
            listed = "\n  ".join(wrong)
            raise ValueError(f"{folder}: weights do not fit config.json:\n  {listed}")

        def fetch(name: str) -> np.ndarray:
            array = handles[found[name].file].get_tensor(name)
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{found[name].file}: tensor {name!r} holds values that are not finite; the"
                    " checkpoint is broken. Take an earlier one."
                )
            return array

        if cfg.tied and HEAD in found:
            check_tied(folder, fetch)
        return cfg, place_leaves(cfg, expected, fetch, dtype=jnp.dtype(dtype), mesh=mesh)


def check_tied(folder: pathlib.Path, fetch: Callable[[str], np.ndarray]) -> None:
    """Refuses a second head that a tied config would silently drop."""
    if not np.array_equal(fetch(HEAD), fetch(EMBEDDING)):
        raise ValueError(
            f"{folder}: config.json has tie_word_embeddings=true, but {HEAD} differs from"
            f" {EMBEDDING}. Set it to false if the model has a head of its own."
        )


def place_leaves(
    cfg: ModelConfig,
    expected: list[Tensor],
    fetch: Callable[[str], np.ndarray],
    *,
    dtype: jnp.dtype,
    mesh: Mesh | None,
) -> Params:
    """Our tree, each leaf gathered from its tensors on the host and put on its devices."""
    boxed = abstract_params(cfg)
    shapes = flatten(nn.unbox(boxed))
    targets = flatten(shardings(boxed, mesh)) if mesh is not None else {}
    members: dict[str, list[Tensor]] = {}
    for tensor in expected:
        members.setdefault(tensor.leaf, []).append(tensor)
    leaves = {}
    for path, tensors in members.items():
        host = np.empty(shapes[path].shape, dtype)
        for tensor in tensors:
            array = fetch(tensor.name)
            host[... if tensor.layer is None else tensor.layer] = (
                array.T if tensor.transposed else array
            )
        leaves[path] = jax.device_put(host, targets.get(path))
    return unflatten(leaves)


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
