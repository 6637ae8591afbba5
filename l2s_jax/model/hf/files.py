"""The files of a Hugging Face folder: which there are, what their headers say, what is refused.

Lives here: JSON, safetensors headers, the index of a sharded folder, and the complaints between
what a config asks for and what the files hold. Not here: the values (`model/hf/read.py`).

Only safetensors are read: pickle runs code, so it is refused by name.
Format: https://huggingface.co/docs/safetensors.
"""

import contextlib
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
DISK_DTYPES = ("F32", "BF16", "F16")  # safetensors' names of what we read


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
