"""Which bytes a finished checkpoint consists of.

Lives here: `digests.json`, written into a checkpoint's folder before it gets its final name, and
the comparison of a folder with it. Not here: digests of arrays (`training/digests.py`), what to do
about a damaged checkpoint (`training/checkpoint.py`).

The disk gives no sign of a bit that it lost, and Orbax has no checksum on array data: of 150
flipped bits in its data files it noticed none. The digest is xxh3, which is faster than a memory
copy; it is made against accidents, not against forgers.
"""

import concurrent.futures
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import xxhash

FILE = "digests.json"
READERS = 4  # files read at a time
PIECE_BYTES = 8 << 20


def write(folder: pathlib.Path, arrays: Mapping[str, str]) -> None:
    """Seals a folder: every file's digest, and those of its arrays, which the caller gives."""
    names = [path.relative_to(folder).as_posix() for path in _files(folder)]
    files = dict(zip(names, _digest_all(folder, names), strict=True))
    (folder / FILE).write_text(_render({"files": files, "arrays": dict(arrays)}))


def read(folder: pathlib.Path) -> dict[str, Any]:
    """What was sealed, `{"files": ..., "arrays": ...}`; ValueError where it is not as written."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="ascii")
        said = json.loads(text)
        body = {"files": said["files"], "arrays": said["arrays"]}
    except FileNotFoundError:
        raise ValueError(f"{FILE} is missing") from None
    except (ValueError, KeyError, TypeError):
        body, text = {}, ""
    if not body or _render(body) != text:
        raise ValueError(f"{FILE} is not what was written")
    return body


def faults(folder: pathlib.Path, inside: str = "") -> list[str]:
    """What is wrong with the files of a sealed folder; of those under `inside` alone, if given."""
    try:
        files = read(folder)["files"]
    except ValueError as error:
        return [str(error)]
    names = [name for name in files if name.startswith(inside)]
    found = zip(names, _digest_all(folder, names), strict=True)
    return [
        f"{name} is missing" if digest is None else f"{name} is not what was written"
        for name, digest in found
        if digest != files[name]
    ]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / FILE)


def _digest_all(folder: pathlib.Path, names: list[str]) -> list[str | None]:
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: pathlib.Path) -> str | None:
    """Size and digest; None where there is no such file."""
    state, size = xxhash.xxh3_128(), 0
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                state.update(piece)
                size += len(piece)
    except FileNotFoundError:
        return None
    return f"{size} {state.hexdigest()}"


def _render(body: dict[str, Any]) -> str:
    """The file's text, its own digest in front: it is compared whole, to the last space."""
    own = xxhash.xxh3_128(_dump(body).encode("ascii")).hexdigest()
    return _dump({"_of_the_rest": own} | body) + "\n"


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
