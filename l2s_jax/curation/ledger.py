"""What teachers answered, on disk before it counts.

Lives here: the file of answers, the lock that processes share it by, and claims on requests that
are at work. Not here: who is asked what (`curation/asking.py`), what an answer is worth
(`curation/reject.py`).

`answers.jsonl` is only ever appended to. A line is `{"crc32":"...","record":{...}}`, the sum being
over the record's bytes as they stand in the line. What is promised:

- `append` returns after fsync: an answer that counts outlives a kill and a loss of power.
- A line that a crash has cut, or that was damaged since, is left out and counted; it is ended by a
  newline, so that it costs no other line. Its answer is asked for again.
- A whole file lock (flock) is held for each append and each look, so that processes may share a
  ledger. Who asks holds a claim on the request (a byte lock on the file `claims`), so that no other
  process asks the same meanwhile; the kernel drops the claims of a killed process.
- What a server has answered but this process has not yet received when it is killed cannot be
  known. It is asked for again: at most `concurrency` answers for each kill.

Locks are those of a local file system. Within one process, use one Ledger per folder.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

ANSWERS, CLAIMS = "answers.jsonl", "claims"
_HEAD, _MIDDLE, _TAIL = b'{"crc32":"', b'","record":', b"}\n"
_START = len(_HEAD) + 8 + len(_MIDDLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What one teacher wrote at one request."""

    key: str  # of all that determines it, but for the budget: `request_key`
    request: dict[str, Any]  # that it was made of, for people
    max_new_tokens: int  # the budget
    finish_reason: str  # stop; length (cut at the budget); else no completion, such as a filter's
    text: str
    thought: str | None  # where the server parts it from the text
    prompt_tokens: int | None  # by the teacher's own count; None where a server gives none
    completion_tokens: int | None
    num_tries: int = 1
    where: str = ""  # the server's address or the model's folder

    @property
    def is_whole(self) -> bool:
        """True where a larger budget changes nothing."""
        return self.finish_reason != "length"


@dataclasses.dataclass(frozen=True)
class _Place:
    start: int
    size: int
    is_whole: bool
    max_new_tokens: int


def request_key(request: Mapping[str, Any]) -> str:
    """32 hex digits that name a request by all that it holds."""
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


class Ledger:
    """The answers in a folder; to be used in a `with`. Safe from several threads and processes."""

    def __init__(self, folder: str | pathlib.Path):
        self.path = pathlib.Path(folder) / ANSWERS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o644)
        self._claims = os.open(self.path.with_name(CLAIMS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        _sync_folder(self.path.parent)  # so that the file itself outlives a loss of power
        self._lock = threading.Lock()
        self._claimed: set[str] = set()
        self._places: dict[str, _Place] = {}
        self._end = 0  # of the lines that were read
        self.num_damaged = 0  # whole lines left out
        with self._held(fcntl.LOCK_EX):
            self._end_the_line()
            self._scan()
        if self.num_damaged:
            number = f"lines cut or damaged: {self.num_damaged}"
            print(f"{self.path}: {number}. Their answers are asked for again.", file=sys.stderr)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            os.close(self._file)
            os.close(self._claims)
            self._file = self._claims = -1  # the numbers may soon be another file's

    def __len__(self) -> int:
        """Requests that have an answer."""
        return len(self._places)

    def find(self, key: str, max_new_tokens: int) -> Answer | None:
        """The answer to a request, if it need not be asked again.

        One that ended by itself stands whatever the budget is now; one that was cut stands unless
        the budget has grown.
        """
        with self._lock:
            place = self._places.get(key)
            if place is None or not (place.is_whole or place.max_new_tokens >= max_new_tokens):
                return None
            line = os.pread(self._file, place.size, place.start)
        answer = _read(line)
        if answer is None:
            raise OSError(f"{self.path}: byte {place.start} was changed while the file was in use.")
        return answer

    def append(self, answer: Answer) -> None:
        """Writes an answer down; it is on the disk when this returns."""
        line = _write(answer)
        with self._lock, self._held(fcntl.LOCK_EX):
            self._end_the_line()
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
            self._scan()

    def refresh(self) -> None:
        """Takes in what other processes have appended."""
        with self._lock, self._held(fcntl.LOCK_SH):
            self._scan()

    @contextlib.contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """True inside where the request is this caller's to ask; False where another is at it."""
        place = int(key[:15], 16)
        with self._lock:
            mine = key not in self._claimed and _try_lock(self._claims, place)
            if mine:
                self._claimed.add(key)
        try:
            yield mine
        finally:
            if mine:
                with self._lock:
                    self._claimed.discard(key)
                    fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, place)

    @contextlib.contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        fcntl.flock(self._file, kind)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _end_the_line(self) -> None:
        """Ends a last line that a crash has cut, so that it costs no other."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _scan(self) -> None:
        """Takes in the whole lines from where it stopped. A last one without an end was cut."""
        with open(self.path, "rb") as lines:
            lines.seek(self._end)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._take(line)
                self._end += len(line)

    def _take(self, line: bytes) -> None:
        answer = _read(line)
        if answer is None:
            self.num_damaged += 1
            return
        old = self._places.get(answer.key)
        better = (answer.is_whole, answer.max_new_tokens)
        if old is None or (old.is_whole, old.max_new_tokens) < better:
            self._places[answer.key] = _Place(self._end, len(line), *better)


def read_answers(folder: str | pathlib.Path) -> Iterator[Answer]:
    """Every whole line of a ledger that nobody writes to now, in the order of writing."""
    with (pathlib.Path(folder) / ANSWERS).open("rb") as lines:
        yield from (answer for line in lines if (answer := _read(line)) is not None)


def _write(answer: Answer) -> bytes:
    record = json.dumps(dataclasses.asdict(answer), separators=(",", ":")).encode()
    return b"%s%08x%s%s%s" % (_HEAD, zlib.crc32(record), _MIDDLE, record, _TAIL)


def _read(line: bytes) -> Answer | None:
    """The answer of a line; None where it is cut or damaged."""
    record = line[_START : -len(_TAIL)]
    if line != b"%s%08x%s%s%s" % (_HEAD, zlib.crc32(record), _MIDDLE, record, _TAIL):
        return None
    return Answer(**json.loads(record))


def _try_lock(file: int, place: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):  # another holds it; which of the two, says POSIX
        return False
    return True


def _sync_folder(folder: pathlib.Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
