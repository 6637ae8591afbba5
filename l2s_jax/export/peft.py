"""A run's adapter as a folder that `peft` loads, and such a folder merged into its base.

Lives here: the folder as a whole, written beside its place, read again and only then renamed. Not
here: the format (`model/hf/peft.py`), exports of whole models (`export/hf.py`), imports of them
(`export/import_hf.py`).
"""

import dataclasses
import pathlib

import jax
import numpy as np

from l2s_jax.export.hf import beside, refuse_existing
from l2s_jax.export.hub import check_repository, push_folder
from l2s_jax.model.hf.names import flatten
from l2s_jax.model.hf.peft import load_peft, save_peft
from l2s_jax.model.lora import merge
from l2s_jax.sampling.policy import Policy
from l2s_jax.tokens.tokenizer import load_tokenizer, model_folder
from l2s_jax.tokens.triggers import load_triggers
from l2s_jax.training.adapter import LORA_FILE, read_record
from l2s_jax.training.policy import load_adapted, load_policy, save_policy


def export_adapter(
    checkpoint: str | pathlib.Path, out: str | pathlib.Path, push: str | None = None
) -> None:
    """Writes the adapter of a run's workdir for `peft`, with the tokenizer that knows the triggers.

    Refused where the vocabulary grew: the base that peft would load has no rows for the triggers.

    Args:
      push: Hub repository ("owner/name") that the finished folder is uploaded to.
    """
    if push is not None:
        check_repository(push)
    out, workdir = pathlib.Path(out), model_folder(checkpoint)
    refuse_existing(out)
    if not (workdir / LORA_FILE).exists():
        raise ValueError(
            f"--adapter: {workdir} holds a whole model and no adapter ({LORA_FILE} is missing)."
            " Leave --adapter out, or train with SftRun.lora."
        )
    record = read_record(workdir)
    lora, policy = load_adapted(workdir)
    rows = load_policy(record.base).model.vocab_size
    if policy.model.vocab_size != rows:
        raise ValueError(
            f"--adapter: the triggers made the vocabulary grow to {policy.model.vocab_size} rows,"
            f" and peft's base {record.base} has {rows}. Export the merged model: leave --adapter"
            " out."
        )
    with beside(out) as partial:
        adapter = policy.params["lora"]
        save_peft(partial, policy.model, lora, adapter, base=record.base)
        if policy.tokenizer is not None:
            policy.tokenizer.save(partial)
        if policy.triggers is not None:
            policy.triggers.save(partial)
        check_reread(partial, policy)
    if push is not None:
        push_folder(out, push)


def check_reread(folder: pathlib.Path, policy: Policy) -> None:
    """Raises where the folder gives another adapter, or other triggers, than were written."""
    _, again = load_peft(folder, policy.model, policy.params)
    want, got = (flatten(jax.device_get(tree)) for tree in (policy.params["lora"], again))
    differ = [
        path for path in want | got if not np.array_equal(want.get(path, ()), got.get(path, ()))
    ]
    if differ:
        raise RuntimeError(f"the adapter differs when it is read again: {', '.join(differ)}")
    tokenizer = load_tokenizer(folder) if policy.tokenizer is not None else None
    if load_triggers(folder, tokenizer) != policy.triggers:
        raise RuntimeError("the triggers differ when the adapter's folder is read again")


def import_adapter(
    hf_dir: str | pathlib.Path,
    adapter_dir: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    allow_non_finite: bool = False,
) -> None:
    """Makes `out` a policy's workdir with a base and its adapter made one, in the base's type."""
    out, adapter_dir = pathlib.Path(out), pathlib.Path(adapter_dir)
    refuse_existing(out)
    policy = load_policy(hf_dir, dtype=None, allow_non_finite=allow_non_finite)
    _, adapter = load_peft(adapter_dir, policy.model, policy.params)
    policy = dataclasses.replace(policy, params=merge(policy.params | {"lora": adapter}))
    if (adapter_dir / "tokenizer.json").exists():  # it may know tokens that the base's does not
        tokenizer = load_tokenizer(adapter_dir)
        triggers = load_triggers(adapter_dir, tokenizer)
        policy = dataclasses.replace(policy, tokenizer=tokenizer, triggers=triggers)
    with beside(out) as partial:
        save_policy(partial, policy)
