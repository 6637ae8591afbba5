"""A policy as a Hugging Face folder that others load without our code, and the way back.

Lives here: the folder as a whole, written beside its place, read again by a fresh process and
only then renamed. Not here: the weights' format (`model/hf`), the card's text
(`export/card.py`), our own checkpoints (`training/policy.py`).
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import l2s_jax
from l2s_jax.evaluation.summary import read_summary
from l2s_jax.export.card import model_card
from l2s_jax.export.reload import facts
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.config import to_hf_config
from l2s_jax.model.hf.files import DiskDTypeName
from l2s_jax.model.hf.write import save_hf_weights
from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import Triggers
from l2s_jax.training.policy import load_policy, save_policy

FORCED = 1e4  # added to one logit: no other can win, and float32 still holds it


def export_hf(
    out: str | pathlib.Path,
    *,
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    triggers: Triggers | None,
    card: str | None = None,
    dtype: DiskDTypeName = "float32",
    shard_bytes: float = 5e9,
) -> list[str]:
    """Writes the folder `out` and returns its file names; all of it is there, or nothing.

    Args:
      card: the README.md; None makes one without evaluations.
    """
    out = pathlib.Path(out)
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    partial.mkdir()
    try:
        save_hf_weights(partial, model, params, dtype=dtype, shard_bytes=shard_bytes)
        if tokenizer is not None:
            tokenizer.save(partial)
        write_configs(partial, model, tokenizer, triggers, dtype)
        if triggers is not None:
            triggers.save(partial)
        text = card or model_card(
            name=out.name,
            model=model,
            triggers=triggers,
            dtype=dtype,
            has_tokenizer=tokenizer is not None,
        )
        (partial / "README.md").write_text(text, encoding="utf-8")
        check_reloaded(partial, facts(model, params, tokenizer, triggers, dtype), dtype)
        if out.exists():
            out.rmdir()  # an empty one, or it would have been refused
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path.name for path in out.iterdir())


def refuse_existing(out: pathlib.Path) -> None:
    """Raises unless `out` is absent or an empty folder."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: give another --out, or delete it.")


def write_configs(
    folder: pathlib.Path,
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    triggers: Triggers | None,
    dtype: DiskDTypeName,
) -> None:
    """`config.json` and `generation_config.json`."""
    stop_ids = tokenizer.stop_ids if tokenizer is not None else ()
    pad_id = tokenizer.pad_id if tokenizer is not None else None
    config = to_hf_config(model, stop_id=stop_ids[0] if stop_ids else None, pad_id=pad_id)
    _write_json(folder / "config.json", config | {"dtype": dtype})
    generation: dict[str, Any] = {
        "eos_token_id": list(stop_ids) or None,
        "pad_token_id": pad_id,
        "transformers_version": importlib.metadata.version("transformers"),
    }
    if triggers is not None:
        generation["sequence_bias"] = sequence_bias(triggers)
        generation["l2s"] = dataclasses.asdict(triggers)
    _write_json(folder / "generation_config.json", generation)


def sequence_bias(triggers: Triggers) -> list[list[Any]]:
    """Entries that make transformers write the short trigger after `<EASY>`, piece by piece."""
    easy, short = list(triggers.easy), list(triggers.short)
    return [[easy + short[: end + 1], FORCED] for end in range(len(short))]


def _write_json(path: pathlib.Path, obj: dict[str, Any]) -> None:
    path.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")


def check_reloaded(folder: pathlib.Path, want: dict[str, Any], dtype: DiskDTypeName) -> None:
    """Raises where a fresh process reads something else from `folder` than what was exported."""
    package = str(pathlib.Path(l2s_jax.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    # On the CPU: the accelerator belongs to the process that exports.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "l2s_jax.export.reload", str(folder.resolve()), dtype]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a fresh process cannot read the export:\n{done.stderr[-4000:]}")
    got = json.loads(done.stdout.splitlines()[-1])
    differ = [name for name in want | got if want.get(name) != got.get(name)]
    if differ:
        listed = "\n  ".join(f"{name}: {want.get(name)} → {got.get(name)}" for name in differ)
        raise RuntimeError(f"the export differs when a fresh process reads it:\n  {listed}")


def import_hf(hf_dir: str | pathlib.Path, out: str | pathlib.Path) -> None:
    """Makes `out` a policy's workdir with the weights and tokenizer of a Hugging Face folder."""
    out = pathlib.Path(out)
    refuse_existing(out)
    policy = load_policy(hf_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_policy(partial, policy)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def export_checkpoint(
    checkpoint: str | pathlib.Path,
    out: str | pathlib.Path,
    push: str | None = None,
    dtype: DiskDTypeName = "float32",
) -> None:
    """Exports a policy's workdir; its `summary.json`, if any, goes into the card.

    Args:
      push: Hub repository ("owner/name") that the finished folder is uploaded to.
    """
    if push is not None:
        check_repository(push)
    out = pathlib.Path(out)
    refuse_existing(out)
    policy = load_policy(checkpoint)
    summary = source = None
    where = pathlib.Path(checkpoint) / "summary.json"
    if where.is_file():
        summary = read_summary(where)
        digest = hashlib.sha256(where.read_bytes()).hexdigest()[:12]
        source = f"the run's summary.json (SHA-256 {digest})"
    card = model_card(
        name=push or out.name,
        model=policy.model,
        triggers=policy.triggers,
        dtype=dtype,
        has_tokenizer=policy.tokenizer is not None,
        summary=summary,
        source=source,
    )
    export_hf(
        out,
        model=policy.model,
        params=policy.params,
        tokenizer=policy.tokenizer,
        triggers=policy.triggers,
        card=card,
        dtype=dtype,
    )
    if push is not None:
        push_folder(out, push)


def check_repository(repo: str) -> None:
    """Refuses a name that the Hub would refuse, before anything is written."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--push {repo}: {error} Give owner/name.") from None


def push_folder(folder: pathlib.Path, repo: str) -> None:
    """Uploads a finished folder as one commit; who may is decided by the Hub's own login."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Export by l2s_jax")
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"--push {repo}: the upload failed ({error}). The folder {folder} is complete; log in"
            f" with `hf auth login` and run `hf upload {repo} {folder}`."
        ) from error
