"""JSON lines for programs to read, whole or not at all."""

import contextlib
import json
import os
import pathlib
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Write = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def json_lines(out: pathlib.Path | None) -> Iterator[Write]:
    """A function that writes one object as a line of `out`, or of standard output for None.

    The file takes its name when the block ends well; until then, and after an error, what stood
    at `out` before stands there still.
    """
    if out is None:
        yield lambda record: print(_line(record), flush=True)
        return
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: folder {out.parent} not found. Make it first.")
    if out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder. Name a file.")
    if out.exists() and not out.is_file():  # a pipe or device is written to, never replaced
        with out.open("w", encoding="utf-8") as stream:
            yield lambda record: print(_line(record), file=stream)
        return
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            yield lambda record: print(_line(record), file=stream)
        os.replace(beside, out)
        print(f"wrote {out}", file=sys.stderr)
    finally:
        beside.unlink(missing_ok=True)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)
