"""Curated items on disk.

Lives here: writing items so that a kill at any instant leaves the old set or the new one, and
reading them back with every byte checked. Not here: how items are made (`curation`), token
sequences made of them (`tokens/layouts.py`).

A set is a folder of JSON-lines shards and `manifest.json`, which names each shard with its count
and SHA-256. Shards are named by their digest, so a new set never overwrites a shard of the old
one; the manifest is renamed into place last, and only then are shards that it does not name
removed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from l2s_jax.types import Item

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SHARD_ITEMS = 4096
_FIELDS = {field.name for field in dataclasses.fields(Item)}


def write_items(folder: str | pathlib.Path, items: Sequence[Item], meta: dict[str, Any]) -> None:
    """Replaces the item set in `folder`; `meta` (JSON) is kept in the manifest."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        _write_shard(folder, number, items[start : start + SHARD_ITEMS])
        for number, start in enumerate(range(0, len(items), SHARD_ITEMS))
    ]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "num_items": len(items),
        "num_easy": sum(item.is_easy for item in items),
        "shards": shards,
        "meta": meta,
    }
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    for path in folder.glob("items-*.jsonl"):
        if path.name not in {shard["file"] for shard in shards}:
            path.unlink()


def read_items(folder: str | pathlib.Path) -> list[Item]:
    """The items of a finished set, in the order in which they were written."""
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    items = []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != shard["sha256"]:
            raise ValueError(
                f"{path}: its bytes are not those that the manifest names (damaged, edited or"
                " missing). Run the curation again."
            )
        items += [_item(line, f"{path}:{i}") for i, line in enumerate(content.splitlines(), 1)]
    if len(items) != manifest["num_items"]:
        raise ValueError(
            f"{folder / MANIFEST}: num_items={manifest['num_items']}, but its shards hold"
            f" {len(items)} (edited?). Run the curation again."
        )
    return items


def read_manifest(folder: str | pathlib.Path) -> dict[str, Any]:
    """The manifest of a finished set of this schema version."""
    path = pathlib.Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: the items were never written, or the curation that writes them"
            " was stopped before its end. Run `l2s curate` again with the same workdir."
        )
    try:
        manifest = json.loads(path.read_bytes())
        version, _, _ = (manifest[name] for name in ("schema_version", "num_items", "shards"))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a manifest of items. Run the curation again.") from None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version={version}, but this program reads {SCHEMA_VERSION}."
            " Run the curation again with this version."
        )
    return manifest


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Puts `content` at `path` whole or not at all: written beside, synced, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _write_shard(folder: pathlib.Path, number: int, items: Sequence[Item]) -> dict[str, Any]:
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) for item in items)
    content = "".join(line + "\n" for line in lines).encode()
    digest = hashlib.sha256(content).hexdigest()
    name = f"items-{number:05d}-{digest[:12]}.jsonl"
    replace_file(folder / name, content)
    return {"file": name, "num_items": len(items), "sha256": digest}


def _item(line: bytes, where: str) -> Item:
    record = json.loads(line)
    if set(record) != _FIELDS:
        odd = ", ".join(sorted(set(record) ^ _FIELDS))
        raise ValueError(f"{where}: unknown or missing fields: {odd}. Run the curation again.")
    return Item(**record)
