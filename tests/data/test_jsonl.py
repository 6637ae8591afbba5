import json
import tracemalloc

import pytest

from l2s_jax.data import jsonl
from l2s_jax.data.jsonl import Fault, Ids, read_jsonl, refuse, scan_jsonl

BAD = [
    (b"{'id': 1}", "not JSON at column 2"),
    (b'{"id": "b", "question": "half a li', "not JSON"),
    (b"[1, 2]", "holds a list, not an object"),
    (b"\xef\xbb\xbf{}", "byte-order mark"),
    (b'{"a": "\x00"}', "NUL"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (b'{"a": NaN}', "NaN is not a JSON number"),
    (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    (b'{"a": "\\ud83d"}', "half a character"),
    (b'{"a":' * 100_000, "nested too deeply"),
]


def write(tmp_path, *lines, end=b"\n"):
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    return path


def test_blank_lines_are_counted(tmp_path):
    path = write(tmp_path, b'{"x": 1}', b"", b'{"x": 2}')
    assert list(read_jsonl(path)) == [(1, {"x": 1}), (3, {"x": 2})]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_malformed_line_is_named_and_the_rest_kept(tmp_path, line, says):
    path = write(tmp_path, b'{"x": 1}', line, b'{"x": "\\ud83d\\ude00"}')
    (_, first), (number, fault), (_, last) = scan_jsonl(path)
    assert (first, number, last) == ({"x": 1}, 2, {"x": "\N{GRINNING FACE}"})
    assert isinstance(fault, Fault)
    assert "file.jsonl:2: " in fault.message
    assert says in fault.message
    with pytest.raises(ValueError, match=says):
        list(read_jsonl(path))


def test_a_last_line_that_was_cut_off_says_so(tmp_path):
    path = write(tmp_path, b'{"x": 1}', b'{"x": "hal', end=b"")
    assert "ends inside this line" in list(scan_jsonl(path))[1][1].message


def test_a_huge_line_is_passed_over_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path, b'{"x": 1}', b'{"x": "' + b"a" * (40 << 20) + b'"}', b'{"x": 2}')
    tracemalloc.start()
    records = list(scan_jsonl(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [records[0][1], records[2][1]] == [{"x": 1}, {"x": 2}]
    assert "file.jsonl:2: longer than" in records[1][1].message
    assert peak < 8 << 20


def test_a_line_of_the_largest_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 9)
    assert [r for _, r in scan_jsonl(write(tmp_path, b'{"x": 12}', b"{}"))] == [{"x": 12}, {}]
    assert isinstance(next(scan_jsonl(write(tmp_path, b'{"x": 123}')))[1], Fault)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "nowhere.jsonl"))


def test_refuse_counts_what_it_does_not_spell_out():
    refuse([], "all is well")
    faults = [Fault(f"f:{line}: bad") for line in range(30)]
    with pytest.raises(ValueError, match=r"30 lines were left out; the rest is kept") as error:
        refuse(faults, "the rest is kept")
    assert "f:19: bad\n... and 10 more" in str(error.value)


def test_an_id_stands_for_one_line():
    ids = Ids("f")
    assert ids.claim("a", "id", 1) == "a"
    with pytest.raises(ValueError, match=r"f:3: id 'a' was used on line 1"):
        ids.claim("a", "id", 3)


def test_every_fault_of_a_written_file_is_found(tmp_path):
    """A file of all faults among good lines: as many faults as were put in, and no record lost."""
    lines = [piece for line, _ in BAD for piece in (line, json.dumps({"x": 1}).encode())]
    found = [record for _, record in scan_jsonl(write(tmp_path, *lines))]
    assert [isinstance(record, Fault) for record in found] == [True, False] * len(BAD)
