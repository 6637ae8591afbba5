"""Weights of a Hugging Face folder into our parameters.

Lives here: `load_hf`. Not here: the name table (`model/hf/names.py`), what is wrong with files
(`model/hf/files.py`).
"""

import contextlib
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from l2s_jax.model.config import DTypeName, ModelConfig
from l2s_jax.model.decoder import Params, abstract_params
from l2s_jax.model.hf.files import complaints, open_all, read_hf_config, tensor_files
from l2s_jax.model.hf.names import EMBEDDING, HEAD, Tensor, expected_tensors, flatten, unflatten
from l2s_jax.sharding import shardings


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
