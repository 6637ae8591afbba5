"""JSON lines that are whole or not there."""

import json
import os
import pathlib

import pytest

from l2s_jax.cli.output import json_lines


def test_nothing_half_written(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(RuntimeError), json_lines(out) as write:
        write({"id": 1})
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert out.read_text() == "old"


def test_lines_are_utf8_and_one_per_object(tmp_path):
    records = [{"text": "ä\n½"}, {"text": None, "logp": [-0.5]}]
    with json_lines(tmp_path / "out.jsonl") as write:
        for record in records:
            write(record)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_a_device_is_written_to_and_not_replaced():
    read, write_end = os.pipe()
    with json_lines(pathlib.Path(f"/dev/fd/{write_end}")) as write:
        write({"id": 1})
    os.close(write_end)
    with os.fdopen(read) as stream:
        assert json.loads(stream.read()) == {"id": 1}


def test_a_number_that_json_lacks_is_a_fault(tmp_path):
    with pytest.raises(ValueError, match="JSON"), json_lines(tmp_path / "out.jsonl") as write:
        write({"logp": float("nan")})
    assert list(tmp_path.iterdir()) == []
