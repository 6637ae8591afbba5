"""Policies from and to folders: a Hugging Face folder, or the workdir of a run.

Lives here: `load_policy` for both kinds, `save_policy`, and teaching a policy the triggers. Not
here: Hugging Face's format (`model/hf`), exporting (`export/hf.py`).

A workdir holds `model.json` (the decoder's shape), `origin.json` (what its Hugging Face folder
said beyond that), `tokenizer/` (with `l2s.json`, the triggers) and `checkpoints/`.
That of a run which trained an adapter has `lora.json` too, and its base lies elsewhere.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from l2s_jax.config import from_json, to_json
from l2s_jax.data.store import replace_file
from l2s_jax.model.config import DTypeName, ModelConfig
from l2s_jax.model.decoder import Params, abstract_params
from l2s_jax.model.hf.files import DiskDTypeName
from l2s_jax.model.hf.names import flatten, unflatten
from l2s_jax.model.hf.origin import read_origin
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.lora import LoraConfig, merge
from l2s_jax.model.vocab import add_rows
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from l2s_jax.tokens.tokenizer import Tokenizer, load_tokenizer, model_folder
from l2s_jax.tokens.triggers import (
    Spelling,
    TriggerStarts,
    add_triggers,
    find_triggers,
    load_triggers,
)
from l2s_jax.training.adapter import (
    LORA_FILE,
    base_digest,
    check_base,
    read_record,
    restore_adapter,
)
from l2s_jax.training.hosts import is_first
from l2s_jax.training.parameters import restore_params, save_params, saved_params

MODEL_FILE = "model.json"
TOKENIZER_FOLDER = "tokenizer"


def load_policy(
    path: str | pathlib.Path,
    *,
    mesh: Mesh | None = None,
    dtype: DiskDTypeName | None = "float32",
    allow_non_finite: bool = False,
) -> Policy:
    """The policy in a Hugging Face folder, a run's workdir, or of a shipped name.

    Args:
      mesh: where the parameters go, cut by `sharding.RULES`; None is the first device.
      dtype: of the parameters in memory; None keeps each as it is on disk.
      allow_non_finite: take NaN and infinities from a Hugging Face folder.
    """
    folder = model_folder(path)
    if (folder / MODEL_FILE).exists():
        return _from_workdir(folder, mesh, dtype)
    model, params = load_hf(folder, mesh=mesh, dtype=dtype, allow_non_finite=allow_non_finite)
    tokenizer = _tokenizer(folder)
    return Policy(
        model=model,
        params=params,
        tokenizer=tokenizer,
        triggers=load_triggers(folder, tokenizer),
        origin=read_origin(folder),
    )


def load_to_sample(
    path: str | pathlib.Path,
    *,
    mesh: MeshConfig,
    dtype: DTypeName | None,
    devices: Sequence[Any] | None = None,
) -> Policy:
    """What `load_policy` finds, on a mesh, for an `Engine` to sample from.

    Args:
      dtype: of weights and computation; None: float32 weights, computed as the run that trained
        them did.
      devices: of the mesh; None: all, of all hosts.
    """
    policy = load_policy(path, mesh=make_mesh(mesh, devices), dtype=dtype or "float32")
    return policy if dtype is None else policy.computed_in(dtype)


def load_adapted(folder: pathlib.Path, *, mesh: Mesh | None = None) -> tuple[LoraConfig, Policy]:
    """The adapter's config and the policy of a run that trained one, not merged yet."""
    record = read_record(folder)
    try:
        base = load_policy(record.base, mesh=mesh, dtype=record.lora.base)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder / LORA_FILE}: the adapter's base model {record.base} cannot be read ({error})"
            " Put it back, start from the folder that its path is seen from, or correct `base`."
        ) from None
    check_base(folder, record, base_digest(record.base, base))
    if record.spelling is not None:
        base = teach_triggers(base, record.spelling, record.starts or TriggerStarts())
    params = restore_adapter(folder, base, record.lora, mesh)
    return record.lora, dataclasses.replace(without_weights(folder), params=params)


def _from_adapter(folder: pathlib.Path, mesh: Mesh | None, dtype: DiskDTypeName | None) -> Policy:
    """A run's base, as it was kept, and its adapter made one: in float32, and rounded once."""
    _, policy = load_adapted(folder, mesh=mesh)
    kind = jnp.dtype(dtype or "float32")
    whole = merge(_floats(policy.params, jnp.dtype("float32")))
    return dataclasses.replace(policy, params=_floats(whole, kind))


