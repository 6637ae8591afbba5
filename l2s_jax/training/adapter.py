"""A run that trains an adapter: what its workdir says of the base, and the way back to a policy.

Lives here: `lora.json`, the digest that tells one base from another, the adapter's birth and its
reading from a checkpoint. Not here: the adapter itself (`model/lora.py`), loading the base and
merging the two (`training/policy.py`).

The checkpoints of such a run hold what is trained and no more. The base stays where it was, and is
needed again by whoever resumes or reads the run.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Key

from l2s_jax.config import from_json, to_json
from l2s_jax.data.store import replace_file
from l2s_jax.model.config import DTypeName
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.files import read_json
from l2s_jax.model.hf.names import flatten
from l2s_jax.model.lora import LoraConfig, abstract_adapter, init_adapter, join, split
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import shardings
from l2s_jax.tokens.tokenizer import model_folder
from l2s_jax.tokens.triggers import Spelling, Triggers, TriggerStarts
from l2s_jax.training.hosts import check_all, is_first, whole
from l2s_jax.training.parameters import params_words, restore_params

LORA_FILE = "lora.json"
PER_AXIS = 16  # values of every leaf that the digest looks at, along each of its axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """What `lora.json` says: which adapter, of which base, and how that learned the triggers."""

    lora: LoraConfig
    base: str  # folder or shipped name, as the run's config gave it
    digest: str  # of the base's shape and weights
    spelling: Spelling | None = None  # None: the base was taken with the triggers that it had
    starts: TriggerStarts | None = None


def base_digest(base: str | pathlib.Path, policy: Policy) -> str:
    """A fingerprint of shape and weights: every leaf is looked at, few of its values are.

    Two models of one shape differ in nearly every value, so that a few tell them apart. How a run
    computes is no part of the shape. A base that is a merged adapter itself is told by what it was
    merged from: the sum comes out another way on another kind of device.

    Args:
      base: where the policy was loaded from.
    """
    shape = dataclasses.replace(policy.model, dtype="float32", remat="none")
    sha = hashlib.sha256(json.dumps(to_json(shape), sort_keys=True).encode())
    folder = model_folder(base)
    if (folder / LORA_FILE).exists():
        record = read_record(folder)
        merged = {"of": record.digest, "lora": to_json(record.lora), "arrays": params_words(folder)}
        sha.update(json.dumps(merged, sort_keys=True).encode())
        return sha.hexdigest()[:32]
    for path, leaf in sorted(flatten(policy.params).items()):
        some = leaf[tuple(slice(None, None, max(1, size // PER_AXIS)) for size in leaf.shape)]
        sha.update(f"{path} {leaf.shape}".encode())
        sha.update(whole(some).astype(np.float32).tobytes())
    return sha.hexdigest()[:32]


def kept_as(lora: LoraConfig | None) -> DTypeName:
    """The type in which a run's model is loaded: what is trained begins in float32."""
    return "float32" if lora is None else lora.base


def token_ids_of(triggers: Triggers | None) -> tuple[int, ...]:
    """The tokens whose rows are trained beside an adapter: triggers that are one token each."""
    if triggers is None or triggers.spelling != "added":
        return ()
    return tuple(
        i for ids in (triggers.easy, triggers.long, triggers.short, triggers.answer) for i in ids
    )


def add_adapter(policy: Policy, lora: LoraConfig, key: Key[Array, ""]) -> Params:
    """The policy's parameters with an adapter that changes nothing yet."""
    ids = token_ids_of(policy.triggers)
    adapter = init_adapter(policy.model, lora, policy.params, key, token_ids=ids)
    return policy.params | {"lora": adapter}


def claim_base(workdir: pathlib.Path, record: AdapterRecord) -> None:
    """Writes `lora.json`, or refuses to go on with a base that is not the one it began with.

    Of several hosts the first does it, for all.
    """
    check_all(lambda: _claim_base(workdir, record) if is_first() else None)


def _claim_base(workdir: pathlib.Path, record: AdapterRecord) -> None:
    path = workdir / LORA_FILE
    if path.exists():
        check_base(workdir, read_record(workdir), record.digest)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(to_json(record), indent=2) + "\n").encode())


def read_record(workdir: pathlib.Path) -> AdapterRecord:
    """The record in a workdir."""
    return from_json(AdapterRecord, read_json(workdir / LORA_FILE))


def check_base(workdir: pathlib.Path, record: AdapterRecord, digest: str) -> None:
    """Refuses a base whose digest is not the recorded one."""
    if digest != record.digest:
        raise ValueError(
            f"{workdir / LORA_FILE}: the adapter was trained on {record.base} with digest"
            f" {record.digest}, but what is there now has {digest}. Put the former model back, or"
            " correct `base` if it has moved."
        )


def restore_adapter(
    workdir: pathlib.Path, policy: Policy, lora: LoraConfig, mesh: Mesh | None
) -> Params:
    """The base's parameters with the adapter of the workdir's newest step.

    Args:
      policy: the base as the run adapted it, triggers included.
      mesh: where the adapter goes; None is the first device.
    """
    boxed = abstract_adapter(policy.model, lora, len(token_ids_of(policy.triggers)))
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = nn.unbox(boxed)
    places = shardings(boxed, mesh) if mesh is not None else jax.tree.map(lambda _: first, shapes)

    def describe(leaf: jax.ShapeDtypeStruct, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    # What is frozen of an adapter, its scale and the tokens' ids, follows from its config.
    fresh = jax.device_put(add_adapter(policy, lora, jax.random.key(0))["lora"], places)
    trained, _ = split({"lora": jax.tree.map(describe, shapes, places)})
    _, frozen = split(policy.params | {"lora": fresh})
    return join(restore_params(workdir, trained), frozen)
