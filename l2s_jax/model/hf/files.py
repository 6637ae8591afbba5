"""The files of a Hugging Face folder: which there are, what their headers say, what is refused.

Lives here: JSON, safetensors headers, the index of a sharded folder, and the complaints between
what a config asks for and what the files hold. Not here: the values (`model/hf/read.py`).

Only safetensors are read: pickle runs code, so it is refused by name.
Format: https://huggingface.co/docs/safetensors.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.config import from_hf_config
from l2s_jax.model.hf.names import HEAD, Tensor

DiskDTypeName = Literal["float32", "bfloat16", "float16"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
PLAUSIBLE_SIDE = 1 << 20  # of a tensor; a longer one has to be there
# What we read, by safetensors' names.
DISK_DTYPES: dict[str, DiskDTypeName] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a Hugging Face model folder needs it.")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """The object that `text` is, with every name in it only once."""
    try:
        obj = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no valid JSON ({error}); download it again.") from None
    if not isinstance(obj, dict):
        raise ValueError(f"{where} holds {type(obj).__name__}, not an object; download it again.")
    return obj


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's names and values; of a name that is there twice, one would be lost."""
    obj = dict(pairs)
    if len(obj) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"twice in one object: {', '.join(map(repr, twice))}")
    return obj


def read_hf_config(folder: str | pathlib.Path) -> ModelConfig:
    """The decoder that a Hugging Face folder holds, from its `config.json` alone."""
    folder = pathlib.Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"model folder {folder} does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the folder that holds config.json.")
    config = read_json(folder / "config.json")
    try:
        return from_hf_config(config)
    except ValueError as error:
        # Some faults are ModelConfig's to find; it does not know which file it comes from.
        text = str(error).removeprefix("config.json: ")
        raise ValueError(f"{folder / 'config.json'}: {text}") from None


@dataclasses.dataclass(frozen=True)
class Found:
    """A tensor as its file's header describes it."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it
    start: int  # of its values in the file, in bytes


def find_tensors(folder: pathlib.Path) -> dict[str, Found]:
    """Every tensor in a folder's safetensors: the single file, or those that the index names."""
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return find_sharded(folder)
    pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
    if pickles:
        raise ValueError(
            f"{folder} holds pickled weights only ({', '.join(pickles)}). Pickle can run code and"
            " is never read: convert them to safetensors (transformers' save_pretrained does)."
        )
    raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}.")


def find_sharded(folder: pathlib.Path) -> dict[str, Found]:
    """Every tensor of a folder with an index; each lies where the index says, or is refused."""
    named = weight_map(folder)
    files = {name: folder / name for name in sorted(set(named.values()))}
    missing = [repr(name) for name, file in files.items() if not _is_file(file)]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} is missing, though {INDEX} names it; download it."
        )
    found: dict[str, Found] = {}
    wrong = []
    for name, file in files.items():
        for tensor, here in read_header(file).items():
            if tensor in found:
                wrong.append(f"{tensor!r} is in {found[tensor].file.name} and {file.name}")
            elif named.get(tensor) != name:
                wrong.append(f"{tensor!r} is in {name}, weight_map says {named.get(tensor)}")
            found[tensor] = here
    wrong += [f"{tensor!r} is not in {named[tensor]}" for tensor in named if tensor not in found]
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"{folder / INDEX} does not fit the files beside it:\n  {listed}")
    return found


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have, for its length
        return False


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


def read_header(file: pathlib.Path) -> dict[str, Found]:
    """Every tensor that a safetensors file lists."""
    try:
        # Holds the header against itself and the file's size: no overlap, no hole, no lack.
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or cut off ({error}); download it again.") from None
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = parse_json(stream.read(size), f"{file}: its header")
    return {
        name: Found(file, tuple(info["shape"]), info["dtype"], 8 + size + info["data_offsets"][0])
        for name, info in header.items()
        if name != "__metadata__"
    }


def check_sizes(folder: pathlib.Path, cfg: ModelConfig, found: Mapping[str, Found]) -> None:
    """Refuses a config of sizes that no file here can hold.

    First of all: tracing such a decoder, or listing what it lacks, would take hours and all memory.
    """
    longest = max((side for here in found.values() for side in here.shape), default=0)
    most = max(longest, PLAUSIBLE_SIDE)
    heads = cfg.num_heads * cfg.head_dim
    sides = {"vocab_size": cfg.vocab_size, "hidden_size": cfg.width}
    sides |= {"intermediate_size": cfg.ffn_width, "num_attention_heads * head_dim": heads}
    wrong = [f"{name}={side}" for name, side in sides.items() if side > most]
    if cfg.num_layers > len(found):
        wrong.append(f"num_hidden_layers={cfg.num_layers}")
    if wrong:
        raise ValueError(
            f"{folder}: config.json says {', '.join(wrong)}, but the files hold {len(found)}"
            f" tensors, the longest side is {longest}. One of them is damaged; download it again."
        )


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
