"""JSON lines, read in bounded memory, with every faulty line named by file and line.

Lives here: the strict reader (the first fault ends it), the lenient one (faults come out beside the
records, so that the rest of the file counts), and ids that stand for one line each. Not here: what
the fields mean (`data/sources.py` and the readers of each verb).

A fault is a line that is no whole JSON object: a byte-order mark, a NUL byte, bytes that are not
UTF-8, NaN or Infinity, half a character (a lone surrogate), a last line that was cut off, a line
longer than `MAX_LINE_BYTES`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

MAX_LINE_BYTES = 32 << 20
"""A long trace has 200 KB. A longer line is a file without line ends, and would fill the memory."""

MAX_TOLD = 20  # faults that one message spells out


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why a line was left out; `message` begins with file and line."""

    message: str


def read_jsonl(path: str | pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank; ValueError at a fault."""
    for line, record in scan_jsonl(path):
        if isinstance(record, Fault):
            raise ValueError(record.message)
        yield line, record


def scan_jsonl(path: str | pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """(line number from 1, object or fault) of every line that is not blank."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the path of a JSON-lines file.")
    with path.open("rb") as stream:
        for line, raw in enumerate(_lines(stream), start=1):
            if raw is None:
                size = f"{MAX_LINE_BYTES >> 20} MiB"
                yield line, Fault(f"{path}:{line}: longer than {size}. One line, one record.")
            elif raw.strip():
                yield line, _parse(raw, f"{path}:{line}")


class FaultyLines(ValueError):
    """Lines were left out, and all else was done; a user's mistake as any other."""


def refuse(faults: Sequence[Fault], kept: str) -> None:
    """FaultyLines, where there are faults; `kept` says what became of the rest."""
    if not faults:
        return
    told = "\n".join(fault.message for fault in faults[:MAX_TOLD])
    more = len(faults) - MAX_TOLD
    told += f"\n... and {more} more" if more > 0 else ""
    lines = "1 line was" if len(faults) == 1 else f"{len(faults)} lines were"
    raise FaultyLines(f"{lines} left out; {kept}\n{told}")


class Ids:
    """Refuses an id that was seen before."""

    def __init__(self, path: str | pathlib.Path):
        self.path = path
        self.lines: dict[str, int] = {}

    def claim(self, id: str, field: str, line: int) -> str:
        """The id; ValueError where an earlier line has it."""
        if id in self.lines:
            raise ValueError(
                f"{self.path}:{line}: {field} {id!r} was used on line {self.lines[id]} already."
                " Give every line its own."
            )
        self.lines[id] = line
        return id


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Every line; None in place of one that is too long, whose bytes are passed over."""
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        too_long = len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n")
        yield None if too_long else raw
        while too_long and (rest := stream.readline(1 << 20)):
            too_long = not rest.endswith(b"\n")


def _parse(raw: bytes, where: str) -> dict[str, Any] | Fault:
    try:
        return _parse_strictly(raw)
    except RecursionError:
        return Fault(f"{where}: nested too deeply to be a record.")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is not UTF-8 ({error.reason})"
        return Fault(f"{where}: {byte}. Save it as UTF-8.")
    except json.JSONDecodeError as error:
        cut_off = "" if raw.endswith(b"\n") else " The file ends inside this line (a torn write?)."
        return Fault(
            f"{where}: not JSON at column {error.colno} ({error.msg})."
            f" Every line holds one whole JSON object.{cut_off}"
        )
    except ValueError as error:
        return Fault(f"{where}: {error}")


def _parse_strictly(raw: bytes) -> dict[str, Any]:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ValueError("the file opens with a byte-order mark. Save it as plain UTF-8.")
    if b"\0" in raw:
        raise ValueError("the line holds a NUL byte (a torn write?). Remove the line.")
    record = json.loads(raw.decode(), parse_constant=_refuse_constant)
    if not isinstance(record, dict):
        raise ValueError(
            f"holds a {type(record).__name__}, not an object."
            ' Every line looks like {"id": ..., ...}.'
        )
    if b"\\ud" in raw or b"\\uD" in raw:
        _refuse_half_characters(record)
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number. Write a number or null.")


def _refuse_half_characters(record: dict[str, Any]) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone \\ud8.. escape). Fix it.") from None
