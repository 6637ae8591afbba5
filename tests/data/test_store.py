import json
import pathlib

import pytest

from l2s_jax.data import store
from l2s_jax.data.store import MANIFEST, read_items, read_manifest, write_items
from l2s_jax.types import Item


def items(num):
    return [
        Item(
            id=f"q{i}",
            question=f"wie viel?\n{i} \u2028 é",
            reference=str(i),
            long="a\nb",
            long_answer=str(i),
            short=None if i % 3 else "c",
            short_answer=None if i % 3 else str(i),
            level=i % 4 or None,
        )
        for i in range(num)
    ]


def test_a_manifest_that_lacks_a_shard_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ITEMS", 2)
    write_items(tmp_path, items(3), {})
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["shards"][1]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="num_items=3, but its shards hold 2"):
        read_items(tmp_path)
    del manifest["shards"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="not a manifest of items"):
        read_items(tmp_path)


@pytest.mark.parametrize("num", [0, 1, 7, 8, 9])
def test_what_is_written_is_read(tmp_path, monkeypatch, num):
    monkeypatch.setattr(store, "SHARD_ITEMS", 4)
    write_items(tmp_path / "items", items(num), {"note": "x"})
    assert read_items(tmp_path / "items") == items(num)
    manifest = read_manifest(tmp_path / "items")
    assert (manifest["num_items"], manifest["meta"]) == (num, {"note": "x"})
    assert manifest["num_easy"] == sum(item.is_easy for item in items(num))
    assert [shard["num_items"] for shard in manifest["shards"]] == [4] * (num // 4) + (
        [num % 4] if num % 4 else []
    )


def test_same_items_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_items(tmp_path / name, items(5), {})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_kill_at_any_rename_leaves_the_old_set_or_the_new(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ITEMS", 4)
    folder, rename = tmp_path / "items", pathlib.Path.replace

    class Killed(BaseException):
        pass

    for survived in range(4):  # renames until the kill: two shards, the manifest, none
        write_items(folder, items(6), {})
        left = iter(range(survived))

        def dying(self, target, left=left):
            if next(left, None) is None:
                raise Killed
            return rename(self, target)

        monkeypatch.setattr(pathlib.Path, "replace", dying)
        new = items(8)[2:]
        try:
            write_items(folder, new, {})
        except Killed:
            assert survived < 3
            assert read_items(folder) == items(6)
        else:
            assert read_items(folder) == new
            assert len(list(folder.iterdir())) == 3  # the old shards are gone
        monkeypatch.setattr(pathlib.Path, "replace", rename)


def test_unfinished_set_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="never written"):
        read_items(tmp_path / "nothing")


def test_other_schema_version(tmp_path):
    write_items(tmp_path, items(2), {})
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version=99"):
        read_items(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(ValueError, match="not a manifest"):
        read_items(tmp_path)


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    write_items(tmp_path, items(3), {})
    (shard,) = tmp_path.glob("items-*")
    content = shard.read_bytes()
    for at in range(0, len(content), 29):
        shard.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match=shard.name):
            read_items(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="missing"):
        read_items(tmp_path)