def _floats(params: Params, kind: jnp.dtype) -> Params:
    """The parameters in another type, but for ids."""
    return jax.tree.map(
        lambda leaf: leaf.astype(kind) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        params,
    )


def _from_workdir(folder: pathlib.Path, mesh: Mesh | None, dtype: DiskDTypeName | None) -> Policy:
    if (folder / LORA_FILE).exists():
        return _from_adapter(folder, mesh, dtype)
    policy = without_weights(folder)
    boxed = abstract_params(policy.model)
    places = flatten(shardings(boxed, mesh)) if mesh is not None else {}
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = saved_params(folder)

    def describe(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        kept = saved.get(path, leaf).dtype if dtype is None else jnp.dtype(dtype)
        return jax.ShapeDtypeStruct(leaf.shape, kept, sharding=places.get(path, first))

    leaves = flatten(nn.unbox(boxed))
    like = unflatten({path: describe(path, leaf) for path, leaf in leaves.items()})
    return dataclasses.replace(policy, params=restore_params(folder, like))


def without_weights(workdir: str | pathlib.Path) -> Policy:
    """All of a workdir's policy but its weights: its `params` are empty."""
    workdir = pathlib.Path(workdir)
    tokenizer = _tokenizer(workdir / TOKENIZER_FOLDER)
    return Policy(
        model=from_json(ModelConfig, json.loads((workdir / MODEL_FILE).read_text())),
        params={},
        tokenizer=tokenizer,
        triggers=load_triggers(workdir / TOKENIZER_FOLDER, tokenizer),
        origin=read_origin(workdir),
    )


def _tokenizer(folder: pathlib.Path) -> Tokenizer | None:
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return load_tokenizer(folder)
    return None


def save_policy(workdir: str | pathlib.Path, policy: Policy) -> None:
    """A workdir that `load_policy` reads back."""
    workdir = pathlib.Path(workdir)
    save_params(workdir, policy.params)
    describe_policy(workdir, policy)


def describe_policy(workdir: pathlib.Path, policy: Policy) -> None:
    """All of a policy but its weights, which the run's checkpoints hold.

    A run that resumes has it already, and does not touch it. Of several hosts the first writes it.
    """
    if not is_first() or (workdir / MODEL_FILE).exists():
        return
    (workdir / TOKENIZER_FOLDER).mkdir(parents=True, exist_ok=True)
    if policy.tokenizer is not None:
        policy.tokenizer.save(workdir / TOKENIZER_FOLDER)
    if policy.triggers is not None:
        policy.triggers.save(workdir / TOKENIZER_FOLDER)
    if policy.origin is not None:
        policy.origin.save(workdir)
    # Last: its presence is what makes the folder a policy's workdir.
    replace_file(workdir / MODEL_FILE, json.dumps(to_json(policy.model), indent=2).encode())


def teach_triggers(policy: Policy, spelling: Spelling, starts: TriggerStarts) -> Policy:
    """The policy with trigger vocabulary; one that has it already is returned as it is.

    Added tokens take free padding rows of the embedding, or grow it. Those that the tokenizer has
    already keep the rows that they have.
    """
    if policy.triggers is not None:
        if policy.triggers.spelling != spelling:
            raise ValueError(
                f"spelling={spelling!r}, but the model knows its triggers as"
                f" {policy.triggers.spelling!r} already. Set data.spelling to that."
            )
        return policy
    if policy.tokenizer is None:
        raise ValueError(
            "a model without a tokenizer cannot learn triggers: put its tokenizer files into the"
            " model folder."
        )
    if spelling == "plain":
        return dataclasses.replace(policy, triggers=find_triggers(policy.tokenizer, "plain"))
    tokenizer, triggers = add_triggers(policy.tokenizer)
    num_real = len(policy.tokenizer.hf)
    rows = starts.rows(policy.tokenizer, triggers)
    rows = {new: pieces for new, pieces in rows.items() if new >= num_real}
    params = jax.tree.map(jnp.asarray, policy.params)
    model, params = add_rows(params, policy.model, rows, num_real=num_real)
    return dataclasses.replace(
        policy, model=model, params=params, tokenizer=tokenizer, triggers=triggers
    )
