"""A policy as a Hugging Face folder that others load without our code.

Lives here: the folder as a whole, written beside its place, read again by a fresh process and
only then renamed; what a dry run lists. Not here: the weights' format (`model/hf/write.py`), the
other files (`export/folder.py`), the second reading (`export/reload.py`), the upload
(`export/hub.py`), the way in (`export/import_hf.py`).
"""

import contextlib
import hashlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from l2s_jax.config import CONFIG_FILE
from l2s_jax.evaluation.summary import read_summary
from l2s_jax.export.card import Measured, model_card
from l2s_jax.export.folder import Parts, write_small_files
from l2s_jax.export.hub import check_repository, push_folder
from l2s_jax.export.reload import check_reloaded, facts
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.files import INDEX, DiskDTypeName, read_json
from l2s_jax.model.hf.origin import Origin
from l2s_jax.model.hf.write import (
    SHARD_BYTES,
    from_memory,
    index_text,
    plan_files,
    write_weights,
)
from l2s_jax.tokens.tokenizer import Tokenizer, model_folder
from l2s_jax.tokens.triggers import Triggers
from l2s_jax.training.adapter import LORA_FILE
from l2s_jax.training.leaves import CheckpointLeaves
from l2s_jax.training.policy import MODEL_FILE, load_policy, without_weights


def export_hf(
    out: str | pathlib.Path,
    *,
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    triggers: Triggers | None,
    origin: Origin | None = None,
    dtype: DiskDTypeName | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes a policy in memory to the folder `out` and returns the names of its files.

    Args:
      dtype: of the weights in the folder; None is the origin's, or float32.
    """
    parts = Parts(
        model=model,
        fetch=from_memory(params),
        tokenizer=tokenizer,
        triggers=triggers,
        origin=origin,
        dtype=dtype or (origin.dtype if origin is not None else "float32"),
        shard_bytes=shard_bytes,
    )
    out = pathlib.Path(out)
    refuse_existing(out)
    card = model_card(name=out.name, parts=parts, weights_dtype=None, measured=None)
    write_folder(out, parts, card)
    return sorted(path.name for path in out.iterdir())


def export_checkpoint(
    checkpoint: str | pathlib.Path,
    out: str | pathlib.Path,
    push: str | None = None,
    dtype: DiskDTypeName | None = None,
    evaluation: str | pathlib.Path | None = None,
) -> None:
    """Exports a policy's workdir; the `summary.json` of its evaluation goes into the card.

    Args:
      push: Hub repository ("owner/name") that the finished folder is uploaded to.
      dtype: of the weights in the folder; None is the origin's, or float32.
      evaluation: workdir of an `l2s eval` of this policy; None is the policy's own, if any.
    """
    out = pathlib.Path(out)
    parts, card = prepare(checkpoint, out, push, dtype, evaluation)
    write_folder(out, parts, card)
    if push is not None:
        push_folder(out, push)


def list_export(
    checkpoint: str | pathlib.Path,
    out: str | pathlib.Path,
    push: str | None = None,
    dtype: DiskDTypeName | None = None,
    evaluation: str | pathlib.Path | None = None,
) -> dict[str, int]:
    """File name → bytes of what `export_checkpoint` would write; reads no weights."""
    parts, card = prepare(checkpoint, pathlib.Path(out), push, dtype, evaluation)
    files = plan_files(parts.model, parts.dtype, parts.shard_bytes)
    sizes = {file.name: file.size for file in files}
    if len(files) > 1:
        sizes[INDEX] = len(index_text(parts.model, files, parts.dtype).encode())
    with tempfile.TemporaryDirectory() as folder:
        write_small_files(pathlib.Path(folder), parts, card)
        sizes |= {path.name: path.stat().st_size for path in pathlib.Path(folder).iterdir()}
    return dict(sorted(sizes.items()))


def prepare(
    checkpoint: str | pathlib.Path,
    out: pathlib.Path,
    push: str | None,
    dtype: DiskDTypeName | None,
    evaluation: str | pathlib.Path | None,
) -> tuple[Parts, str]:
    """What an export of `checkpoint` is made of, and its card; refuses what cannot be done."""
    if push is not None:
        check_repository(push)
    refuse_existing(out)
    workdir = model_folder(checkpoint)
    measured = read_measured(workdir, evaluation)
    if (workdir / MODEL_FILE).exists() and not (workdir / LORA_FILE).exists():
        policy = without_weights(workdir)
        leaves = CheckpointLeaves(workdir)
        fetch = leaves.fetch
        weights_dtype = str(leaves.shapes["embed.embedding"].dtype)
    else:  # a Hugging Face folder, a shipped name, or an adapter whose base lies elsewhere
        policy = load_policy(workdir, dtype=None)
        fetch = from_memory(policy.params)
        weights_dtype = str(policy.params["embed"]["embedding"].dtype)
    parts = Parts(
        model=policy.model,
        fetch=fetch,
        tokenizer=policy.tokenizer,
        triggers=policy.triggers,
        origin=policy.origin,
        dtype=dtype or (policy.origin.dtype if policy.origin is not None else "float32"),
    )
    card = model_card(
        name=push or out.name, parts=parts, weights_dtype=weights_dtype, measured=measured
    )
    return parts, card


def read_measured(
    workdir: pathlib.Path, evaluation: str | pathlib.Path | None = None
) -> Measured | None:
    """What was measured on a policy, and which file says so.

    Args:
      evaluation: workdir of an `l2s eval`, which must be of this policy; None: the policy's own.
    """
    where = (workdir if evaluation is None else pathlib.Path(evaluation)) / "summary.json"
    if evaluation is None and not where.is_file():
        return None
    summary = read_summary(where)
    if evaluation is not None:
        asked = read_json(where.with_name(CONFIG_FILE)).get("model")
        if not isinstance(asked, str) or model_folder(asked).resolve() != workdir.resolve():
            raise ValueError(
                f"{evaluation} is an evaluation of model={asked!r}, but {workdir} is exported. Give"
                " the workdir of an `l2s eval` with that model, from the folder it was run in."
            )
    digest = hashlib.sha256(where.read_bytes()).hexdigest()
    return Measured(
        summary=summary, file=where.name, sha256=digest, is_of_this=evaluation is not None
    )


def write_folder(out: pathlib.Path, parts: Parts, card: str) -> None:
    """Makes the folder `out`: all of it is there and read back by a fresh process, or nothing."""
    with beside(out) as partial:
        prints = write_weights(
            partial, parts.model, parts.fetch, dtype=parts.dtype, shard_bytes=parts.shard_bytes
        )
        write_small_files(partial, parts, card)
        want = facts(prints, parts.model, parts.generation(), parts.tokenizer, parts.triggers)
        check_reloaded(partial, want)


@contextlib.contextmanager
def beside(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder that becomes `out` if the block ends well, and vanishes if it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            out.rmdir()  # an empty one, or it would have been refused
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(out: pathlib.Path) -> None:
    """Raises unless `out` is absent or an empty folder."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: give another --out, or delete it.")
